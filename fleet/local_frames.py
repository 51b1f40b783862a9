"""Frames of a release that this host makes itself: of its own files, and of a delta to them (I/O).

In: a release's index, the stage, which frames it lacks. Out: the frames that came out as the index says, in the stage.
Nothing here has to work: what can't be made, or comes out otherwise, is fetched. docs/protocols/release.md, "Fetching".
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plumbing import durable
from plumbing.errors import CorruptError, NotFoundError, RerootError
from recovery import disks, servers
from recovery.log import size

if TYPE_CHECKING:
    from imaging.delta_manifest import DeltaManifest
    from imaging.index import Index
    from imaging.rebuild import There
    from imaging.release import Release
    from imaging.sources import FrameSource, StageWriter
    from imaging.trusted import TrustedCatalogue

Sources = Callable[[str], Sequence[tuple["FrameSource", ...]]]
"""Gives for a blob's digest the places that may have it, in groups, nearest first."""
MOST_WRONG = 8
"""After so many frames that come out otherwise no more are made: that is no file that changed, but how all are made."""
SLACK_BYTES = 64 << 20
"""Room to leave on the stage's filesystem beside what a delta makes there."""


class LocalFrames:
    """What the tree `root` gives of a release that is being staged in `stage`."""

    def __init__(self, root: Path, release: Release, index: Index, stage: StageWriter,
                 say: Callable[[str], None]) -> None:
        from imaging.frames import level_of

        self._root, self._release, self._index, self._stage, self._say = root, release, index, stage, say
        self._level = level_of(release.compression)
        self._found: dict[bytes, There] = {}

    def of_files(self, todo: list[int]) -> list[int]:
        """Stage the frames that the files below the root are enough for; returns the numbers of the others."""
        return self._staged(todo, self._of_files(todo)) if self._level is not None and todo else todo

    def of_delta(self, todo: list[int], believed: TrustedCatalogue, installed: tuple[str, str], sources: Sources,
                 scratch: Path, allowed: Callable[[], None]) -> list[int]:
        """Stage frames with the help of a delta from the release `installed` (its ref and digest), if there is one.

        Nothing is done when it is longer than the frames in `todo`. `scratch` is a folder to be made and removed;
        `allowed` raises when nothing may be fetched any more.
        """
        if self._level is None or not todo or not installed[0] or installed[0] == self._release.ref:
            return todo
        try:
            return self._staged(todo, self._of_delta(todo, believed, installed, sources, scratch, allowed))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _staged(self, todo: list[int], frames: Iterator[tuple[int, bytes]]) -> list[int]:
        """Stage frames as they are made, by their numbers; returns the numbers of the others.

        Whatever goes wrong with making them ends it. What goes wrong with the stage is raised: what is fetched goes
        there too.
        """
        left = dict.fromkeys(todo)
        while True:
            try:
                number, data = next(frames)
            except StopIteration:
                break
            except Exception as error:
                why = error.sentence if isinstance(error, RerootError) else f"{type(error).__name__}: {error}"
                self._say(f"no more frames are made here, the others are fetched: {why}")
                break
            self._stage.put(self._index.frames[number].offset, data, number)
            del left[number]
        return list(left)

    def _of_files(self, todo: list[int]) -> Iterator[tuple[int, bytes]]:
        from imaging.rebuild import known_content

        wanted = set(todo)
        self._found = known_content(self._root, [entry for entry in self._index.entries
                                                 if any(extent.frame in wanted for extent in entry.extents)])
        yield from self._made(todo, "this host's own files")

    def _of_delta(self, todo: list[int], believed: TrustedCatalogue, installed: tuple[str, str], sources: Sources,
                  scratch: Path, allowed: Callable[[], None]) -> Iterator[tuple[int, bytes]]:
        there = self._listed(believed, installed)
        if there is None or there[1].blob_size >= sum(self._index.frames[number].length for number in todo):
            return
        self._say(f"{size(there[1].blob_size)} of a delta from {installed[0]} instead of frames")
        self._made_contents(*there, todo, sources, scratch, allowed)
        yield from self._made(todo, f"the delta from {installed[0]}")

    def _listed(self, believed: TrustedCatalogue, installed: tuple[str, str]) -> tuple[Release, DeltaManifest] | None:
        """Return the installed release and the delta from it as the catalogue has them."""
        from imaging.delta_manifest import DeltaManifest, delta_ref
        from imaging.release import Release

        ref, digest = installed
        try:
            found = DeltaManifest.parse(believed.fetch(f"{delta_ref(ref, self._release.ref)}.json"))
            old = Release.parse(believed.fetch(f"releases/{ref}.json"))
        except NotFoundError:
            return None
        return (old, found) if old.digest == digest else None

    def _made_contents(self, old: Release, found: DeltaManifest, todo: Collection[int], sources: Sources,
                       scratch: Path, allowed: Callable[[], None]) -> None:
        from imaging.delta_apply import make_contents
        from imaging.fetch import FrameFetcher
        from imaging.file_contents import TreeContents
        from imaging.rebuild import known_content

        wanted = set(todo)
        lacking = [entry for entry in self._index.entries if entry.digest and entry.digest not in self._found
                   and any(extent.frame in wanted for extent in entry.extents)]
        durable.make_folder(scratch, 0o700)
        room = sum(entry.size for entry in lacking) + sum(self._index.frames[number].length for number in todo)
        disks.require_space(scratch, room + SLACK_BYTES, "what a delta makes")
        _, before = servers.read_index(_flat(sources(old.layer_digest)), old)
        blob = sources(found.blob_digest)
        head = servers.first_right(_flat(blob), (found.head_offset, found.head_length),
                                   lambda data: found.read_head(data, old, self._release), f"the delta {found.ref}")
        full = FrameFetcher(list(sources(self._release.layer_digest)), note=self._say)
        contents = TreeContents(self._root, before)
        try:
            taken = make_contents(head, before, self._index, scratch, {entry.digest for entry in lacking},
                                  contents=contents, frames=FrameFetcher(list(blob), note=self._say), full=full,
                                  progress=lambda *_: allowed())
        finally:
            contents.close()
        if taken.missed:
            self._say(f"{len(taken.missed)} files are not as {old.ref} had them, the first is {taken.missed[0]}")
        self._found |= known_content(scratch, lacking)

    def _made(self, todo: list[int], of: str) -> Iterator[tuple[int, bytes]]:
        """Yield the frames of `todo` that come out as the index says; gives up after MOST_WRONG that don't."""
        from blake3 import blake3

        from imaging.rebuild import TreeSource

        assert self._level is not None
        local = TreeSource(self._index, self._found, self._level)
        made = wrong = 0
        for number in filter(local.has, todo):
            frame = self._index.frames[number]
            try:
                data = local.read(frame.offset, frame.length)
            except (CorruptError, NotFoundError) as error:  # another zstd made the release, or files changed
                self._say(error.sentence)
                data = b""
            if blake3(data).digest() == frame.digest:
                made += 1
                yield number, data
                continue
            wrong += 1
            if wrong == MOST_WRONG:
                break
        self._say(f"{self._release.ref}: {made} of {len(todo)} frames made of {of}")


def _flat(groups: Sequence[tuple[FrameSource, ...]]) -> list[FrameSource]:
    return [source for group in groups for source in group]
