"""A process that restores one layer and prints the most memory it had resident, in bytes. I/O.

    python -m bench.restoring MANIFEST LAYER TARGET
"""

from __future__ import annotations

import sys
from pathlib import Path

from imaging.fetch import FrameFetcher
from imaging.release import Release
from imaging.restore import restore
from imaging.sources import FileSource


def main(manifest: Path, layer: Path, target: Path) -> None:
    """Restore with two workers, as recovery does."""
    release, source = Release.parse(manifest.read_bytes()), FileSource(layer)
    index = release.read_index(source.read(release.index_offset, release.index_length))
    restore(index, FrameFetcher([source]), target, workers=2, on_frame=lambda _number: None)
    print(peak())


def peak() -> int:
    """Return the most memory this process had resident, in bytes; getrusage counts its parent's, from before exec."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) << 10


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
