"""The root partition of a raw or qcow2 disk image, or of a disk, as a source. I/O: reads it, mounts it read-only.

raw: table (sfdisk) → what each partition holds (blkid) → which is the root (`partitions`) → mount -o ro,loop,offset.
qcow2 is made a sparse raw file in a scratch folder first (qemu-img). The mount is held by an open descriptor alone and
taken out of the tree of mounts at once: whatever ends this process ends the mount and its loop device too.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from imaging.root_sources.architecture import architecture
from imaging.root_sources.partitions import MOUNT_OPTIONS, Area, choose_area, needs_replay, parse_probe, parse_table
from imaging.root_sources.scratch import need_root, scratch_folder
from imaging.root_sources.source import RootTree
from imaging.scan import Note
from plumbing.errors import CommandError, DiskError, UsageError
from plumbing.run import Completed, run

QCOW2 = b"QFI\xfb"
_QCOW2_HEADER = struct.Struct(">4sIQIIQI")
_QCOW2_DATA_FILE = 4


@dataclass(frozen=True)
class DiskSource:
    """Partition `partition` (the only root when None) of the image at `path`."""

    path: Path
    qcow2: bool = False
    partition: int | None = None
    arch: str | None = None
    scratch: Path | None = None
    note: Note | None = None

    @contextmanager
    def opened(self) -> Iterator[RootTree]:
        """Mount the partition read-only and give its tree; needs root. See RootSource."""
        need_root(f"mounting {self.path.name}")
        with scratch_folder(self.scratch) as folder:
            image = _converted(self.path, folder / "disk.raw") if self.qcow2 else self.path.absolute()
            area = choose_area(_areas(image), self.partition, self.path.name)
            if self.note is not None and needs_replay(_read_at(image, area.offset + 1024, 1024)):
                self.note(f"the filesystem in {self.path.name} was not unmounted cleanly and is taken as it is, "
                          "without what its journal holds; shut the machine down, or run fsck on a copy")
            with _mounted(image, area, folder / "root") as tree:
                try:
                    yield RootTree(tree, self.arch or architecture(tree))
                except UsageError as error:  # the descriptor's path means nothing to anybody
                    raise UsageError(error.sentence.replace(str(tree), self.path.name)) from error


def check_qcow2(head: bytes, name: str) -> None:
    """Raise UsageError for a qcow2 image that needs other files or a key. `head` is its first 104 bytes or more.

    A backing file is a path on this machine that whoever made the image chose. QEMU, docs/interop/qcow2.txt.
    """
    if len(head) < 104 or not head.startswith(QCOW2):
        raise UsageError(f"{name} is cut short; copy it again")
    _, version, backing, _, _, _, encrypted = _QCOW2_HEADER.unpack_from(head)
    (features,) = struct.unpack_from(">Q", head, 72) if version >= 3 else (0,)
    if backing or features & _QCOW2_DATA_FILE:
        raise UsageError(f"{name} is only part of an image and names another file; make it whole with "
                         f"`qemu-img convert -O qcow2 {name} whole.qcow2`")
    if encrypted:
        raise UsageError(f"{name} is encrypted; decrypt it with qemu-img convert")


def areas_of(image: Path) -> list[Area]:
    """Return the partitions of a raw image with what they hold, or the whole of it when it has no table."""
    return _areas(image.absolute())


def _areas(image: Path) -> list[Area]:
    table = _ask(["sfdisk", "--json", image])
    if table.status == 0:
        areas = parse_table(table.text)
    elif b"recognized partition table" in table.stderr:
        areas = [Area(0, "", 0, _size(image))]
    else:
        raise CommandError(f"sfdisk cannot read {image}: {table.stderr.decode('utf-8', 'replace').strip()}")
    found = []
    for area in areas:
        # 2: nothing found, 8: several things found, which is as good as nothing
        probe = _ask(["blkid", "-p", "-o", "export", "-O", str(area.offset), "-S", str(area.size), image])
        kind, label = parse_probe(probe.text) if probe.status == 0 else ("", "")
        found.append(replace(area, filesystem=kind, label=label))
    return found


def _ask(argv: list[str | Path]) -> Completed:
    return run(argv, check=False, env={**os.environ, "LC_ALL": "C"})


def _size(image: Path) -> int:
    with image.open("rb") as stream:
        return stream.seek(0, os.SEEK_END)  # of a block device too, where st_size is 0


def _read_at(image: Path, offset: int, length: int) -> bytes:
    try:
        with image.open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)
    except OSError as error:
        raise DiskError(f"{image} cannot be read ({error.strerror}); check the disk it is on") from error


def _converted(image: Path, raw: Path) -> Path:
    check_qcow2(_read_at(image, 0, 512), image.name)
    try:
        run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image.absolute(), raw], timeout_s=None)
    except CommandError as error:
        if "not installed" in error.sentence:
            raise CommandError("qemu-img reads qcow2 images and is not installed; install qemu-utils") from error
        raise
    return raw


@contextmanager
def _mounted(image: Path, area: Area, point: Path) -> Iterator[Path]:
    point.mkdir()
    options = ("ro", "nodev", "nosuid", "noexec", "loop", f"offset={area.offset}", f"sizelimit={area.size}",
               *MOUNT_OPTIONS[area.filesystem])
    run(["mount", "-t", area.filesystem, "-o", ",".join(options), "--", image, point])
    try:
        handle = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        run(["umount", "-l", point])
    try:
        yield Path(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)
