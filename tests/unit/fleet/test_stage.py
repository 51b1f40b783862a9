"""Staging a real release from a real `reroot serve`: cut, resumed, refused."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3
from servers import Machine, Server, free_port, make_site, serving, wait_until

from fleet import agent, stage
from fleet.local_frames import LocalFrames
from fleet.stage import WINDOW, Stager, refuse_separate_boot
from imaging import delta_build
from imaging.audit import load_index
from imaging.capture import capture
from imaging.catalogue import Catalogue
from imaging.delta_manifest import DeltaManifest
from imaging.release import Release
from imaging.sources import StageSource, StageWriter
from imaging.store import Store
from plumbing import clock
from plumbing.errors import BusyError, DiskError, NetworkError, RefusedError, TrustError
from plumbing.run import run
from recovery import identity, tickets
from recovery.log import Log
from recovery.order import Disks, Mode, Order, PartitionRef, Target
from recovery.order import Machine as OrderMachine
from recovery.report import Reporter
from throttle import client as throttle
from throttle.client import Ticket, _Life

TARGET = "releases/debian/13.1/amd64.json"
OLD_REF, OLD_TARGET = "debian/12.0/amd64", "releases/debian/12.0/amd64.json"
_NUMBERS = itertools.count(1)
ORDER_ID = "6f1d5f0e-5b0b-4d53-9f0b-8f1d6a2c7e11"


@dataclass
class Bench:
    """An enrolled host, a release of many frames, and an order that names it."""

    server: Server
    machine: Machine
    local: Path
    release: Release
    order: Order
    out: io.StringIO

    def stager(self, reporter: Reporter | None = None, **changes: object) -> Stager:
        found, log = identity.load(self.local), Log([self.out])
        assert found is not None
        order = replace(self.order, **changes)  # type: ignore[arg-type]
        made = Stager(order, found, self.local, log, reporter or Reporter(log), self.local / "old-root")
        made.root.mkdir(exist_ok=True)
        made.folder.mkdir(exist_ok=True)
        return made


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Release]]:
    """One site with one release for all tests here; each brings its own host."""
    folder = tmp_path_factory.mktemp("site")
    site = make_site(folder / "site")
    site.tickettab.write_text("service root-dump 2\ncontrol 2\n")
    tree = folder / "tree"
    (tree / "boot").mkdir(parents=True)
    (tree / "boot/vmlinuz-6.1").touch()
    for number in range(24):
        (tree / f"{number}").write_bytes(os.urandom(1 << 20))
    store, catalogue = Store(site.store), Catalogue(site.catalogue, site.keys)
    manifest = capture(tree, store, name="debian", version="13.1", arch="amd64", level=1)
    catalogue.publish(TARGET, manifest)
    older = capture(older_tree(tree, folder / "older"), store, name="debian", version="12.0", arch="amd64", level=1)
    catalogue.publish(OLD_TARGET, older)
    found = delta_build.build(store, Release.parse(older), Release.parse(manifest))
    catalogue.publish(DeltaManifest.parse(found).target, found)
    with serving(site) as server:
        yield server, Release.parse(manifest)


def older_tree(tree: Path, folder: Path) -> Path:
    """Make the release before: of every second file another byte."""
    shutil.copytree(tree, folder)
    for number in range(1, 24, 2):
        with (folder / f"{number}").open("r+b") as stream:
            stream.seek(1000)
            stream.write(b"before")
    return folder


@pytest.fixture
def bench(tmp_path: Path, running: tuple[Server, Release]) -> Bench:
    server, release = running
    number = next(_NUMBERS)
    machine = Machine(server, f"host{number}", f"52:54:00:00:00:{number:02x}")
    root = server.site.root / "catalogue/metadata/1.root.json"
    agent.enrol(machine.name, server.api, [server.content], machine.add(), root.read_bytes(), tmp_path)
    now, part = clock.wall(), PartitionRef("0" * 8 + "-0000-4000-8000-" + "0" * 12, "D1", "ext4")
    order = Order(
        id=ORDER_ID, host=machine.name, mode="upgrade", machine=OrderMachine((machine.mac,), None),
        release=Target(TARGET, release.digest), recovery=None, disks=Disks(part, part, part), layout=None,
        precious={}, services=("root-dump",), control=server.api, content=(server.content,), mail=None, attempts=3,
        level=None, issued=clock.iso(now), expires=clock.iso(now + 600), nonce="n" * 16)
    return Bench(server, machine, tmp_path, release, order, io.StringIO())


class _Cut(Reporter):
    """Cuts the stage short when the first window of frames is in."""

    def send(self, phase: str, event: str, data: Mapping[str, object] | None = None,
             message: str | None = None) -> None:
        if data and "done" in data:
            raise NetworkError("the line was cut")


def test_a_release_is_staged_and_a_cut_one_goes_on(bench: Bench) -> None:
    with pytest.raises(NetworkError, match="cut"):
        bench.stager(_Cut(Log([bench.out])))._frames()
    stage = bench.local / "recover/stage"
    had = StageSource(stage, bench.release.layer_digest)
    index = bench.release.read_index(had.read(bench.release.index_offset, bench.release.index_length))
    present = [number for number in range(len(index.frames)) if had.has(number)]
    had.close()
    with_content = {extent.frame for entry in index.entries for extent in entry.extents}
    assert sum(number in with_content for number in present) == WINDOW < len(with_content)
    told = bench.stager()._frames()
    assert told["frames"] == len(with_content) - WINDOW
    whole = StageSource(stage, bench.release.layer_digest)
    for frame in index.frames:
        assert blake3(whole.read(frame.offset, frame.length)).digest() == frame.digest
    whole.close()
    assert bench.stager()._frames()["frames"] == 0


def test_frames_of_which_the_host_has_the_content_are_made_on_the_spot(
        bench: Bench, running: tuple[Server, Release]) -> None:
    tree = running[0].site.root.parent / "tree"
    stager = bench.stager()
    for number in range(0, 24, 2):
        shutil.copyfile(tree / f"{number}", stager.root / f"other name {number}")
    fetched = stager._frames()["frames"]
    stage = StageSource(bench.local / "recover/stage", bench.release.layer_digest)
    index = bench.release.read_index(stage.read(bench.release.index_offset, bench.release.index_length))
    for frame in index.frames:
        assert blake3(stage.read(frame.offset, frame.length)).digest() == frame.digest
    assert fetched == len({extent.frame for entry in index.entries if entry.path.isdigit() and int(entry.path) % 2
                           for extent in entry.extents}) == 12
    assert "frames made of this host's own files" in bench.out.getvalue()


def on_the_older_release(bench: Bench, running: tuple[Server, Release], digest: str | None = None) -> Stager:
    """Return a stager on a host that runs the older release, and says that it is the one of that `digest`."""
    site, stager = running[0].site, bench.stager()
    stager.root.rmdir()
    shutil.copytree(site.root.parent / "older", stager.root)
    (stager.root / "etc/reroot").mkdir(parents=True)
    told = {"release": OLD_REF, "digest": digest or Release.parse(Store(site.store).manifest(OLD_REF)).digest}
    (stager.root / "etc/reroot/release.json").write_text(json.dumps(told))
    return stager


def staged_right(bench: Bench) -> bool:
    stage = StageSource(bench.local / "recover/stage", bench.release.layer_digest)
    index = bench.release.read_index(stage.read(bench.release.index_offset, bench.release.index_length))
    return all(blake3(stage.read(frame.offset, frame.length)).digest() == frame.digest for frame in index.frames)


def test_a_delta_from_the_release_that_runs_takes_the_place_of_frames(
        bench: Bench, running: tuple[Server, Release]) -> None:
    assert on_the_older_release(bench, running)._frames() == {"frames": 0, "bytes": 0}
    assert staged_right(bench)
    assert f"of a delta from {OLD_REF} instead of frames" in bench.out.getvalue()
    assert not (bench.local / "recover/stage/changed").exists()


def test_a_file_that_drifted_from_its_release_is_made_of_the_full_one(
        bench: Bench, running: tuple[Server, Release]) -> None:
    stager = on_the_older_release(bench, running)
    (stager.root / "5").write_bytes(b"edited by somebody")
    stager._frames()
    assert staged_right(bench)
    assert "1 files are not as debian/12.0/amd64 had them, the first is /5" in bench.out.getvalue()


@pytest.mark.parametrize("failure", [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), MemoryError(), zstandard.ZstdError("x"), struct.error("x"),
    ValueError("x"), DiskError("x")], ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("what", ["imaging.rebuild.known_content", "imaging.delta_apply.make_contents",
                                  "imaging.rebuild.TreeSource.read"])
def test_whatever_goes_wrong_with_making_frames_they_are_fetched(
        bench: Bench, running: tuple[Server, Release], monkeypatch: pytest.MonkeyPatch, what: str,
        failure: Exception) -> None:
    def fail(*_args: object, **_more: object) -> None:
        raise failure

    stager = on_the_older_release(bench, running)
    monkeypatch.setattr(what, fail)
    assert stager._frames()["frames"] != 0
    assert staged_right(bench)
    assert "no more frames are made here" in bench.out.getvalue()
    assert not (bench.local / "recover/stage/changed").exists()


def test_one_frame_that_comes_out_otherwise_does_not_spoil_the_others(
        bench: Bench, running: tuple[Server, Release]) -> None:
    site, release = running[0].site, bench.release
    index = load_index(Store(site.store), release)
    number = len(index.frames) // 2
    frames = list(index.frames)
    frames[number] = replace(frames[number], digest=bytes(32))
    with StageWriter(bench.local / "recover/stage", release.layer_digest) as written:
        local = LocalFrames(site.root.parent / "tree", release, replace(index, frames=tuple(frames)), written,
                            lambda _said: None)
        assert local.of_files(list(range(len(frames)))) == [number]


def test_a_stage_that_cannot_be_written_is_no_frame_to_be_fetched(
        bench: Bench, running: tuple[Server, Release], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> None:
        raise DiskError("the stage is full")

    stager = on_the_older_release(bench, running)
    (stager.root / "0").unlink()
    put = StageWriter.put
    monkeypatch.setattr(StageWriter, "put", lambda self, offset, data, frame=None: (
        full() if (bench.local / "recover/stage/changed").exists() else put(self, offset, data, frame)))
    with pytest.raises(DiskError, match="the stage is full"):
        stager._frames()
    assert not (bench.local / "recover/stage/changed").exists()


def test_what_a_power_cut_left_of_a_delta_takes_no_room(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from recovery import disks

    changed = bench.stager().folder / "changed"
    changed.mkdir()
    (changed / "half").write_bytes(b"made")
    asked: list[bool] = []
    monkeypatch.setattr(disks, "require_space", lambda *_: asked.append(changed.exists()))
    bench.stager()._frames()
    assert asked == [False]


def test_a_lost_ticket_stops_a_delta(
        bench: Bench, running: tuple[Server, Release], monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_tickets: object) -> None:
        raise BusyError("the ticket was lost")

    stager = on_the_older_release(bench, running)
    monkeypatch.setattr(stage, "still_held", lost)
    with pytest.raises(BusyError):
        stager._frames()
    assert "frames made of the delta" not in bench.out.getvalue()


def test_another_release_of_that_name_or_a_delta_that_is_gone_leaves_frames_to_fetch(
        bench: Bench, running: tuple[Server, Release]) -> None:
    site = running[0].site
    other = on_the_older_release(bench, running, "sha256:" + "0" * 64)
    assert other._frames()["frames"] == 12
    shutil.rmtree(bench.local / "recover/stage")
    shutil.rmtree(other.root)
    blob = Store(site.store).blob_path(DeltaManifest.parse(
        Catalogue(site.catalogue, site.keys).read(f"deltas/{OLD_REF}/{bench.release.ref}.json")).blob_digest)
    blob.rename(blob.with_suffix(".away"))
    try:
        assert on_the_older_release(bench, running)._frames()["frames"] == 12
    finally:
        blob.with_suffix(".away").rename(blob)
    assert staged_right(bench)
    assert "no more frames are made here, the others are fetched" in bench.out.getvalue()


def test_what_is_staged_already_needs_no_room_and_other_releases_make_room(
        bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.stager()._frames()
    other = bench.local / "recover/stage" / f"{'0' * 64}.part"
    other.write_bytes(b"an older release")
    asked: list[int] = []
    from recovery import disks

    monkeypatch.setattr(disks, "require_space", lambda path, needed, purpose: asked.append(needed))
    bench.stager()._frames()
    assert not other.exists()
    assert asked[0] < bench.release.layer_size // 2 + (64 << 20)


def test_another_release_than_the_order_names_is_refused(bench: Bench) -> None:
    with pytest.raises(TrustError, match="is not what order"):
        bench.stager(release=Target(TARGET, "sha256:" + "1" * 64))._frames()
    assert list((bench.local / "recover/stage").iterdir()) == []


def test_a_dead_content_server_is_not_the_end_and_two_are(bench: Bench) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    frames = bench.stager(content=(dead, bench.server.content))._frames()["frames"]
    assert isinstance(frames, int) and frames > WINDOW
    with pytest.raises(NetworkError, match="no content server has release"):
        bench.stager(content=(dead,), control=dead, services=())._frames()


def test_a_server_with_other_bytes_does_not_hide_a_good_one(bench: Bench) -> None:
    """The catalogue's address answers with a page to everything it does not know; the next one has the release."""
    store = Store(bench.server.site.store)
    blob = store.blob_path(bench.release.layer_digest)
    good = blob.read_bytes()
    bench.stager()._frames()  # opens nothing that stays: the content server reads the file anew for each range
    for path in (bench.local / "recover/stage").iterdir():
        path.unlink()
    blob.chmod(0o600)
    with blob.open("r+b") as stream:
        stream.seek(bench.release.index_offset)
        stream.write(b"\0" * bench.release.index_length)
    with pytest.raises(NetworkError, match="is not the one its manifest names"):
        bench.stager()._frames()
    blob.write_bytes(good)
    assert bench.stager()._frames()["bytes"]


def test_a_lost_ticket_stops_the_download(bench: Bench) -> None:
    held = Ticket("control_001", "control", 1, 60.0, "", _Life(clock.monotonic() + 60))
    tickets.still_held([held])
    gone = replace(held, _life=_Life(clock.monotonic()))
    with pytest.raises(BusyError, match="was lost"):
        tickets.still_held([held, gone])


def test_a_real_ticket_taken_back_stops_the_download(bench: Bench) -> None:
    found = identity.load(bench.local)
    assert found is not None
    with tickets.held(found, ["root-dump"], lambda _: None) as held:
        tickets.still_held(held)
        throttle.give_back(found.client(), held[0].ticket)  # as the server does when it takes one back

        def lost() -> bool:
            try:
                tickets.still_held(held)
            except BusyError:
                return True
            return False

        assert held[0].lifetime_s == 2
        wait_until(lost)


@pytest.mark.parametrize(("mode", "variant", "why"), [
    ("rescue", "none", "is to rescue this host"),
    ("install", "none", "is to install this host"),
    ("upgrade", "no local", "names no /local"),
    ("upgrade", "btrfs", "ext4 or xfs, not btrfs"),
])
def test_what_recovery_would_refuse_is_refused_before_the_reboot(
        bench: Bench, mode: Mode, variant: str, why: str) -> None:
    disks = bench.order.disks
    assert disks is not None
    variants = {"none": None, "no local": replace(disks, local=None),
                "btrfs": replace(disks, root=replace(disks.root, fstype="btrfs"))}
    with pytest.raises(RefusedError, match=why):
        bench.stager(mode=mode, disks=variants[variant]).run(b"")
    assert not (bench.local / "recover/order.json").exists()


def test_a_release_without_a_kernel_is_refused_before_anything_is_staged(bench: Bench, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("no kernel")
    site = bench.server.site
    manifest = capture(tree, Store(site.store), name="debian", version="0", arch="amd64", level=1)
    Catalogue(site.catalogue, site.keys).publish("releases/debian/0/amd64.json", manifest)
    with pytest.raises(RefusedError, match="has no kernel"):
        bench.stager(release=Target("releases/debian/0/amd64.json", Release.parse(manifest).digest))._frames()
    assert list((bench.local / "recover/stage").iterdir()) == []


def test_a_boot_of_its_own_is_asked_for_before_anything_is_staged(
        bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RefusedError("/boot is a filesystem of its own")

    monkeypatch.setattr(stage, "refuse_separate_boot", refuse)
    with pytest.raises(RefusedError, match="of its own"):
        bench.stager().run(b"")
    assert not (bench.local / "recover/order.json").exists()
    assert list((bench.local / "recover/stage").iterdir()) == []


@pytest.mark.root
def test_a_boot_of_its_own_is_refused(tmp_path: Path) -> None:
    (tmp_path / "boot/efi").mkdir(parents=True)
    refuse_separate_boot(tmp_path)
    run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "boot/efi"])
    try:
        refuse_separate_boot(tmp_path)
    finally:
        run(["umount", tmp_path / "boot/efi"])
    run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "boot"])
    try:
        with pytest.raises(RefusedError, match="/boot is a filesystem of its own"):
            refuse_separate_boot(tmp_path)
    finally:
        run(["umount", tmp_path / "boot"])
