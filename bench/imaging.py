"""Building, restoring and reading back a release against casync, tar and zstd, b3sum, in turn, on one pair. I/O."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bench import peers
from bench.table import Row, Section, sized, timed
from imaging.capture import capture
from imaging.fetch import FrameFetcher
from imaging.index import Index
from imaging.rebuild import TreeSource, known_content
from imaging.release import Release
from imaging.restore import restore
from imaging.sources import FileSource
from imaging.store import Store
from imaging.verify import verify
from lab import roots

RUNS = 5
THREADS = 2
SLOW_LEVEL = 19


class Made:
    """A release in a store of its own, and what restoring it needs."""

    def __init__(self, tree: Path, folder: Path, level: int) -> None:
        store = Store(peers.fresh(folder))
        store.create()
        self.release = Release.parse(capture(tree, store, name="bench", version="1", arch="amd64", excludes=(),
                                             level=level, workers=THREADS))
        peers.write_out(folder)
        self.layer = store.blob_path(self.release.layer_digest)

    def index(self, source: FileSource) -> Index:
        """Read the index and check it, as a host does."""
        return self.release.read_index(source.read(self.release.index_offset, self.release.index_length))


def restore_layer(made: Made, target: Path) -> None:
    """Restore, every frame verified on the way in, and write out."""
    source = FileSource(made.layer)
    restore(made.index(source), FrameFetcher([source]), target, workers=THREADS)
    source.close()


def read_back(made: Made, target: Path) -> None:
    """Read every file back from the disk and compare it, with all its metadata."""
    source = FileSource(made.layer)
    wrong = verify(made.index(source), target, workers=THREADS)
    source.close()
    if wrong:
        raise AssertionError(str(wrong[0]))


def peak_bytes(made: Made, target: Path) -> int:
    """Return the most memory that a process of its own had resident while it restored."""
    manifest = made.layer.parent / made.release.digest.removeprefix("sha256:")
    done = subprocess.run([sys.executable, "-m", "bench.restoring", manifest, made.layer, peers.fresh(target)],
                          check=True, capture_output=True, text=True)
    return int(done.stdout)


def measure() -> Section:
    """Run everything RUNS times in turn, after one round that only warms up."""
    old, new = roots.root_tree(roots.OLD_ROOT), roots.root_tree(roots.NEW_ROOT)
    with tempfile.TemporaryDirectory(prefix="reroot-bench-") as folder:
        return _Bench(old, new, Path(folder)).run()


class _Bench:
    def __init__(self, old: Path, new: Path, scratch: Path) -> None:
        self.old, self.new, self.scratch = old, new, scratch
        self.archive, self.store, self.index = scratch / "peer.tar.zst", scratch / "chunks", scratch / "new.caidx"
        self.target = scratch / "target"
        self.made: Made | None = None

    def run(self) -> Section:
        times = self._rounds()
        made, sizes = self._made, dict[str, int]()
        sizes["reroot, level 3"], sizes["tar, zstd -3"] = made.release.layer_size, self.archive.stat().st_size
        sizes["restore, peak of memory"] = peak_bytes(made, self.target)
        sizes |= self._upgrade(made)
        sizes |= self._slow()
        about = f"""Input: the two Debian 12 roots of `lab/roots.py`, as released and with all updates; the newer has
{made.release.entries} entries and is a tar of {made.release.raw_bytes / 1e6:.0f} MB. {RUNS} rounds, {THREADS} threads.

Restore verifies every frame on the way in; `zstd -dc, tar -x` verifies nothing, casync every chunk. Read-back compares
content and metadata of every entry after the page cache was dropped; b3sum hashes contents only. From the old root a
host fetches the frames that it can't make of its own files, as casync does with that root as its seed."""
        return Section("Imaging", about, _rows(times, sizes),
                       {name: statistics.median(values) for name, values in times.items()}, sizes)

    @property
    def _made(self) -> Made:
        assert self.made is not None
        return self.made

    def _rounds(self) -> Mapping[str, list[float]]:
        def build() -> None:
            self.made = Made(self.new, self.scratch / "store", 3)

        steps: Mapping[str, Callable[[], None]] = {
            "casync make": lambda: peers.casync_make(self.new, self.store, self.index),
            "tar, zstd -3 -T2": lambda: peers.tar_zstd(self.new, self.archive, 3, THREADS),
            "reroot build": build,
            "casync extract": lambda: peers.casync_extract(self.store, self.index, self.target),
            "zstd -dc, tar -x": lambda: peers.tar_extract(self.archive, self.target),
            "reroot restore": lambda: restore_layer(self._made, self.target),
            "b3sum": lambda: peers.b3sum(self.target),
            "reroot read-back": lambda: read_back(self._made, self.target),
        }
        prepare: Mapping[str, Callable[[], object]] = {
            "reroot restore": lambda: peers.fresh(self.target), "b3sum": lambda: peers.evict(self.target),
        }
        times: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(RUNS + 1):
            for name, step in steps.items():
                prepare.get(name, lambda: None)()
                peers.write_out(self.scratch)
                begin = time.perf_counter()
                step()
                seconds = time.perf_counter() - begin
                if number:  # the first round only warms up
                    times[name].append(seconds)
        return times

    def _upgrade(self, made: Made) -> dict[str, int]:
        """Return the bytes that a host of the old root fetches for the new one: frames or chunks it does not have."""
        old = Made(self.old, self.scratch / "old", 3)
        before, after = FileSource(old.layer), FileSource(made.layer)
        known = {frame.digest for frame in old.index(before).frames}
        ours = sum(frame.length for frame in made.index(after).frames if frame.digest not in known)
        kept = known_content(self.old, made.index(after).entries)
        local = TreeSource(made.index(after), kept, 3)
        lacking_frames = sum(frame.length for number, frame in enumerate(made.index(after).frames)
                             if not local.has(number))
        before.close()
        after.close()
        had = peers.chunks(self.store)
        peers.casync_make(self.old, self.scratch / "old-chunks", self.scratch / "old.caidx")
        lacking = had.keys() - peers.chunks(self.scratch / "old-chunks").keys()
        return {"old to new, frames and index": lacking_frames + made.release.index_length,
                "old to new, by frames of the older release": ours + made.release.index_length,
                "old to new, casync's chunks and index":
                    sum(had[name] for name in lacking) + self.index.stat().st_size}

    def _slow(self) -> dict[str, int]:
        slow = Made(self.new, self.scratch / "store", SLOW_LEVEL)
        peers.tar_zstd(self.new, self.archive, SLOW_LEVEL, THREADS)
        return {f"reroot, level {SLOW_LEVEL}": slow.release.layer_size,
                f"tar, zstd -{SLOW_LEVEL}": self.archive.stat().st_size}


def _rows(times: Mapping[str, list[float]], sizes: Mapping[str, int]) -> tuple[Row, ...]:
    def against(what: str, ours: str, theirs: str, target: float) -> Row:
        return timed(what, theirs, times[ours], times[theirs], target)

    def longer(what: str, ours: str, theirs: str, target: float) -> Row:
        return sized(what, theirs, sizes[ours], sizes[theirs], target)

    speed = statistics.median(b / a for a, b in zip(times["reroot read-back"], times["b3sum"], strict=True))
    peak = sizes["restore, peak of memory"] / (1 << 20)
    return (
        against("build", "reroot build", "casync make", 0.35),
        against("build", "reroot build", "tar, zstd -3 -T2", 1.1),
        against("restore, verified, synced", "reroot restore", "zstd -dc, tar -x", 1.0),
        against("restore, verified, synced", "reroot restore", "casync extract", 0.7),
        Row("read-back, speed", "b3sum", statistics.median(times["reroot read-back"]),
            statistics.median(times["b3sum"]), "s", speed, 0.8, at_least=True),
        longer("size", "reroot, level 3", "tar, zstd -3", 1.05),
        longer("size", f"reroot, level {SLOW_LEVEL}", f"tar, zstd -{SLOW_LEVEL}", 1.05),
        longer("old to new, from the old root", "old to new, frames and index",
              "old to new, casync's chunks and index", 0.8),
        longer("old to new, from the old release", "old to new, by frames of the older release",
              "old to new, casync's chunks and index", 0.8),
        Row("restore, peak of memory", "192 MiB", peak, 192, "MiB", peak / 192, 1.0),
    )
