"""Keeping precious files and putting them back, against GNU tar, in turn, on one tree. I/O.

reroot packs, digests, reads back from the disk, and reads back again what it put in place; tar does none of that, so
these ratios say what being sure costs.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import peers
from bench.table import Section, timed
from imaging.index import Index
from imaging.scan import scan
from plumbing.run import run
from precious import keep
from precious.policy import load
from precious.putback import put_back

RUNS = 3
FILES, BYTES = 50_000, 1 << 30
POLICY = load([("bench", '[[rule]]\nkeep = ["/home/**"]')])


def measure(files: int = FILES, size: int = BYTES) -> Section:
    """Run everything RUNS times in turn, after one round that only warms up; `size` in bytes."""
    with tempfile.TemporaryDirectory(prefix="reroot-bench-") as folder:
        return _Bench(Path(folder), files, size).run()


class _Bench:
    def __init__(self, folder: Path, files: int, size: int) -> None:
        self.tree, self.new, self.kept, self.tar = (folder / name for name in ("old", "new", "kept", "home.tar"))
        self.files, self.size = files, size

    def run(self) -> Section:
        """Make a tree and measure."""
        grow(self.tree, self.files, self.size)
        work: dict[str, Callable[[], None]] = {
            "keep and read back": self._keep, "tar -c": self._tar, "put back and read back": self._put_back,
            "tar -x": self._untar}
        times: dict[str, list[float]] = {name: [] for name in work}
        for number in range(RUNS + 1):
            for name, act in work.items():
                peers.evict(self.tree)
                began = time.perf_counter()
                act()
                if number:
                    times[name].append(time.perf_counter() - began)
        rows = [timed("keep, and read the archive back", "tar -c, written out", times["keep and read back"],
                      times["tar -c"], 3.0),
                timed("put back, and read everything back", "tar -x, written out", times["put back and read back"],
                      times["tar -x"], 3.0)]
        about = (f"{self.files:,} files, {self.size / 1e6:.0f} MB, half text and half random, with owners and "
                 f"attributes; {RUNS} rounds. reroot packs with zstd, and reads twice what tar reads never.")
        return Section("Keeping", about, rows, {name: statistics.median(found) for name, found in times.items()})

    def _keep(self) -> None:
        keep.collect(self.tree, POLICY, peers.fresh(self.kept))
        keep.verify(self.kept)
        peers.write_out(self.kept)

    def _put_back(self) -> None:
        put_back(self.kept, peers.fresh(self.new), POLICY, Index(tuple(scan(self.new)), ()))
        peers.write_out(self.new)

    def _tar(self) -> None:
        run([*peers.TAR, "-cf", self.tar, "-C", self.tree, "."], timeout_s=None)
        peers.write_out(self.tar.parent)

    def _untar(self) -> None:
        run([*peers.TAR, "-xpf", self.tar, "-C", peers.fresh(self.new)], timeout_s=None)
        peers.write_out(self.new)


def grow(tree: Path, files: int, size: int) -> None:
    """Fill a home folder: many small files and a few large ones, the same on every run."""
    dice = random.Random(8)
    words = b"".join(b"%d words of a text\n" % number for number in range(3000))
    weights = [dice.paretovariate(1.2) for _ in range(files)]
    scale = size / sum(weights)
    for number, weight in enumerate(weights):
        place = tree / f"home/ada/{number % 97}/{number // 97 % 31}"
        if number < 97 * 31:
            place.mkdir(parents=True, exist_ok=True)
        length = int(weight * scale)
        with (place / f"{number}").open("wb") as stream:
            for start in range(0, length, len(words)):
                piece = min(len(words), length - start)
                stream.write(dice.randbytes(piece) if number % 2 else words[:piece])
            os.fchown(stream.fileno(), 1000 + number % 5, 1000)
            if number % 10 == 0:
                os.setxattr(stream.fileno(), "user.label", b"%d" % number)
    peers.write_out(tree)
