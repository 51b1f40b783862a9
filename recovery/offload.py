"""Copying precious archives off a machine from the rescue menu (I/O): read where they lie, written to a disk of choice.

/local is read as it is mounted, else from its partition without replaying its journal. On the disk that a person chose
a new folder is made; nothing that is there is changed. What was written is read back from the disk and compared.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from plumbing.errors import CorruptError, DiskError, NotFoundError
from recovery import disks, lvm
from recovery.dialogue import Dialogue, confirm, pick
from recovery.examine import quietly
from recovery.log import size
from recovery.order import ROOT_FILESYSTEMS
from recovery.session import Session

WRITABLE = ("ext4", "vfat")
"""Filesystems that a copy can be put on."""
PIECE = 1 << 20
_ARCHIVE = re.compile(r"[0-9A-Za-z-]{1,64}")
"""Names of archives' folders: the ids of their orders."""


@dataclass(frozen=True)
class Target:
    """A filesystem that could take the copy."""

    device: Path
    there: disks.Filesystem

    @property
    def text(self) -> str:
        """What a person needs to know of it; a label is whatever somebody wrote there."""
        return f"{self.device.name} ({self.there.fstype}, label {self.there.label!a}, {self.there.uuid})"


def to_disk(session: Session) -> Dialogue:
    """Ask which archive and which disk, say what will be written, and copy when that is confirmed."""
    with recover_folder(session) as (recover, local):
        archives = finished(recover / "precious")
        if not archives:
            raise NotFoundError("there is no finished archive of precious files on this machine; to copy other files, "
                                "mount the disks read-only (3) and use the shell (4)")
        archive = yield from pick("which archive", archives, lambda one: f"{one.name}, {size(_bytes(one))}")
        if archive is None:
            return None
        targets = list(candidates(session, local))
        if not targets:
            raise NotFoundError("no other disk of this machine has an ext4 or FAT filesystem; connect one, and choose "
                                "this again")
        target = yield from pick("to which disk", targets, lambda one: one.text)
        if target is None:
            return None
        yield (f"this mounts {target.text} for writing, makes the folder reroot-precious-{archive.name} with "
               f"{size(_bytes(archive))}, and changes nothing else there; /local is only read")
        if (yield from confirm(target.device.name)):
            yield f"copying to {target.device}"
            made = _copy(session, archive, target)
            yield f"{made} on {target.device} was written and read back; the disk can be taken away"
    return None


@contextmanager
def recover_folder(session: Session) -> Iterator[tuple[Path, Path | None]]:
    """Give /local/recover, and the partition it was found on when /local is not mounted.

    Raises NotFoundError when no partition holds one and DiskError when several do.
    """
    if session.local_mounted:
        yield session.recover, None
        return
    holding = []
    at = session.places.scratch / "kept"
    lvm.activate(session.inventory(), lambda text: session.log.say("rescue", text))
    for part in (part for disk in session.inventory() for part in disk.places):
        with suppress(DiskError), _read_only(part.device, at) as folder:
            if folder is not None and (folder / "recover/precious").is_dir():
                holding.append(part.device)
    if not holding:
        raise NotFoundError("no partition of this machine is a /local with precious files; look at the disks (3)")
    if len(holding) > 1:
        raise DiskError(f"{' and '.join(map(str, holding))} could each be this machine's /local; take the other "
                        "disk out")
    with _read_only(holding[0], at) as folder:
        assert folder is not None
        yield folder / "recover", holding[0]


@contextmanager
def _read_only(device: Path, at: Path) -> Iterator[Path | None]:
    there = disks.identify(device)
    if there is None or there.fstype not in ROOT_FILESYSTEMS:
        yield None
        return
    with disks.mounted(device, at, there.fstype, *quietly(there.fstype), "nosuid", "nodev", "noexec") as folder:
        yield folder


def finished(folder: Path) -> list[Path]:
    """Return the folders of archives that were read back when they were made, the newest first."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    found = [one for one in folder.iterdir() if _ARCHIVE.fullmatch(one.name) and not one.is_symlink()
             and _is_file(one / "kept.json")]
    return sorted(found, key=lambda one: (-(one / "kept.json").lstat().st_mtime, one.name))


def candidates(session: Session, local: Path | None) -> Iterator[Target]:
    """Yield the filesystems that are not this machine's own root, /local or ESP, and not mounted."""
    own = {local} | ({part.device for part in (session.found.root, session.found.local, session.found.boot)
                      if part is not None} if session.found is not None else set())
    mounted = {line.split(" ")[0] for line in
               Path("/proc/mounts").read_text(errors="surrogateescape").splitlines()}
    for disk in session.inventory():
        for device in _nodes(session.places.sysfs, disk):
            if device in own or str(device) in mounted:
                continue
            with suppress(DiskError):
                there = disks.identify(device)
                if there is not None and there.fstype in WRITABLE:
                    yield Target(device, there)


def _nodes(sysfs: Path, disk: disks.Disk) -> list[Path]:
    """Return a disk's partitions as the kernel sees them, whatever its table is, else the disk itself."""
    if disk.partitions:
        return [part.device for part in disk.partitions]
    folder = sysfs / "block" / disk.device.name
    parts = sorted(one.name for one in folder.iterdir() if (one / "partition").exists()) if folder.is_dir() else []
    return [disk.device.parent / name for name in parts] or [disk.device]


def _copy(session: Session, archive: Path, target: Target) -> str:
    at, alive = session.places.scratch / "offload", session.log.alive
    name = f"reroot-precious-{archive.name}"
    inert = ("nosuid", "nodev", "noexec")
    with disks.mounted(target.device, at, target.there.fstype, "rw", *inert):
        disks.require_space(at, _bytes(archive) + (1 << 20), "the copy")
        try:
            (at / name).mkdir(mode=0o700)
        except FileExistsError as error:
            raise DiskError(f"{target.device} has a {name} already; take that copy, or move it away") from error
        written = {one.name: _copy_file(one, at / name / one.name, alive) for one in _files(archive)}
        disks.sync_filesystem(at)
    # mounted anew, so that what is compared comes from the disk
    with disks.mounted(target.device, at, target.there.fstype, *quietly(target.there.fstype), *inert):
        for file, digest in written.items():
            if _digest(at / name / file, alive) != digest:
                raise CorruptError(f"{name}/{file} came back from {target.device} with other bytes; use another disk")
    return name


def _files(archive: Path) -> list[Path]:
    return sorted(one for one in archive.iterdir() if _is_file(one))


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _bytes(archive: Path) -> int:
    return sum(one.lstat().st_size for one in _files(archive))


def _pieces(path: Path, alive: Callable[[], None]) -> Iterator[bytes]:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0) as stream:
        while piece := stream.read(PIECE):
            alive()
            yield piece


def _copy_file(source: Path, goal: Path, alive: Callable[[], None]) -> bytes:
    digest = sha256()
    with ExitStack() as stack:
        handle = os.open(goal, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        stream = stack.enter_context(os.fdopen(handle, "wb"))
        for piece in _pieces(source, alive):
            digest.update(piece)
            stream.write(piece)
    return digest.digest()


def _digest(path: Path, alive: Callable[[], None]) -> bytes:
    digest = sha256()
    for piece in _pieces(path, alive):
        digest.update(piece)
    return digest.digest()
