"""The loss report of a host with half a million files: how long it takes, and how much memory. I/O."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import zstandard
from blake3 import blake3

from bench.table import Row, Section
from imaging.entry import Extent
from imaging.index import Index, to_columns
from imaging.scan import scan
from precious import policy

FILES, FOLDERS = 500_000, 25_000
FILE_BYTES = 256
ADDED, CHANGED = 5_000, 500
LIMIT_S, LIMIT_MIB = 60.0, 400
_WALK = """import sys
from precious import losswalk
losswalk.NICE = 0  # a time at the end of everybody's queue would be the others'
code = losswalk.main()
sys.stderr.write(open("/proc/self/status").read())
sys.exit(code)
"""


@dataclass(frozen=True)
class Walked:
    """One walk: wall and processor seconds, the most memory it had resident in MiB, and the report."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    report: dict[str, object]


def measure() -> Section:
    """Walk one tree as the agent does, in a process of its own, against its release, and with nothing but times off."""
    with tempfile.TemporaryDirectory(prefix="reroot-bench-", dir=os.environ.get("REROOT_BENCH")) as folder:
        root, index = Path(folder, "root"), Path(folder, "index.zst")
        _tree(root)
        _index(root, index)
        since_s = time.time() + 1
        same = walk(root, index, since_s)
        _differ(root)
        differs = walk(root, index, since_s)
        reads = walk(root, index, 0.0)
        packages = walk(root, None, 0.0)
    walks = {"as installed": same, f"{ADDED} files added, {CHANGED} changed": differs, "every file read": reads,
             "everything is new": packages}
    times = {f"{name}, {kind}": value for name, one in walks.items() for kind, value in (
        ("wall", one.wall_s), ("processor", one.cpu_s))}
    peak = max(one.peak_mib for one in walks.values())
    about = f"""Input: {FILES} files of {FILE_BYTES} bytes in {FOLDERS} folders, compared with the index of a release
that has them all, or with a package database that has none. A walk is one process with one thread; the table has its
processor time, user and system, without the niceness that it has on a host. Memory is VmHWM, the most of the walks.
"Every file read": as on a host whose inodes are all younger than its release."""
    return Section("Loss report", about, (
        *(Row(f"look through, {name}", "the limit", one.cpu_s, LIMIT_S, "s", one.cpu_s / LIMIT_S, 1.0)
          for name, one in walks.items()),
        Row("peak of memory", "the limit", peak, LIMIT_MIB, "MiB", peak / LIMIT_MIB, 1.0)), times)


def walk(root: Path, index: Path | None, since_s: float) -> Walked:
    """Run the walk as a program and return what it took."""
    job = {"root": str(root), "policy": policy.load([policy.shipped()]).to_json(), "baseline": "bench",
           "index": None if index is None else str(index), "since_s": since_s}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _WALK], input=json.dumps(job).encode(), capture_output=True,
                          check=True)
    wall_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = re.search(rb"VmHWM:\s*(\d+) kB", done.stderr)
    assert peak is not None
    return Walked(wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, int(peak[1]) / 1024,
                  json.loads(done.stdout.splitlines()[-1])["report"])


def _tree(root: Path) -> None:
    for number in range(FOLDERS):
        folder = root / f"usr/share/some-package-{number % 500}/a-folder-{number}"
        folder.mkdir(parents=True)
        for file in range(FILES // FOLDERS):
            (folder / f"a-file-of-some-length-{file}.txt").write_bytes(
                (b"%d/%d " % (number, file) * 64)[:FILE_BYTES])
    info = root / "var/lib/dpkg/info"
    info.mkdir(parents=True)
    (info / "some.list").write_text("/.\n/usr\n/usr/share\n")


def _index(root: Path, into: Path) -> None:
    """Write the index that a release of the tree has, all in one frame: where contents lie is not looked at here."""
    entries, offset = [], 0
    for entry in scan(root):
        if not entry.is_file:
            entries.append(entry)
            continue
        content = (root / os.fsdecode(entry.path)).read_bytes()
        entries.append(replace(entry, digest=blake3(content).digest(), extents=(Extent(0, offset, entry.size),)))
        offset += entry.size
    text = json.dumps(to_columns(Index(tuple(entries), ())), separators=(",", ":"))
    into.write_bytes(zstandard.ZstdCompressor(level=3).compress(text.encode("ascii")))


def _differ(root: Path) -> None:
    for number in range(ADDED):
        folder = root / f"var/lib/added-{number % 50}/{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}").write_bytes(b"new")
    for number in range(CHANGED):
        folder = root / f"usr/share/some-package-{number % 500}/a-folder-{number}"
        (folder / "a-file-of-some-length-0.txt").write_bytes(b"another content")
