"""Collecting: nothing that is needed goes, whatever writers do meanwhile and wherever it is killed."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaging.garbage import PARTIAL, collect
from imaging.needed import Blob, Need, decide, mentioned, resolve
from imaging.store import Store
from plumbing import clock
from plumbing.digest import sha256
from plumbing.errors import CorruptError, NotFoundError, UsageError

ROOM = Path(__file__).parents[3]
DAY = 86_400.0


def name(number: int) -> str:
    return f"sha256:{number:064x}"


def manifest(store: Store, ref: str, *layers: bytes, **more: object) -> str:
    """Publish an image manifest with these layers."""
    parts = [{"digest": store.add_bytes(data), "size": len(data)} for data in (b"{}", *layers)]
    return store.put_manifest(ref, json.dumps({"config": parts[0], "layers": parts[1:], **more}).encode())


def digests(store: Store) -> set[str]:
    return {digest for digest, _ in store.blobs()}


@given(
    edges=st.dictionaries(st.integers(0, 15), st.lists(st.integers(0, 20), max_size=4)),
    refs=st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 15)),
    needs=st.lists(st.one_of(st.integers(0, 15).map(name), st.sampled_from("abcdef")), max_size=4),
    ages=st.lists(st.floats(0, 3 * DAY), min_size=16, max_size=16),
    unnamed=st.lists(st.integers(0, 15), max_size=2), unpublished=st.booleans())
def test_nothing_reachable_goes(
        edges: dict[int, list[int]], refs: dict[str, int], needs: list[str], ages: list[float], unnamed: list[int],
        unpublished: bool) -> None:
    """Against a second, naive account of reachability."""
    blobs = {name(number): Blob(1, age) for number, age in enumerate(ages)}
    bodies = {name(number): json.dumps([name(other) for other in edges.get(number, [])]).encode()
              for number in range(16)}
    named = {ref: name(number) for ref, number in refs.items()}
    plan = decide(named, [name(number) for number in unnamed], blobs, bodies.get, [Need(what, "x") for what in needs],
                  unpublished=unpublished)
    gone_refs, gone = map(set, plan.going())
    kept = {digest for what in needs for digest in resolve(what, named)} | {name(number) for number in unnamed}
    kept |= {digest for ref, digest in named.items() if ref not in gone_refs}
    for _ in range(21):
        kept |= {other for digest in kept for other in mentioned(bodies.get(digest, b"[]"), named)}
    young = {digest for digest, blob in blobs.items() if blob.age_s < DAY}
    assert gone == set(blobs) - kept - young
    assert not gone_refs or unpublished
    assert not {ref for ref in gone_refs if named[ref] in kept | young}
    assert {fate.name for fate in plan.blobs} == set(blobs) and {fate.name for fate in plan.refs} == set(named)
    assert all(fate.why for fate in (*plan.refs, *plan.blobs))


def test_whatever_a_kept_manifest_names_stays(tmp_path: Path) -> None:
    """A delta names its ends by digest, a release its recovery image by the catalogue's path."""
    store = Store(tmp_path)
    old = manifest(store, "debian/12/amd64", b"old layer")
    recovery = manifest(store, "recovery/debian/1/amd64", b"kernel")
    new = manifest(store, "debian/13/amd64", b"new layer", annotations={
        "dev.reroot.recovery": "recovery/debian/1/amd64.json"})
    delta = manifest(store, "delta/x", b"delta", subject={"digest": new}, anything=[{"from": old}])
    other = manifest(store, "other/1/amd64", b"other layer")
    orphan = store.add_bytes(b"orphan")
    now = clock.wall() + 2 * DAY

    def look(*needs: str, unpublished: bool = True) -> tuple[list[str], list[str]]:
        return collect(store, lambda: [Need(what, "y") for what in needs], remove=False, unpublished=unpublished,
                       now=now).going()

    assert look(delta) == (["other/1/amd64"], sorted([orphan, other, sha256(b"other layer")]))
    assert look("releases/debian/13/amd64.json")[0] == ["debian/12/amd64", "delta/x", "other/1/amd64"]
    assert look("debian/13")[0] == look(new)[0]
    assert look(unpublished=False) == ([], [orphan])
    assert len(look()[0]) == 5 and recovery in look()[1]
    assert collect(store, list, remove=True, now=clock.wall()).going() == ([], [])  # all young
    assert store.has(orphan)


def test_collecting_removes_exactly_what_was_said(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept = manifest(store, "a/1/amd64", b"kept")
    manifest(store, "a/2/amd64", b"gone")
    (tmp_path / PARTIAL).mkdir()
    (tmp_path / PARTIAL / "half").write_bytes(b"half")
    before = digests(store)
    later = clock.wall() + 2 * DAY
    said = collect(store, lambda: [Need(kept, "z")], remove=False, unpublished=True, now=later)
    assert digests(store) == before and (tmp_path / PARTIAL / "half").exists()
    done = collect(store, lambda: [Need(kept, "z")], remove=True, unpublished=True, now=later)
    assert said == done
    assert before - digests(store) == set(said.going()[1])
    assert said.bytes(going=True) + said.bytes(going=False) == 4 + 4 + 2 + sum(
        fate.size for fate in said.blobs if fate.size > 4)
    assert list(store.refs()) == ["a/1/amd64"]
    assert not (tmp_path / PARTIAL / "half").exists()
    assert collect(store, lambda: [Need(kept, "z")], remove=True, unpublished=True, now=later).going() == ([], [])


def test_a_damaged_store_is_not_collected(tmp_path: Path) -> None:
    store = Store(tmp_path)
    digest = manifest(store, "a/1/amd64", b"layer")
    orphan = store.add_bytes(b"orphan")
    path = store.blob_path(digest)
    path.write_bytes(path.read_bytes().replace(b"config", b"gifnoc"))
    with pytest.raises(CorruptError):
        collect(store, list, remove=True, now=clock.wall() + 2 * DAY)
    assert store.has(orphan)
    path.unlink()
    plan = collect(store, list, remove=True, unpublished=True, now=clock.wall() + 2 * DAY)
    assert "a/1/amd64" in store.refs() and "restore the store" in plan.refs[0].why
    with pytest.raises(UsageError):
        collect(store, list, remove=False, grace_s=-1)


def test_a_claimed_blob_is_young_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    digest = store.add_bytes(b"old")
    os.utime(store.blob_path(digest), (1, 1))
    assert collect(store, list, remove=False).going()[1] == [digest]
    store.add_bytes(b"old")
    assert collect(store, list, remove=True).going() == ([], [])
    assert not store.claim(sha256(b"never"))


def test_no_manifest_without_its_parts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    part = {"digest": store.add_bytes(b"x")}
    with pytest.raises(NotFoundError, match="was not published"):
        store.put_manifest("a/1/amd64", json.dumps({"config": part, "layers": [{"digest": sha256(b"y")}]}).encode())
    assert store.refs() == {}


def test_a_collection_beside_builds_takes_nothing_of_theirs(tmp_path: Path) -> None:
    """No grace at all and many publishers: whoever is told that it published, has all its blobs."""
    store = Store(tmp_path)
    store.create()

    def publish(number: int) -> bool:
        try:
            manifest(store, f"a/{number}/amd64", b"shared", b"own %d" % number)
        except NotFoundError:
            return False
        return True

    def sweep(_number: int) -> bool:
        collect(Store(tmp_path), list, remove=True, grace_s=0)
        return True

    with ThreadPoolExecutor(6) as pool:
        done = [pool.submit(sweep if number % 3 == 0 else publish, number) for number in range(60)]
    published = [number for number, one in enumerate(done) if number % 3 and one.result()]
    assert sorted(store.refs()) == sorted(f"a/{number}/amd64" for number in published)
    for number in published:
        assert store.has(sha256(b"own %d" % number)) and store.has(sha256(b"shared"))


KILLED = """
import os, signal, sys
from pathlib import Path
from imaging.garbage import collect
from imaging.store import Store
left = [int(sys.argv[2])]
def guard(owner, name):
    real = getattr(owner, name)
    def call(*arguments, **options):
        if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return real(*arguments, **options)
    setattr(owner, name, call)
for name in ("fsync", "rename", "replace", "unlink"): guard(os, name)
collect(Store(Path(sys.argv[1])), list, remove=True, grace_s=0, unpublished=True)
"""


def test_killed_before_every_step(tmp_path: Path) -> None:
    """Wherever a collection dies, every ref left has its blobs, and the next collection ends the work."""
    steps = 0
    while True:
        store = Store(tmp_path / str(steps))
        for number in range(3):
            manifest(store, f"a/{number}/amd64", b"layer %d" % number)
        done = subprocess.run([sys.executable, "-c", KILLED, store.path, str(steps)], cwd=ROOM, capture_output=True,
                              text=True, check=False)
        assert done.returncode in (0, -9), done.stderr
        for ref in store.refs():
            assert all(store.has(part) for part in mentioned(store.manifest(ref), {}))
        collect(store, list, remove=True, grace_s=0, unpublished=True)
        assert not digests(store) and not store.refs()
        if done.returncode == 0:
            break
        steps += 1
    assert 5 < steps < 40
