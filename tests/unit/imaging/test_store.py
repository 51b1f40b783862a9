"""The store: standard on disk, and whole after any crash."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imaging.release import MANIFEST_TYPE
from imaging.store import REF_NAME, Store
from plumbing.digest import sha256
from plumbing.errors import CorruptError, NotFoundError, RefusedError, UsageError

ROOM = Path(__file__).parents[3]


def child(code: str, *arguments: Path) -> "subprocess.CompletedProcess[str]":
    """Run code in a process of its own, which may die."""
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOM, capture_output=True, text=True,
                          check=False)


def test_layout_is_standard(tmp_path: Path) -> None:
    store = Store(tmp_path / "a/store")
    digest = store.put_manifest("debian/13/amd64", b'{"x":1}', {"note": "hello"})
    assert json.loads((store.path / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((store.path / "index.json").read_bytes())
    assert index["schemaVersion"] == 2
    assert index["manifests"] == [{"mediaType": MANIFEST_TYPE, "digest": digest, "size": 7,
                                   "annotations": {REF_NAME: "debian/13/amd64", "note": "hello"}}]
    assert store.blob_path(digest).read_bytes() == b'{"x":1}'
    assert store.blob_path(digest).stat().st_mode & 0o777 == 0o644
    assert store.manifest("debian/13/amd64") == b'{"x":1}'


def test_reading_makes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert not store.has(sha256(b"x"))
    with pytest.raises(CorruptError, match=r"index\.json.* is missing; restore it"):
        store.refs()
    assert not store.path.exists()
    store.create()
    assert store.refs() == {}
    for ref, command in (("x/1/amd64", "reroot image list"), ("recovery/x/1/amd64", "reroot recovery list")):
        with pytest.raises(NotFoundError, match=command):
            store.manifest(ref)


def test_a_lost_index_is_no_empty_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_manifest("a/1/amd64", b"one")
    (tmp_path / "index.json").unlink()
    for act in (store.refs, store.create, lambda: store.put_manifest("a/2/amd64", b"two")):
        with pytest.raises(CorruptError, match=r"index\.json.* is missing; restore it from a backup"):
            act()
    assert not (tmp_path / "index.json").exists()


def test_blobs(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    large = b"abc" * 1_000_000
    assert store.blob_path(store.add_bytes(large)).read_bytes() == large
    assert store.add_bytes(b"x") == store.add_bytes(b"x") == sha256(b"x")
    assert not list((store.path / ".incoming").iterdir())


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../../etc/passwd", "md5:" + "0" * 64, "sha256:" + "A" * 64,
                                    "sha256:" + "0" * 64 + "\n"])
def test_a_digest_is_never_a_path(tmp_path: Path, digest: str) -> None:
    with pytest.raises(UsageError):
        Store(tmp_path).blob_path(digest)


@pytest.mark.parametrize("ref", ["", "/a", "a//b", "../a", "a b", "a/", "x" * 256, "a\n"])
def test_bad_refs(tmp_path: Path, ref: str) -> None:
    with pytest.raises(UsageError):
        Store(tmp_path / "store").put_manifest(ref, b"{}")


def test_a_ref_never_changes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_manifest("a/1/amd64", b"one")
    store.put_manifest("a/1/amd64", b"one")
    with pytest.raises(RefusedError):
        store.put_manifest("a/1/amd64", b"two")
    assert store.manifest("a/1/amd64") == b"one"


GOOD = {"mediaType": MANIFEST_TYPE, "digest": sha256(b"x"), "size": 1, "annotations": {REF_NAME: "a"}}


@pytest.mark.parametrize("text", [
    "", "[]", "{}", "[" * 100_000, *(json.dumps({"manifests": [entry]}) for entry in (
        1, {"annotations": {REF_NAME: "a"}}, {**GOOD, "digest": "sha256:../../etc"}, {**GOOD, "size": -1},
        {**GOOD, "size": "1"}, {**GOOD, "mediaType": None}, {**GOOD, "annotations": [1]},
        {**GOOD, "annotations": {REF_NAME: 1}}))])
def test_a_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(CorruptError, match=r"index\.json.*restore it from a backup"):
        Store(tmp_path).refs()


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.blob_path(store.put_manifest("a/1/amd64", b"one"))
    path.write_bytes(b"onf")
    with pytest.raises(CorruptError, match="not what its name says"):
        store.manifest("a/1/amd64")


def test_foreign_manifests_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create()
    foreign = {"mediaType": MANIFEST_TYPE, "digest": sha256(b"x"), "size": 1, "platform": {"os": "linux"}}
    (tmp_path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [foreign]}))
    store.put_manifest("a/1/amd64", b"one")
    assert json.loads((tmp_path / "index.json").read_bytes())["manifests"][0] == foreign


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: Store(tmp_path).put_manifest(f"a/{n}/amd64", b"%d" % n), range(24)))
    assert sorted(Store(tmp_path).refs()) == sorted(f"a/{n}/amd64" for n in range(24))


PUBLISH = """
import os, signal, sys
from pathlib import Path
from imaging.store import Store
left = [int(sys.argv[2])]
real = {name: getattr(os, name) for name in ("fsync", "rename", "replace")}
def guarded(name):
    def call(*arguments, **options):
        if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return real[name](*arguments, **options)
    return call
for name in real: setattr(os, name, guarded(name))
store = Store(Path(sys.argv[1]))
store.add_bytes(b"layer")
store.put_manifest("a/2/amd64", b"two")
"""


def test_killed_before_every_durable_step(tmp_path: Path) -> None:
    """Kill a publisher before its n-th fsync or rename, for every n, until one gets through."""
    outcomes = []
    for step in range(60):
        store = Store(tmp_path / str(step))
        store.put_manifest("a/1/amd64", b"one")
        done = child(PUBLISH, store.path, Path(str(step)))
        assert done.returncode in (0, -9), done.stderr
        assert store.manifest("a/1/amd64") == b"one"
        published = "a/2/amd64" in store.refs()
        if published:
            assert store.manifest("a/2/amd64") == b"two"
            assert store.has(sha256(b"layer"))
        outcomes.append(published)
        store.put_manifest("a/2/amd64", b"two")
        assert store.manifest("a/2/amd64") == b"two"
        if done.returncode == 0:
            break
    assert done.returncode == 0
    assert outcomes == sorted(outcomes) and 5 < len(outcomes) < 60


def test_a_blob_of_a_killed_writer_is_durable_before_it_is_named(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It died between the blob's rename and the sync of its folder; the next writer finds the blob there."""
    store, synced = Store(tmp_path), list[str]()

    def killed(_folder: Path) -> None:
        raise KeyboardInterrupt

    store.create()
    with monkeypatch.context() as patch:
        patch.setattr("imaging.store.sync_folder", killed)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                store.put_manifest("a/1/amd64", b"one")
    assert store.has(sha256(b"one")) and store.refs() == {}
    monkeypatch.setattr("imaging.store.sync_folder", lambda folder: synced.append(folder.name))
    monkeypatch.setattr(store, "_write_index", lambda _: synced.append("index"))
    store.put_manifest("a/1/amd64", b"one")
    assert synced == ["sha256", "index"]


def test_full_disk_at_the_last_step_keeps_the_old_index(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_manifest("a/1/amd64", b"one")
    before = (tmp_path / "index.json").read_bytes()
    done = child(
        "import resource, signal, sys\nfrom pathlib import Path\nfrom imaging.store import Store\n"
        "from plumbing.errors import RerootError\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try:\n    Store(Path(sys.argv[1])).put_manifest('a/2/amd64', b'two')\n"
        "except RerootError as error:\n    sys.exit(error.sentence)\n", tmp_path)
    assert done.returncode == 1 and "nothing was published" in done.stderr
    assert (tmp_path / "index.json").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == [".incoming", ".lock", "blobs", "index.json", "oci-layout"]
