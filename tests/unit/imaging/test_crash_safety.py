"""Publishing is cut at every step that touches the disk: what was served before still is, the next try ends the work.

Faults 28 and 31. A release is built, stored and signed in a forked child; before its n-th step it is killed, or loses
power (contents, or names, that were not synced by then are gone), or finds the disk full from there on, or its fsync
fails. The steps are what CPython's audit events and `os.fsync` tell of the site's files. `pytest -s` shows the table of
outcomes.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imaging.audit import audit
from imaging.capture import capture
from imaging.catalogue import Catalogue
from imaging.garbage import collect
from imaging.needed import Need
from imaging.release import Release
from imaging.store import Store
from plumbing.errors import EXIT_CODES, Kind, RerootError
from plumbing.run import run

OLD, NEW = "d/1/amd64", "d/2/amd64"
WRITES = os.O_CREAT | os.O_WRONLY | os.O_RDWR | os.O_TRUNC
TAKES_ROOM = {"open", "os.mkdir", "os.rename", "fsync"}


class Place:
    """A site's store and catalogue below one folder, and the tree that is published."""

    def __init__(self, folder: Path, tree: Path) -> None:
        self.folder, self.tree = folder, tree
        self.store = Store(folder / "store")
        self.catalogue = Catalogue(folder / "catalogue", folder / "keys")

    def publish(self, version: str) -> None:
        manifest = capture(self.tree, self.store, name="d", version=version, arch="amd64", excludes=(), workers=1)
        self.catalogue.publish(Release.parse(manifest).target, manifest)

    def check(self) -> bool:
        """The old release must be served whole, and the new one too if it is listed; return whether it is."""
        listed = self.catalogue.listed()
        for ref in (OLD, NEW):
            target = f"releases/{ref}.json"
            if ref == OLD or target in listed:
                assert self.catalogue.read(target) == self.store.manifest(ref)
                assert audit(self.store, ref).files == 2
        return f"releases/{NEW}.json" in listed

    def go_on(self) -> None:
        """Publish again: it must work, and leave nothing behind that a collection does not find."""
        self.publish("2")
        assert self.check()
        needs = [Need(one.digest, "listed") for one in self.catalogue.listed().values()]
        collect(self.store, lambda: needs, remove=True, grace_s=0, unpublished=True)
        assert sorted(self.store.refs()) == [OLD, NEW]
        assert self.check()
        parts = [Release.parse(self.store.manifest(ref)) for ref in (OLD, NEW)]
        assert {digest for digest, _ in self.store.blobs()} == {
            digest for part in parts for digest in (part.digest, part.layer_digest, part.config_digest)}
        assert not list((self.store.path / ".incoming").iterdir()) and not list(self.store.path.glob(".index*"))
        assert not list((self.catalogue.folder / "metadata").glob(".*"))


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A site that serves the old release; the tree has changed since."""
    folder = tmp_path_factory.mktemp("crash")
    place = Place(folder / "site", folder / "tree")
    (place.tree / "etc").mkdir(parents=True)
    (place.tree / "etc/large").write_bytes(os.urandom(40_000))
    (place.tree / "etc/version").write_text("1")
    place.catalogue.create()
    place.publish("1")
    (place.tree / "etc/version").write_text("2")
    return place


def copy(before: Place, folder: Path) -> Place:
    shutil.copytree(before.folder, folder)
    return Place(folder, before.tree)


Act = Callable[[int, str, str, str], None]


def forked(place: Place, act: Act | None) -> int:
    """Publish in a child that calls `act` with number, kind and path before each step; return its exit code or -9."""
    child = os.fork()
    if not child:
        code = 99
        try:
            end = None if act is None else _watch(place.folder, act)
            place.publish("2")
            if end is not None:
                end("end", str(place.folder))
            code = 0
        except RerootError as error:
            code = error.exit_code
        except BaseException as error:
            print(f"{error!r}", file=sys.stderr)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _watch(top: Path, act: Act) -> Callable[[str, str], None]:
    """Have `act` called before each step; return what calls it for one more."""
    number, within = [0], [False]

    def step(kind: str, path: str, other: str = "") -> None:
        if not within[0] and path.startswith(str(top)):
            within[0] = True  # what `act` does itself is no step
            try:
                act(number[0], kind, path, other)
            finally:
                within[0] = False
            number[0] += 1

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | Path) and (arguments[2] or 0) & WRITES:
            step("open", str(arguments[0]))
        elif event in {"os.rename", "os.remove", "os.mkdir", "os.utime"}:
            step(event, str(arguments[0]), str(arguments[1]))

    real = os.fsync

    def fsync(handle: int) -> None:
        step("fsync", _named(handle))
        real(handle)

    os.fsync = fsync  # type: ignore[assignment]
    sys.addaudithook(hook)
    return step


def kill_at(wanted: int) -> Act:
    def act(number: int, _kind: str, _path: str, _other: str) -> None:
        if number == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def power_cut_at(wanted: int, top: Path) -> Act:
    """Renames and new names reach the disk, contents only when they were synced: the worst that ext4 may do."""
    whole = {(status.st_dev, status.st_ino, status.st_size) for status in map(os.stat, _files(top))}
    synced: set[tuple[int, int]] = set()

    def act(number: int, kind: str, path: str, _other: str) -> None:
        if number == wanted:
            for file in _files(top):
                status = file.stat()
                if ((status.st_dev, status.st_ino) not in synced
                        and (status.st_dev, status.st_ino, status.st_size) not in whole):
                    os.truncate(file, 0)
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "fsync" and os.path.isfile(path):  # noqa: PTH113 - a string of the kernel's
            status = os.stat(path)  # noqa: PTH116
            synced.add((status.st_dev, status.st_ino))

    return act


def names_lost_at(wanted: int) -> Act:
    """Contents reach the disk, renames only when their folder was synced: the other half of what a power cut may do."""
    undone: list[tuple[Path, bytes | None]] = []

    def act(number: int, kind: str, path: str, other: str) -> None:
        if number == wanted:
            for name, before in reversed(undone):
                name.unlink(missing_ok=True) if before is None else name.write_bytes(before)
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "os.rename":
            undone.append((target := Path(other), target.read_bytes() if target.exists() else None))
        elif kind == "fsync":
            undone[:] = [one for one in undone if str(one[0].parent) != path]

    return act


def _named(handle: int) -> str:
    return str(Path(f"/proc/self/fd/{handle}").readlink())


def full_from(wanted: int) -> Act:
    def act(number: int, kind: str, path: str, _other: str) -> None:
        if number >= wanted and kind in TAKES_ROOM and not (kind == "open" and os.access(path, os.F_OK)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return act


def failing_fsync_at(wanted: int) -> Act:
    def act(number: int, kind: str, _path: str, _other: str) -> None:
        if number == wanted and kind == "fsync":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    return act


def _files(top: Path) -> Iterator[Path]:
    return (path for path in top.rglob("*") if path.is_file())


def steps(before: Place, tmp_path: Path) -> list[str]:
    """Return every step of one publishing: its kind and what it is about, without what is different every time."""
    place = copy(before, tmp_path / "steps")
    log = tmp_path / "log"

    def note(_number: int, kind: str, path: str, _other: str) -> None:
        with log.open("a") as out:
            out.write(f"{kind} {Path(path).relative_to(place.folder)}\n")

    assert forked(place, note) == 0 and place.check()
    return log.read_text().splitlines()


FAULTS: dict[str, Callable[[int, Path], Act]] = {
    "kill -9": lambda step, _top: kill_at(step), "contents lost": power_cut_at,
    "names lost": lambda step, _top: names_lost_at(step), "disk full": lambda step, _top: full_from(step),
    "failed fsync": lambda step, _top: failing_fsync_at(step)}


@pytest.mark.parametrize("fault", FAULTS)
def test_cut_at_every_step(before: Place, tmp_path: Path, fault: str) -> None:
    found = steps(before, tmp_path)
    kinds = Counter(line.split()[0] for line in found)
    assert kinds["fsync"] >= 12 and kinds["os.rename"] >= 7 and len(found) > 30, kinds
    ends = {-9} if fault in {"kill -9", "contents lost", "names lost"} else {0, EXIT_CODES[Kind.DISK]}
    table = list[str]()
    for number, line in enumerate(found):
        if fault == "failed fsync" and not line.startswith("fsync"):
            continue
        place = copy(before, tmp_path / "now")
        code = forked(place, FAULTS[fault](number, place.folder))
        new = place.check()
        assert code in ends and (code or (new and fault == "disk full")), (line, code, new)
        place.go_on()
        shutil.rmtree(place.folder)
        table.append(f"{number:>3} {line[:90]:<92}{'new' if new else 'old'}")
    print(f"\n{f'{fault}: served after a cut before step':<96}release\n" + "\n".join(table))
    served = [line[-3:] for line in table]
    assert served == sorted(served, key=("old", "new").index)  # once the new one is served, it stays so
    assert served[0] == "old" and served[-1] == "new"


@pytest.mark.root
def test_a_disk_that_is_really_full(before: Place, tmp_path: Path) -> None:
    """A tmpfs with room for 0, 1, 2 … more pages, until there is enough for the new release."""
    disk = tmp_path / "disk"
    disk.mkdir()
    outcomes: list[tuple[int, int, bool]] = []
    run(["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=10000", "tmpfs", disk])
    try:
        for pages in range(200):
            place = copy(before, disk / "site")
            filler = disk / "filler"
            status = os.statvfs(disk)
            with filler.open("wb") as out:
                os.posix_fallocate(out.fileno(), 0, (status.f_bfree - pages) * status.f_bsize)
            code = forked(place, None)
            outcomes.append((pages, code, place.check()))
            assert code == (0 if outcomes[-1][2] else EXIT_CODES[Kind.DISK]), outcomes[-1]
            filler.unlink()
            place.go_on()
            shutil.rmtree(place.folder)
            if not code:
                break
    finally:
        run(["umount", disk])
    print("\nfree pages: exit code, served\n" + "\n".join(
        f"{pages:>4}: {code}, {'new' if new else 'old'}" for pages, code, new in outcomes))
    assert outcomes[-1][2] and 10 < len(outcomes) < 200 and not any(new for _, _, new in outcomes[:-1])
