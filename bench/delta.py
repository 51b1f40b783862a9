"""`python -m bench.delta`: a delta between the pair of roots against ostree's, and applying it against `cp -a`. I/O.

Needs root, ostree and, the first time, mmdebstrap. ostree makes its delta once: it takes minutes.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.table import Row, Section, sized, timed
from imaging import delta_apply, delta_build
from imaging.audit import load_index
from imaging.capture import capture
from imaging.delta_manifest import DeltaManifest
from imaging.fetch import FrameFetcher
from imaging.file_contents import TreeContents
from imaging.release import Release
from imaging.sources import FileSource
from imaging.store import Store
from lab import roots
from plumbing.run import run

ROUNDS = 5


def _timed(work: Callable[[], object]) -> float:
    os.sync()
    began = time.perf_counter()
    work()
    os.sync()
    return time.perf_counter() - began


class Deltas:
    """The pair and a scratch folder; each method is one thing that is timed."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.target = scratch, scratch / "target"
        self.trees = roots.root_tree(roots.OLD_ROOT), roots.root_tree(roots.NEW_ROOT)
        self.store = Store(scratch / "store")
        self.old, self.new = (
            Release.parse(capture(tree, self.store, name="pair", version=version, arch="amd64"))
            for tree, version in zip(self.trees, ("1", "2"), strict=True))
        self.manifest: DeltaManifest | None = None

    def make(self) -> None:
        """Make reroot's delta."""
        self.manifest = DeltaManifest.parse(delta_build.build(self.store, self.old, self.new))

    def ostree(self) -> int:
        """Make ostree's static delta and return its length in bytes."""
        repository = self.scratch / "ostree"
        run(["ostree", f"--repo={repository}", "init", "--mode=bare-user"])
        for tree, branch in zip(self.trees, ("old", "new"), strict=True):
            copy = self.scratch / "copy"
            run(["cp", "-a", tree, copy], timeout_s=None)
            shutil.rmtree(copy / "dev")
            run(["ostree", f"--repo={repository}", "commit", "-b", branch, f"--tree=dir={copy}"], timeout_s=None)
            shutil.rmtree(copy)
        run(["ostree", f"--repo={repository}", "static-delta", "generate", "--from=old", "--to=new"], timeout_s=None)
        return sum(path.stat().st_size for path in (repository / "deltas").rglob("*") if path.is_file())

    def fresh(self) -> None:
        """Empty the target."""
        shutil.rmtree(self.target, ignore_errors=True)
        self.target.mkdir()

    def copy(self) -> None:
        """Copy the old tree."""
        run(["cp", "-a", "--reflink=never", f"{self.trees[0]}/.", self.target], timeout_s=None)

    def apply(self) -> None:
        """Make the new tree out of the old tree and the delta."""
        assert self.manifest is not None
        blob = FileSource(self.store.blob_path(self.manifest.blob_digest))
        full = FileSource(self.store.blob_path(self.new.layer_digest))
        old = load_index(self.store, self.old)
        packed = blob.read(self.manifest.head_offset, self.manifest.head_length)
        head = self.manifest.read_head(packed, self.old, self.new)
        frames, contents = FrameFetcher([blob]), TreeContents(self.trees[0], old)
        new = delta_apply.new_index(head, old, frames)
        _, taken = delta_apply.apply(head, old, new, self.target, contents=contents, frames=frames,
                                     full=FrameFetcher([full]))
        contents.close()
        blob.close()
        full.close()
        assert not taken.missed, taken.missed


def measure() -> Section:
    """Make both deltas once, and apply ours and copy the tree in turn."""
    with tempfile.TemporaryDirectory(prefix="reroot-bench-") as folder:
        work = Deltas(Path(folder))
        times = {"making, reroot": _timed(work.make)}
        assert work.manifest is not None
        ours, theirs = work.manifest.blob_size, 0

        def ostree() -> None:
            nonlocal theirs
            theirs = work.ostree()

        times["making, ostree"] = _timed(ostree)
        applied, copied = list[float](), list[float]()
        for number in range(ROUNDS + 1):
            work.fresh()
            copy = _timed(work.copy)
            work.fresh()
            apply = _timed(work.apply)
            if number:
                applied.append(apply)
                copied.append(copy)
        times |= {"applying": statistics.median(applied), "cp -a": statistics.median(copied)}
        about = f"""The same two roots. A delta is made once by each; applying it, every file compared with the
new index, takes turns with `cp -a` of the old tree, {ROUNDS} rounds."""
        making = times["making, reroot"]
        return Section("Deltas", about, (
            sized("old to new", "ostree static delta", ours, theirs, 0.6),
            Row("making it", "90 s", making, 90, "s", making / 90, 1.0),
            timed("applying it", "cp -a", applied, copied, 3.0),
        ), times, {"reroot": ours, "ostree": theirs})


if __name__ == "__main__":
    print(measure().text())
