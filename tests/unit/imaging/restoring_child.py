"""A process that restores a release as recovery does, journal and all, to be killed or measured by a test.

    restoring_child.py MANIFEST TARGET JOURNAL SOURCE...     a source is a file, or the URL of a server

It says "begin" when the restore begins; at its end it says how many frames it found done and, in bytes, the most memory
it had resident.
"""

from __future__ import annotations

import sys
from pathlib import Path

from imaging import restore as restoring
from imaging.ahead import Ahead
from imaging.fetch import FrameFetcher
from imaging.release import Release
from imaging.sources import FileSource, FrameSource, HttpSource
from recovery.journal import Journal


def main(manifest: str, target: str, journal: str, *places: str) -> None:
    """Restore, noting every durable frame in the journal."""
    restoring.SYNC_BYTES = 1 << 20  # many notes, so that there is something to resume from
    release, written = Release.parse(Path(manifest).read_bytes()), Journal(Path(journal))
    sources: list[FrameSource] = [HttpSource(place, release.layer_digest) if "://" in place else FileSource(Path(place))
                                  for place in places]
    index = release.read_index(sources[0].read(release.index_offset, release.index_length))
    done = set(written.state.frames)
    print("begin", flush=True)
    missing = [index.frames[number] for number in sorted(index.filled - done)]

    def note(number: int) -> None:
        written.frames({number})

    with Ahead(FrameFetcher([tuple(sources)]), missing) as ahead:
        report = restoring.restore(index, ahead, Path(target), workers=2, done=done, on_frame=note)
    print(report.frames_reused, peak(), flush=True)


def peak() -> int:
    """Return the most memory this process had resident, in bytes; getrusage counts its parent's, from before exec."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) << 10


if __name__ == "__main__":
    main(*sys.argv[1:])
