"""`reroot image restore`: from a store, servers and registries into a directory, killed, lied to, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import docker_registry
import pytest
from loopback import Answer, Handler, Server, drip
from servers import make_site, serving, wait_until
from trees import describe, noise, rich_tree

from cli.main import run
from control import site
from imaging import sources
from imaging.capture import capture
from imaging.catalogue import Catalogue
from imaging.release import Release
from imaging.store import Store
from plumbing.run import run as run_program
from recovery.journal import Journal

pytestmark = pytest.mark.root
ROOT = Path(__file__).resolve().parents[3]
EAGER = """
from cli.main import main
from imaging import restore
from recovery import journal
restore.SYNC_BYTES = 1  # every frame is made durable, and noted
journal.NOTE_EVERY_S = -1.0
main()
"""


class Made:
    """A site with the release d/1/amd64 of a tree with everything, signed."""

    def __init__(self, folder: Path, place: site.Site) -> None:
        self.site, self.store = place, Store(place.store)
        self.tree = rich_tree(folder / "tree")
        (self.tree / "socket").unlink()
        os.utime(self.tree, ns=(0, 1_600_000_000_000_000_001))
        manifest = capture(self.tree, self.store, name="d", version="1", arch="amd64", excludes=())
        Catalogue(place.catalogue, place.keys).publish("releases/d/1/amd64.json", manifest)
        self.release = Release.parse(manifest)
        self.layer = self.store.blob_path(self.release.layer_digest)
        self.blob = f"/v2/reroot/blobs/{self.release.layer_digest}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    return Made(folder, make_site(folder / "site"))


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Made) -> Path:
    monkeypatch.setenv("REROOT_SITE", str(made.site.root))
    for name in ("REROOT_REGISTRY_AUTH", "REROOT_REGISTRY_TOKEN", "REGISTRY_AUTH_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "target"


def restored(target: Path, *more: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["image", "restore", "d/1", str(target), "--json", *more]) == 0, capsys.readouterr().err
    return dict(json.loads(capsys.readouterr().out))


def layer(made: Made) -> Answer:
    data = made.layer.read_bytes()
    return lambda handler: handler.ranged(data)


def test_from_the_store(made: Made, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target.mkdir()
    (target / "lost+found").mkdir(mode=0o700)
    (target.parent / "link").symlink_to(target)
    assert run(["image", "restore", "d/1/amd64", str(target.parent / "link")]) == 0
    said = capsys.readouterr()
    assert f"d/1/amd64 is in {target}: " in said.out and ", read back\n" in said.out and said.err == ""
    assert f"{made.layer}\n" in said.out
    assert describe(target, skip=frozenset({"lost+found"})) == describe(made.tree)
    assert sorted(path.name for path in target.parent.iterdir()) == ["link", "target"], "no journal stays"


def test_events_and_no_reading_back(made: Made, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "restore", "d/1", str(target), "--json"]) == 0
    said = capsys.readouterr()
    assert [(one["event"], one["what"]) for one in map(json.loads, said.err.splitlines())
            if one["event"] != "progress"] == [
        ("begin", "restore"), ("done", "restore"), ("begin", "verify"), ("done", "verify")]
    facts = json.loads(said.out)
    assert (facts["verified"], facts["digest"], facts["directory"]) == (True, made.release.digest, str(target))
    assert run(["image", "restore", "d/1", str(target.with_name("other")), "--no-verify"]) == 0
    assert "; not read back\n" in capsys.readouterr().out
    assert describe(target) == describe(target.with_name("other"))


def test_from_a_file_a_layout_a_content_server_and_a_registry_at_once(
        made: Made, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "layer").hardlink_to(made.layer)
    assert run(["image", "export", "d/1", str(tmp_path / "stick")]) == 0
    with serving(made.site) as control, docker_registry.serving(tmp_path / "registry") as host:
        assert run(["image", "push", "d/1", f"http://{host}/os/d"]) == 0
        places = [str(tmp_path / "layer"), str(tmp_path / "stick"), f"{control.content}/", f"http://{host}/os/d"]
        for number, place in enumerate(places):
            facts = restored(tmp_path / f"from{number}", "--from", place, capsys=capsys)
            (source,) = facts["sources"]
            assert (source["frames"], source["lies"], source["failures"]) == (facts["frames"], 0, 0)
        facts = restored(target, *(word for place in places for word in ("--from", place)), capsys=capsys)
        assert len(facts["sources"]) == 4
        assert restored(tmp_path / "tagged", "--from", f"{host}/os/d:1-amd64", "--plain-http", capsys=capsys)
    assert describe(target) == describe(made.tree)


def test_a_registry_that_wants_a_login(
        made: Made, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    with docker_registry.guarded(tmp_path / "registry") as (host, _):
        assert run(["image", "restore", "d/1", str(target), "--from", f"http://{host}/os/d"]) == 7
        assert "log in with `skopeo login" in capsys.readouterr().err
        monkeypatch.setenv("REROOT_REGISTRY_AUTH", ":".join(docker_registry.TOKEN_LOGIN))
        assert run(["image", "push", "d/1", f"http://{host}/os/d"]) == 0
        restored(target, "--from", f"http://{host}/os/d", capsys=capsys)
    assert describe(target) == describe(made.tree)


def test_killed_it_goes_on_where_it_stopped(
        made: Made, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal, data, gate, asked = tmp_path / "target.reroot-restore", made.layer.read_bytes(), threading.Event(), [0]

    def stalling(handler: Handler) -> None:
        asked[0] += 1
        if asked[0] > 4:  # the index and some frames came; then nothing
            gate.wait(60)
        handler.ranged(data)

    with Server(tmp_path) as server:
        server.answers[made.blob] = stalling
        command = [sys.executable, "-c", EAGER, "image", "restore", "d/1", str(target), "--from", server.url]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            wait_until(lambda: process.poll() is not None or (journal.exists() and bool(noted(journal))))
            os.kill(process.pid, signal.SIGKILL)
            assert process.stderr is not None and process.stderr.read() == ""
        gate.set()
    kept = len(noted(journal))
    assert kept and target.stat().st_mode & 0o777 == 0o700, "nobody looks into what is not whole"
    other = capture(made.tree / "etc", made.store, name="d", version="2", arch="amd64")
    Catalogue(made.site.catalogue, made.site.keys).publish("releases/d/2/amd64.json", other)
    assert run(["image", "restore", "d/2", str(target)]) == 6
    assert "is half filled with d/1/amd64" in capsys.readouterr().err
    assert restored(target, capsys=capsys)["reused_frames"] == kept
    assert describe(target) == describe(made.tree) and not journal.exists()


def noted(journal: Path) -> frozenset[int]:
    return Journal(journal).state.frames


def test_a_directory_that_was_emptied_begins_anew(
        made: Made, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target.mkdir()
    stale = Journal(tmp_path / "notes")
    stale.order("d/1/amd64", "restore", made.release.digest)
    stale.frames(range(100))
    assert restored(target, "--journal", str(tmp_path / "notes"), capsys=capsys)["reused_frames"] == 0
    assert describe(target) == describe(made.tree) and not (tmp_path / "notes").exists()


def test_a_liar_and_a_dead_server_are_named(
        made: Made, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = made.layer.read_bytes()

    def lying(handler: Handler) -> None:
        first, last = map(int, handler.headers["Range"].removeprefix("bytes=").split("-"))
        if first == made.release.index_offset:
            handler.ranged(data)
        else:
            handler.send(206, noise(9, last + 1 - first))

    with Server(tmp_path) as liar, Server(tmp_path) as dead, Server(tmp_path) as good:
        liar.answers[made.blob], good.answers[made.blob] = lying, layer(made)
        dead.answers[made.blob] = lambda handler: handler.send(503, b"")
        arguments = [word for server in (liar, dead, good) for word in ("--from", server.url)]
        assert run(["image", "restore", "d/1", str(target), *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        told = {server.url: next(line for line in lines if server.url in line) for server in (liar, dead, good)}
        assert " answers were other bytes than the release has; " in told[liar.url], lines
        assert "in the end it was not asked any more: " in told[liar.url], lines
        assert told[dead.url].startswith("0 frames, 0 B from ") and " times it did not answer" in told[dead.url], lines
        assert told[good.url].endswith(f" from {good.url}"), lines
    assert describe(target) == describe(made.tree)


def test_a_server_that_drips_is_named(
        made: Made, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    data = made.layer.read_bytes()

    def dripping(handler: Handler) -> None:
        if handler.headers["Range"].startswith(f"bytes={made.release.index_offset}-"):
            handler.ranged(data)
        else:
            drip(handler)

    monkeypatch.setattr(sources, "HttpSource", partial(sources.HttpSource, timeout_s=0.5))
    monkeypatch.setattr(sources, "SLOWEST", 1 << 30)
    with Server(tmp_path) as dripper:
        dripper.answers[made.blob] = dripping
        assert run(["image", "restore", "d/1", str(target), "--from", dripper.url, "--from", str(made.layer)]) == 0
        assert f"0 frames, 0 B from {dripper.url}; " in (said := capsys.readouterr().out)
        assert " times it did not answer" in said
    assert describe(target) == describe(made.tree)


def test_only_liars_leave_nothing_that_passes_for_a_tree(
        made: Made, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = bytearray(made.layer.read_bytes())
    for place in range(0, made.release.index_offset, 5000):
        wrong[place] ^= 1
    (tmp_path / "layer").write_bytes(wrong)
    assert run(["image", "restore", "d/1", str(target), "--from", str(tmp_path / "layer")]) == 7
    said = capsys.readouterr().err
    assert "no source has the next frame of the release" in said and len(said.splitlines()) == 1
    restored(target, capsys=capsys)
    assert describe(target) == describe(made.tree)


def test_what_the_disk_changed_is_made_again(
        made: Made, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from imaging import verify

    def rotten(*arguments: object, **options: object) -> object:
        (target / "medium").write_bytes(b"rot")
        return sound(*arguments, **options)  # type: ignore[arg-type]

    sound = verify.verify
    monkeypatch.setattr(verify, "verify", rotten)
    assert run(["image", "restore", "d/1", str(target)]) == 10
    assert "differences, first /etc/a hard link: " in capsys.readouterr().err
    monkeypatch.setattr(verify, "verify", sound)
    assert restored(target, capsys=capsys)["reused_frames"] == 0
    assert describe(target) == describe(made.tree)


def test_refusals(made: Made, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capture(made.tree / "etc", made.store, name="unsigned", version="1", arch="amd64")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    (tmp_path / "note").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    good = ["d/1", str(target)]
    for arguments, code, words in [
        (["unsigned/1", str(target)], 5, "the catalogue does not list it: nobody vouches for it"),
        (["none/1", str(target)], 4, "`reroot image list`"),
        (["d/1", str(tmp_path / "full")], 6, "is not empty; name an empty directory"),
        (["d/1", str(tmp_path / "note")], 2, "is not a directory"),
        ([*good, "--from", "http://127.0.0.1:9/os/d"], 7, "the registry 127.0.0.1:9 does not answer"),
        ([*good, "--from", "127.0.0.1:9/os/d"], 7, "whether it speaks http or https"),
        ([*good, "--from", "http://127.0.0.1:9"], 7, "http://127.0.0.1:9"),
        ([*good, "--from", "/nowhere/layer"], 4, "is not there"),
        ([*good, "--from", str(tmp_path / "note")], 7, "ends before byte"),
        ([*good, "--from", "r/B"], 2, "no place in a registry"),
        ([*good, "--from", "a-layer"], 4, "a-layer is not there; name a layer"),
        (["d/1", "/"], 2, "would lie in the tree"),
        (["d/1", str(tmp_path / "loop")], 8, "the directory "),
        ([*good, "--journal", str(target / "notes")], 2, "would lie in the tree"),
        ([*good, "--journal", str(tmp_path / "note")], 6, "is no journal of a restore"),
        ([*good, "--journal", "/nowhere/notes"], 8, "the journal /nowhere/notes cannot be written"),
    ]:
        assert run(["image", "restore", *arguments]) == code, (arguments, capsys.readouterr().err)
        said = capsys.readouterr()
        assert words in said.err and len(said.err.splitlines()) == 1 and said.out == "", said
    assert (tmp_path / "note").read_text() == "mine" and not list(target.iterdir())
    assert not list(tmp_path.glob("*.reroot-restore"))


def test_two_at_once_are_refused_and_an_interrupt_waits_for_no_server(
        made: Made, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, asked = made.layer.read_bytes(), list[str]()

    def stalling(handler: Handler) -> None:
        asked.append(str(handler.headers["Range"]))
        if len(asked) > 1:  # the index came, frames do not
            handler.server.stop.wait(120)
        handler.ranged(data)

    with Server(tmp_path) as server:
        server.answers[made.blob] = stalling
        command = [sys.executable, "-c", EAGER, "image", "restore", "d/1", str(target), "--from", server.url]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
            wait_until(lambda: len(asked) > 1)
            assert run(["image", "restore", "d/1", str(target)]) == 11
            process.send_signal(signal.SIGINT)
            assert process.wait(15) == 130, "a server has 20 s for its answer"
            assert process.stderr is not None and process.stderr.read() == b""
    assert "is being filled by another process" in capsys.readouterr().err


def test_a_disk_that_is_too_small_is_refused_before_anything_is_made(
        made: Made, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target.mkdir()
    run_program(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", target])
    try:
        assert run(["image", "restore", "d/1", str(target)]) == 8
        assert "d/1/amd64 needs " in (said := capsys.readouterr().err) and " and 8 MiB are free; make room" in said
        assert not list(target.iterdir())
    finally:
        run_program(["umount", target])
    assert not list(target.parent.glob("*.reroot-restore"))


def test_it_needs_root(made: Made, target: Path, monkeypatch: pytest.MonkeyPatch,
                       capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run(["image", "restore", "d/1", str(target)]) == 6
    assert "needs root; run it with sudo" in capsys.readouterr().err and not target.exists()


def test_a_release_that_is_not_in_the_store(
        made: Made, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made.layer.rename(tmp_path / "away")
    try:
        assert run(["image", "restore", "d/1", str(target)]) == 4
        assert "say with --from which file" in capsys.readouterr().err
        restored(target, "--from", str(tmp_path / "away"), capsys=capsys)
    finally:
        (tmp_path / "away").rename(made.layer)
