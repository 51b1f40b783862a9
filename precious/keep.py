"""Keeping what is precious (I/O): from the old root into an archive, and the archive read back.

The archive is a layer as a release has it: one ordinary tar.zst with an index and a BLAKE3 digest per file and
frame, so the code that reads, verifies and restores releases does the same here, and so can `zstd -d | tar -x`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import zstandard
from blake3 import blake3

from imaging.capture import write_layer
from imaging.entry import Entry, Extent, Progress, printable
from imaging.footprint import Footprint, footprint
from imaging.index import Index, decode
from plumbing import durable
from plumbing.errors import CorruptError, DiskError, RefusedError
from precious.base import Base
from precious.circumstances import Circumstances, Judged
from precious.policy import Policy
from precious.returning import without
from precious.rules import LossRule
from precious.selection import select

ARCHIVE, SUMMARY, BASE = "precious.tar.zst", "kept.json", "base.json"
MARGIN_BYTES = 16 << 20
"""Room that must stay free on the archive's filesystem beyond what is archived."""


@dataclass(frozen=True)
class Kept:
    """An archive: where it lies, what is in it, which of it nobody listed, and what was left out and why.

    `known` is what the rules' conditions asked when it was kept.
    """

    folder: Path
    index: Index
    unlisted: frozenset[bytes]
    notes: tuple[str, ...]
    known: Circumstances = field(default_factory=Circumstances)

    @property
    def archive(self) -> Path:
        """The archive's file."""
        return self.folder / ARCHIVE

    @property
    def footprint(self) -> Footprint:
        """What putting back takes in the new root; unlisted files stay in the archive."""
        left = {entry.path: entry for entry in self.index.entries if entry.path in self.unlisted}
        return footprint(without((entry for entry in self.index.entries if entry.path not in left), left))

    def to_json(self) -> dict[str, object]:
        """Return counts and names for reports; sizes in bytes."""
        files = [entry for entry in self.index.entries if entry.is_file]
        return {"files": len(files), "bytes": sum(entry.size for entry in files),
                "archive_bytes": self.archive.stat().st_size,
                "unlisted": [printable(path) for path in sorted(self.unlisted)], "notes": list(self.notes)}


def collect(root: Path, policy: Policy, into: Path, *, progress: Progress | None = None) -> Kept:
    """Archive what `policy` keeps of `root` below the folder `into`, durably; an older attempt is replaced.

    Raises DiskError when there is no room (saying how much is missing) or a file cannot be read, FileChangedError for
    a file that never holds still, and RefusedError for a pattern that a link makes keep nothing. Nothing is changed
    below `root`.
    """
    notes: list[str] = []
    selection = select(root, policy, notes.append, progress)
    entries = selection.entries
    durable.make_folder(into, 0o700)
    for name in (SUMMARY, BASE):
        (into / name).unlink(missing_ok=True)
    need = _room(entries)
    room = os.statvfs(into)
    if (free := room.f_bavail * room.f_frsize) < need:
        raise DiskError(f"{into} has {free >> 20} MiB free and keeping the precious files takes {need >> 20} MiB; free "
                        f"{(need - free >> 20) + 1} MiB there or keep less")
    total = sum(entry.size for entry in entries)
    try:
        with (into / ARCHIVE).open("wb") as stream:
            os.fchmod(stream.fileno(), 0o600)
            _, payload, layer = write_layer(root, iter(entries), stream, on_written=None if progress is None else
                                            lambda done: progress("preserve", min(done, total), total))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise DiskError(f"the precious files cannot be written to {into} ({error.strerror})") from error
    summary = {"version": 1, "index": [layer.index_offset, len(payload), blake3(payload).hexdigest()],
               "unlisted": sorted(os.fsdecode(path) for path in selection.unlisted), "notes": notes}
    if selection.known != Circumstances():
        summary["known"] = selection.known.to_json()
    durable.write_file(into / SUMMARY, json.dumps(summary).encode(), 0o600)
    return load(into)


def _room(entries: Iterable[Entry]) -> int:
    """Return the bytes that an archive of `entries` may take. Holes are zeros in it, which pack to next to nothing."""
    need = MARGIN_BYTES
    for entry in entries:
        holes = sum(hole.length for hole in entry.holes)
        need += entry.size - holes + (holes >> 10) + 1024
    return need


def _from_disk(path: Path) -> BinaryIO:
    """Open a file so that what is read of it next comes from the disk: it must be there, not in memory."""
    stream = path.open("rb")
    try:
        os.fdatasync(stream.fileno())  # only clean pages can be dropped
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except BaseException:
        stream.close()
        raise
    return stream


def load(folder: Path) -> Kept:
    """Open an archive that `collect` finished, as the disk has it; raises CorruptError when it is not whole."""
    try:
        with _from_disk(folder / SUMMARY) as told, _from_disk(folder / ARCHIVE) as stream:
            summary = json.load(told)
            offset, length, digest = summary["index"]
            # of a copy that a hostile host made, too: nothing is read, or made room for, that is not there
            if not 0 <= int(offset) <= int(offset) + int(length) <= os.fstat(stream.fileno()).st_size:
                raise ValueError("its index lies outside of it")
            payload = os.pread(stream.fileno(), int(length), int(offset))
        notes, extra = tuple(map(str, summary["notes"])), frozenset(map(os.fsencode, summary["unlisted"]))
        known = Circumstances.from_json(summary.get("known", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptError(f"{folder} holds no finished archive of precious files ({error})") from error
    if blake3(payload).hexdigest() != digest:
        raise CorruptError(f"{folder / ARCHIVE} does not hold the index that was written; do not wipe anything")
    return Kept(folder, decode(payload), extra, notes, known)


def frames(kept: Kept, numbers: Iterable[int], progress: Progress | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield (number, content) of some of the archive's frames, each held against its digest, as `numbers` come.

    `progress` counts compressed bytes, of the whole archive.
    """
    done, total = 0, kept.index.layer_bytes
    unpacker = zstandard.ZstdDecompressor()
    with kept.archive.open("rb") as stream:
        for number in numbers:
            frame = kept.index.frames[number]
            try:
                data = os.pread(stream.fileno(), frame.length, frame.offset)
            except OSError as error:
                raise DiskError(f"{kept.archive} cannot be read back ({error.strerror})") from error
            if blake3(data).digest() != frame.digest:
                raise CorruptError(f"{kept.archive} came back from the disk with other bytes in frame {number}; the "
                                   "disk is not to be trusted")
            done += frame.length
            if progress is not None:
                progress("read back", done, total)
            try:
                if zstandard.frame_content_size(data) != frame.raw_length:
                    raise CorruptError(f"frame {number} of {kept.archive} has not the length that its index says")
                raw = unpacker.decompress(data, max_output_size=frame.raw_length, allow_extra_data=False)
            except zstandard.ZstdError as error:
                raise CorruptError(f"frame {number} of {kept.archive} does not unpack ({error})") from error
            yield number, raw


def _extents(entries: Iterable[Entry]) -> dict[int, list[tuple[Entry, Extent]]]:
    """Return frame number -> the runs of content that lie in it, in order."""
    found: dict[int, list[tuple[Entry, Extent]]] = {}
    for entry in entries:
        for extent in entry.extents:
            found.setdefault(extent.frame, []).append((entry, extent))
    return found


def verify(folder: Path, progress: Progress | None = None) -> Kept:
    """Read the whole archive back from the disk and compare every file's digest; raises CorruptError or DiskError."""
    kept = load(folder)
    hashers = {entry.path: blake3() for entry in kept.index.entries if entry.is_file}
    runs = _extents(kept.index.entries)
    for number, raw in frames(kept, range(len(kept.index.frames)), progress):
        for entry, extent in runs.get(number, ()):
            hashers[entry.path].update(raw[extent.offset:extent.offset + extent.length])
    for entry in kept.index.entries:
        if entry.is_file and hashers[entry.path].digest() != entry.digest:
            raise CorruptError(f"/{printable(entry.path)} was not archived as it was read; nothing was wiped")
    return kept


def read_files(kept: Kept, paths: frozenset[bytes], progress: Progress | None = None) -> dict[bytes, bytes]:
    """Return the contents of some small files of the archive; those it does not hold are left out.

    Only the frames that hold them are read.
    """
    files = [entry for entry in kept.index.entries if entry.is_file and entry.path in paths]
    found = {entry.path: b"" for entry in files}
    runs = _extents(files)
    for number, raw in frames(kept, sorted(runs), progress):
        for entry, extent in runs[number]:
            found[entry.path] += raw[extent.offset:extent.offset + extent.length]
    return found


def write_base(folder: Path, base: Base) -> None:
    """Put beside an archive, durably, what the old release had."""
    durable.write_file(folder / BASE, base.to_json(), 0o600)


def read_base(folder: Path) -> Base:
    """Return what `write_base` put beside an archive; what is not whole is as if nothing were known, and noted."""
    try:
        return Base.from_json((folder / BASE).read_bytes())
    except FileNotFoundError:
        return Base()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        return Base(notes=(f"what the old release had is not readable any more in {folder / BASE}; merging knows the "
                           "host and the image alone",))


def refuse_stops(kept: Kept, policy: Policy, image: frozenset[bytes]) -> None:
    """Raise RefusedError when a rule says `stop` and the new image has that path too; to be asked before the wipe."""
    judged = Judged(policy, kept.index.entries, kept.known)
    for entry in kept.index.entries:
        rule = None if entry.is_directory else judged.rule_for(entry.path)
        if rule is not None and rule.when == "stop" and entry.path in image:
            raise RefusedError(f"/{printable(entry.path)} is in the new image too, and {rule.where} says "
                               "to stop then; change the rule or the image")


def refuse_losses(kept: Kept, policy: Policy) -> None:
    """Raise RefusedError when the policy refuses losses and files were found that no rule keeps; before the wipe.

    What `ask` asks was answered before the host was told to reboot: nobody can answer here, and a host must not hang.
    """
    if policy.loss.rule is LossRule.REFUSE and kept.unlisted:
        first = printable(min(kept.unlisted))
        raise RefusedError(f"{len(kept.unlisted)} files would not come back, the first is /{first}, and [loss] rule = "
                           "\"refuse\"; nothing was wiped: keep or ignore them in the policy")
