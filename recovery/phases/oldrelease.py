"""What the release that this host was installed from had where rules merge (I/O: the old root, catalogue, servers).

Asked in `preserve`, before the wipe, while there is a network: putting back has only what stands beside the archive.
The catalogue vouches for the release, its index for every content. Nothing here has to work: what can't be had is
noted, and merging goes on without.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import zstandard
from blake3 import blake3

from plumbing import clock
from plumbing.errors import CorruptError, RerootError
from recovery import servers
from recovery.phases import content
from recovery.session import Session

if TYPE_CHECKING:
    from imaging.entry import Entry, Extent
    from imaging.index import Frame, Index
    from imaging.release import Release
    from precious.base import Base
    from precious.keep import Kept
    from precious.policy import Policy

RELEASE_FILE = "etc/reroot/release.json"
"""Where an upgrade or installation has written which release it was."""
MOST_BYTES = 64 << 10
DEADLINE_S = 120.0
"""After so many seconds nothing more is asked for: this host is down meanwhile."""


def installed(root: Path) -> tuple[str, str] | None:
    """Return name and manifest digest of the release that the old root says it is; None when it says nothing usable."""
    from imaging.release import is_ref

    path = root / RELEASE_FILE
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MOST_BYTES:
            return None
        found = json.loads(path.read_bytes())
        ref, digest = found["release"], found["digest"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return (ref, digest) if isinstance(ref, str) and isinstance(digest, str) and is_ref(ref) else None


def ask(session: Session, named: tuple[str, str] | None, kept: Kept, policy: Policy) -> Base:
    """Return what the release `named` had where `policy` merges, as far as it can be had; Base() without one."""
    from precious import base

    if named is None:
        return base.Base()
    ref, digest = named
    found = base.Base(ref)
    try:
        release = _release(session, ref, digest)
        _, index = servers.read_index(content.servers_of(session, release), release)
        found, lacking = base.known(ref, index, policy, {entry.path: entry for entry in kept.index.entries})
        pieces, why = _pieces(session, release, index, lacking)
        nodes = {entry.path: data for entry in lacking if (data := base.content(entry, pieces)) is not None}
    except RerootError as error:
        return found.without(error.sentence)
    whole = base.Base(found.release, found.same, {**found.nodes, **nodes}, found.notes)
    session.log.say("preserve", f"{ref} had {len(whole.same) + len(whole.nodes)} of the paths that are merged, "
                                f"{len(whole.same)} of them unchanged here")
    return whole if len(nodes) == len(lacking) else whole.without(why or "its frames do not hold what its index says")


def _release(session: Session, ref: str, digest: str) -> Release:
    from imaging.release import Release

    assert session.catalogue is not None
    release = Release.parse(session.catalogue.fetch(f"releases/{ref}.json"))
    if release.digest != digest:
        raise CorruptError(f"the catalogue's {ref} is another one than this host was installed from")
    return release


def _pieces(session: Session, release: Release, index: Index, wanted: list[Entry]) -> tuple[dict[Extent, bytes], str]:
    """Return the pieces of files that could be had, and why not the others, if so. One frame is in memory at a time."""
    unpacker, progress = zstandard.ZstdDecompressor(), session.progress("preserve")
    extents = sorted({extent for entry in wanted for extent in entry.extents})
    numbers = sorted({extent.frame for extent in extents})
    found: dict[Extent, bytes] = {}
    why, done = "", 0
    total, deadline = sum(index.frames[number].length for number in numbers), clock.monotonic() + DEADLINE_S
    places = content.servers_of(session, release)
    for number in numbers:
        if clock.monotonic() > deadline:
            return found, "the content servers are too slow"
        frame = index.frames[number]

        def read(data: bytes, frame: Frame = frame) -> bytes:
            if blake3(data).digest() != frame.digest:
                raise CorruptError("it sent other bytes than the release has")
            return unpacker.decompress(data, max_output_size=frame.raw_length)

        try:
            raw = servers.first_right(places, (frame.offset, frame.length), read, f"release {release.ref}")
            found |= {extent: raw[extent.offset:extent.offset + extent.length] for extent in extents
                      if extent.frame == number}
        except RerootError as error:
            why = error.sentence
        done += frame.length
        progress("asking the old release", done, total)
    return found, why
