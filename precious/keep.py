"""Keeping what is precious (I/O): from the old root into an archive, and the archive read back.

The archive is a layer as a release has it: one ordinary tar.zst with an index and a BLAKE3 digest per file and
frame, so the code that reads, verifies and restores releases does the same here, and so can `zstd -d | tar -x`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import zstandard
from blake3 import blake3

from imaging.capture import write_layer
from imaging.entry import ROOT, Entry, EntryType, Progress, parent, printable
from imaging.index import Index, decode
from imaging.scan import TreeReader, scan
from plumbing import durable
from plumbing.errors import CorruptError, DiskError, RefusedError
from precious import unlisted
from precious.policy import Policy

ARCHIVE, SUMMARY = "precious.tar.zst", "kept.json"
MARGIN_BYTES = 16 << 20
"""Room that must stay free on the archive's filesystem beyond what is archived."""


@dataclass(frozen=True)
class Kept:
    """An archive: where it lies, what is in it, which of it nobody listed, and what was left out and why."""

    folder: Path
    index: Index
    unlisted: frozenset[bytes]
    notes: tuple[str, ...]

    @property
    def archive(self) -> Path:
        """The archive's file."""
        return self.folder / ARCHIVE

    @property
    def returning_bytes(self) -> int:
        """What putting back writes to the new root, in bytes; unlisted files stay in the archive."""
        return sum(entry.size - sum(hole[1] for hole in entry.holes) for entry in self.index.entries
                   if entry.is_file and entry.path not in self.unlisted)

    def to_json(self) -> dict[str, object]:
        """Return counts and names for reports; sizes in bytes."""
        files = [entry for entry in self.index.entries if entry.is_file]
        return {"files": len(files), "bytes": sum(entry.size for entry in files),
                "archive_bytes": self.archive.stat().st_size,
                "unlisted": [printable(path) for path in sorted(self.unlisted)], "notes": list(self.notes)}


def select(root: Path, policy: Policy, note: Callable[[str], None]) -> tuple[list[Entry], frozenset[bytes]]:
    """Return the entries to keep in tree order, with the folders that lead to them, and the unlisted paths.

    A hard link whose first name is not kept becomes a file of its own.
    """
    extra, left = [], policy.unlisted.max_bytes
    for path, size in unlisted.find(root, policy):
        left -= size
        if left >= 0:
            extra.append(path)
        else:
            note(f"/{printable(path)} is not listed and there is no room left for unlisted files; not kept")
    wanted = frozenset(extra)
    ways = {way for path in wanted for way in _folders(path)}
    found = list(scan(root, one_file_system=True, note=note,
                      descend=lambda folder: folder in ways or policy.may_hold(folder)))
    chosen = {entry.path for entry in found if entry.path in wanted or policy.rule_for(entry.path) is not None}
    needed = chosen | {way for path in chosen for way in _folders(path)} | {ROOT}
    return list(_whole(root, (entry for entry in found if entry.path in needed), chosen)), wanted


def _folders(path: bytes) -> Iterator[bytes]:
    while (path := parent(path)) != ROOT:
        yield path


def _whole(root: Path, entries: Iterator[Entry], chosen: set[bytes]) -> Iterator[Entry]:
    firsts: dict[bytes, bytes] = {}
    with TreeReader(root) as reader:
        for entry in entries:
            if entry.type is not EntryType.LINK or entry.link in chosen:
                yield entry
            elif entry.link in firsts:
                yield replace(entry, link=firsts[entry.link])
            else:
                firsts[entry.link] = entry.path
                yield reader.again(entry)


def collect(root: Path, policy: Policy, into: Path, *, progress: Progress | None = None) -> Kept:
    """Archive what `policy` keeps of `root` below the folder `into`, durably; an older attempt is replaced.

    Raises DiskError when there is no room (saying how much is missing) or a file cannot be read, and
    FileChangedError for a file that never holds still. Nothing is changed below `root`.
    """
    notes: list[str] = []
    entries, extra = select(root, policy, notes.append)
    durable.make_folder(into, 0o700)
    (into / SUMMARY).unlink(missing_ok=True)
    need = sum(entry.size for entry in entries) + 1024 * len(entries) + MARGIN_BYTES
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
               "unlisted": sorted(os.fsdecode(path) for path in extra), "notes": notes}
    durable.write_file(into / SUMMARY, json.dumps(summary).encode(), 0o600)
    return load(into)


def load(folder: Path) -> Kept:
    """Open an archive that `collect` finished; raises CorruptError when it is not whole."""
    try:
        summary = json.loads((folder / SUMMARY).read_bytes())
        offset, length, digest = summary["index"]
        with (folder / ARCHIVE).open("rb") as stream:
            payload = os.pread(stream.fileno(), int(length), int(offset))
        notes, extra = tuple(map(str, summary["notes"])), frozenset(map(os.fsencode, summary["unlisted"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{folder} holds no finished archive of precious files ({error})") from error
    if blake3(payload).hexdigest() != digest:
        raise CorruptError(f"{folder / ARCHIVE} does not hold the index that was written; do not wipe anything")
    return Kept(folder, decode(payload), extra, notes)


def frames(kept: Kept) -> Iterator[bytes]:
    """Yield the archive's frames unpacked and in order, each read from the disk and held against its digest."""
    with kept.archive.open("rb") as stream:
        # What was written must come back from the disk, not from memory.
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        unpacker = zstandard.ZstdDecompressor()
        for number, frame in enumerate(kept.index.frames):
            try:
                data = os.pread(stream.fileno(), frame.length, frame.offset)
            except OSError as error:
                raise DiskError(f"{kept.archive} cannot be read back ({error.strerror})") from error
            if blake3(data).digest() != frame.digest:
                raise CorruptError(f"{kept.archive} came back from the disk with other bytes in frame {number}; the "
                                   "disk is not to be trusted")
            yield unpacker.decompress(data, max_output_size=frame.raw_length)


def contents(kept: Kept) -> Iterator[tuple[Entry, bytes]]:
    """Yield (entry, piece) for the files of the archive, in order, an entry as often as it has extents."""
    files = [(entry, extent) for entry in kept.index.entries for extent in entry.extents]
    position = 0
    for number, raw in enumerate(frames(kept)):
        while position < len(files) and files[position][1].frame == number:
            entry, extent = files[position]
            yield entry, raw[extent.offset:extent.offset + extent.length]
            position += 1


def verify(folder: Path) -> Kept:
    """Read the whole archive back from the disk and compare every file's digest; raises CorruptError or DiskError."""
    kept = load(folder)
    hashers = {entry.path: blake3() for entry in kept.index.entries if entry.is_file}
    for entry, piece in contents(kept):
        hashers[entry.path].update(piece)
    for entry in kept.index.entries:
        if entry.is_file and hashers[entry.path].digest() != entry.digest:
            raise CorruptError(f"/{printable(entry.path)} was not archived as it was read; nothing was wiped")
    return kept


def read_files(kept: Kept, paths: frozenset[bytes]) -> dict[bytes, bytes]:
    """Return the contents of some small files of the archive; those it does not hold are left out."""
    found = {entry.path: b"" for entry in kept.index.entries if entry.is_file and entry.path in paths}
    if found:
        for entry, piece in contents(kept):
            if entry.path in found:
                found[entry.path] += piece
    return found


def refuse_stops(kept: Kept, policy: Policy, image: frozenset[bytes]) -> None:
    """Raise RefusedError when a rule says `stop` and the new image has that path too; to be asked before the wipe."""
    for entry in kept.index.entries:
        rule = None if entry.is_directory else policy.rule_for(entry.path)
        if rule is not None and rule.when == "stop" and entry.path in image:
            raise RefusedError(f"/{printable(entry.path)} is in the new image too, and {rule.origin} says "
                               "to stop then; change the rule or the image")
