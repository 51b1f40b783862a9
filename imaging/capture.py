"""Making a release: a tree becomes blobs and a manifest in a store. I/O.

scan → (content, digest) → tar record → frames → index → layer → config → manifest, and only then the ref. Whatever
fails before the last step leaves the store as it was.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import BinaryIO

import zstandard
from blake3 import blake3

from imaging import tarstream
from imaging.entry import Entry, EntryType, Progress, printable
from imaging.excludes import DEFAULT_EXCLUDES, Exclude
from imaging.frames import PIECE, Cutter, Layer, LayerWriter, compression, workers_for
from imaging.index import Index, encode
from imaging.release import Release, check_word, config
from imaging.reuse import Base
from imaging.scan import FileChangedError, Note, TreeReader, VanishedError, scan
from imaging.sizing import tree_bytes
from imaging.store import Store
from plumbing.digest import sha256
from plumbing.errors import UsageError

LEVEL = 3
"""The zstd level: the build then runs at the speed of reading; 19 saves about a sixth of the bytes."""
ATTEMPTS = 3
"""How often a file that changes while it is read is read."""


def capture(
    tree: Path, store: Store, *, name: str, version: str, arch: str, excludes: Sequence[Exclude] = DEFAULT_EXCLUDES,
    level: int = LEVEL, workers: int | None = None, progress: Progress | None = None, recovery: str | None = None,
    note: Note | None = None, one_file_system: bool = True, base: Base | None = None,
    on_reuse: Callable[[int, int], None] | None = None,
) -> bytes:
    """Make the release name/version/arch of `tree`, publish it in `store` and return its manifest.

    `level` is zstd's (1 to 19), `workers` the number of compressing threads (when None all cores, as far as memory
    stays bounded), `recovery` the catalogue target path of its recovery image; `note` is told of everything left out
    that no exclude asked for; `progress` counts bytes of the tar, against an estimate until the end. Frames that `base`
    has are not compressed again, and `on_reuse` is told how many there were and their bytes in the layer. The result
    does not depend on workers or the day, nor on a base that was compressed the same way. Raises DiskError when the
    tree can't be read or the store not written, FileChangedError for a file that never holds still, RefusedError when
    the ref is taken.
    """
    for value, what in ((name, "name"), (version, "version"), (arch, "architecture")):
        check_word(value, what)
    if not 1 <= level <= 19:
        raise UsageError(f"{level} is not a zstd level; use 1 to 19")
    threads = workers if workers is not None else workers_for(level, len(os.sched_getaffinity(0)))
    reused = [0, 0]

    def told(frames: int, length: int) -> None:
        reused[:] = frames, length
        if on_reuse is not None:
            on_reuse(frames, length)

    entries = scan(tree, excludes=excludes, one_file_system=one_file_system, note=note)
    report = None if progress is None else _reporter(
        progress, tree_bytes(tree, excludes=excludes, one_file_system=one_file_system))
    with store.incoming() as blob:
        index, payload, layer = write_layer(tree, entries, blob.stream, level=level, workers=threads, on_written=report,
                                            base=base, on_reuse=told, note=note or (lambda _sentence: None))
        blob.keep(f"sha256:{layer.digest}")
    if progress is not None:
        progress("capture", layer.raw_size, layer.raw_size)
    image = config(arch, layer.diff_id)
    release = _release(name, version, arch, layer, payload, len(index.entries), store.add_bytes(image), len(image),
                       recovery, _compression(level, base if reused[0] else None))
    manifest = release.manifest()
    Release.parse(manifest)  # what no host could read must not be published
    store.put_manifest(release.ref, manifest)
    return manifest


def write_layer(
    tree: Path, entries: Iterator[Entry], out: BinaryIO, *, level: int = LEVEL, workers: int = 1,
    on_written: Callable[[int], None] | None = None, base: Base | None = None,
    on_reuse: Callable[[int, int], None] | None = None, note: Note | None = None,
) -> tuple[Index, bytes, Layer]:
    """Write the layer of `entries`, as scan yields them from `tree`, into the empty file `out`.

    Returns the index, its encoded payload and what the layer is; `base` and `on_reuse` are those of `capture`. Raises
    FileChangedError for a file that never holds still and DiskError when the tree can't be read. A file that vanished
    since it was scanned is left out and `note` told of it; without `note` that is an error too.
    """
    with LayerWriter(out, level=level, workers=workers, on_written=on_written, base=base) as writer:
        found = _write_entries(tree, list(entries), writer, note)
        index = Index(found, writer.frames())
        if on_reuse is not None:
            on_reuse(*writer.reused)
        payload = encode(index)
        return index, payload, writer.finish(payload)


def _release(
    name: str, version: str, arch: str, layer: Layer, payload: bytes, entries: int, config_digest: str,
    config_size: int, recovery: str | None, compression: str | None,
) -> Release:
    return Release(
        name, version, arch, f"sha256:{layer.digest}", layer.size, layer.index_offset, len(payload),
        zstandard.frame_content_size(payload), sha256(payload), layer.raw_size, entries, config_digest, config_size,
        recovery, compression=compression,
    )


def _compression(level: int, base: Base | None) -> str | None:
    """Return what all frames were compressed with; None when those of the base were with something else."""
    ours = compression(level)
    return ours if base is None or base.release.compression == ours else None


def _write_entries(
    tree: Path, entries: list[Entry], writer: LayerWriter, note: Note | None,
) -> tuple[Entry, ...]:
    """Write every entry's record in the tar's order; returns the entries with their digests and extents."""
    cutter, links = Cutter(writer, writer.cuts), dict[bytes, list[int]]()
    for row, entry in enumerate(entries):
        if entry.type is EntryType.LINK:
            links.setdefault(entry.link, []).append(row)
    waiting = [tarstream.place(entry, row, entry.type) for row, entry in enumerate(entries)
               if entry.type is not EntryType.LINK]
    heapify(waiting)
    tries, gone = Counter[int](), set[int]()
    with TreeReader(tree) as reader:
        while waiting:
            now = heappop(waiting)
            row = now[-1]
            try:
                entries[row] = _write(entries[row], reader, cutter)
            except FileChangedError:
                tries[row] += 1
                # An emptied file stays so; it is never read and can't get here.
                try:
                    entries[row] = reader.again(entries[row])
                except VanishedError:
                    if note is None or entries[row].path in links:  # with other names it is not gone
                        raise
                    note(f"/{printable(entries[row].path)} vanished while its tree was read; it is left out")
                    gone.add(row)
                    continue
                later = tarstream.place(entries[row], row, entries[row].type)
                if tries[row] == ATTEMPTS or later < now:
                    raise
                heappush(waiting, later)
                continue
            for link in links.pop(entries[row].path, ()):  # they come after their file, wherever it came
                entries[link] = replace(entries[link], mtime_ns=entries[row].mtime_ns)
                heappush(waiting, tarstream.place(entries[link], link, entries[row].type))
    cutter.cut()
    writer.add(tarstream.END)
    return tuple(entry for row, entry in enumerate(entries) if row not in gone)


def _write(entry: Entry, reader: TreeReader, cutter: Cutter) -> Entry:
    return _write_file(entry, reader, cutter) if entry.is_file else _write_other(entry, cutter)


def _write_other(entry: Entry, cutter: Cutter) -> Entry:
    cutter.add(tarstream.header(entry), b"", b"", b"")
    return entry


def _write_file(entry: Entry, reader: TreeReader, cutter: Cutter) -> Entry:
    header, padding = tarstream.header(entry), tarstream.padding(entry.size)
    if entry.size < cutter.large:
        content = b"".join(reader.pieces(entry))
        digest = blake3(content).digest()
        return replace(entry, digest=digest, extents=cutter.add(header, content, padding, digest))
    hasher = blake3()

    def hashed() -> Iterator[bytes]:
        for piece in reader.pieces(entry, PIECE):
            hasher.update(piece)
            yield piece

    extents = cutter.add_large(entry.path, header, hashed(), padding)
    return replace(entry, digest=hasher.digest(), extents=extents)


def _reporter(progress: Progress, total: int) -> Callable[[int], None]:
    """Return what passes on how much is done; `total` is an estimate, which is never shown to be exceeded."""
    return lambda done: progress("capture", done, max(done, total))
