"""Building and restoring a release against tar and zstd, run by run in turn. I/O: a scratch folder, the lab's root."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from imaging.capture import capture
from imaging.fetch import FrameFetcher
from imaging.release import Release
from imaging.restore import restore
from imaging.sources import FileSource
from imaging.store import Store
from imaging.verify import verify
from lab import roots
from plumbing.run import run

RUNS = 5
EXCLUDED = ("./proc/*", "./sys/*", "./dev/*", "./run/*", "./tmp/*", "./var/log/*", "./var/cache/apt/archives/*")


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Imaging:
    """One root and a scratch folder; each method is one thing that is timed."""

    def __init__(self, tree: Path, scratch: Path) -> None:
        self.tree, self.scratch = tree, scratch
        self.tar, self.target = scratch / "peer.tar.zst", scratch / "target"
        self.release: Release | None = None
        self.layer = Path()

    def _fresh(self, folder: Path) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def tar_zstd(self, level: int) -> None:
        """Make the peer's archive: GNU tar into zstd on all cores."""
        exclude = [f"--exclude={pattern}" for pattern in EXCLUDED]
        run(["tar", "-C", self.tree, "--xattrs", "--acls", *exclude, f"-Izstd -{level} -T0", "-cf", self.tar, "."],
            timeout_s=None)

    def build(self, level: int) -> None:
        """Make a release into a new store."""
        store = Store(self._fresh(self.scratch / "store"))
        store.create()
        manifest = capture(self.tree, store, name="bench", version="1", arch="amd64", level=level)
        self.release = Release.parse(manifest)
        self.layer = store.blob_path(self.release.layer_digest)

    def tar_extract(self) -> None:
        """Unpack the peer's archive, unverified, and sync."""
        run(["tar", "-C", self._fresh(self.target), "--xattrs", "--acls", "-Izstd", "-xpf", self.tar], timeout_s=None)
        os.sync()

    def restore(self) -> None:
        """Restore the release, every frame verified on the way in, and sync."""
        assert self.release is not None
        source = FileSource(self.layer)
        index = self.release.read_index(source.read(self.release.index_offset, self.release.index_length))
        restore(index, FrameFetcher([source]), self._fresh(self.target))
        os.sync()
        source.close()

    def verify(self) -> None:
        """Read every restored file back from the disk and compare."""
        assert self.release is not None
        source = FileSource(self.layer)
        index = self.release.read_index(source.read(self.release.index_offset, self.release.index_length))
        wrong = verify(index, self.target)
        source.close()
        if wrong:
            raise AssertionError(str(wrong[0]))


def measure() -> Mapping[str, object]:
    """Run everything RUNS times in turn; returns medians in seconds, ratios, and sizes in bytes."""
    tree = roots.root_tree(roots.RootSpec("trixie"))
    with tempfile.TemporaryDirectory(prefix="reroot-bench-") as folder:
        work = Imaging(tree, Path(folder))
        steps: Mapping[str, Callable[[], None]] = {
            "tar | zstd -3 -T0": lambda: work.tar_zstd(3), "reroot build, level 3": lambda: work.build(3),
            "zstd -dc | tar -x, sync": work.tar_extract, "reroot restore, verified, sync": work.restore,
            "reroot read-back": work.verify,
        }
        times: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(RUNS + 1):
            for name, step in steps.items():
                seconds = _timed(step)
                if number:  # the first round only warms the caches
                    times[name].append(seconds)
        assert work.release is not None
        sizes = {"tar | zstd -3": work.tar.stat().st_size, "reroot, level 3": work.release.layer_size}
        work.tar_zstd(19)
        work.build(19)
        sizes |= {"tar | zstd -19": work.tar.stat().st_size, "reroot, level 19": work.release.layer_size}
        def ratio(ours: str, theirs: str) -> float:
            return statistics.median(a / b for a, b in zip(times[ours], times[theirs], strict=True))

        return {
            "seconds": {name: statistics.median(values) for name, values in times.items()},
            "sizes": sizes, "entries": work.release.entries, "raw_bytes": work.release.raw_bytes,
            "ratios": {"build": ratio("reroot build, level 3", "tar | zstd -3 -T0"),
                       "restore": ratio("reroot restore, verified, sync", "zstd -dc | tar -x, sync"),
                       "size, level 3": sizes["reroot, level 3"] / sizes["tar | zstd -3"],
                       "size, level 19": sizes["reroot, level 19"] / sizes["tar | zstd -19"]},
        }
