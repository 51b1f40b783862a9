"""Where bytes come from (I/O): the stage on /local first, then the content servers of the order.

Out: the index, read and checked before anything is touched; a fetcher that gives verified frames; and, for an
installation, the parts of the recovery image that go to the boot area.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from imaging.recovery_manifest import STARTED, parts
from plumbing import durable
from plumbing.errors import CorruptError, NetworkError, RerootError
from plumbing.http import Client
from recovery import servers
from recovery.session import Session

if TYPE_CHECKING:
    from imaging.fetch import FrameFetcher
    from imaging.index import Frame
    from imaging.release import Release
    from imaging.sources import FrameSource, StageSource

Shown = Mapping[str, Mapping[str, str]]
NOBODY: Shown = {}
READERS = 2
"""Threads that read the stage back; the digest of one frame is made while the next is read."""


def content_urls(session: Session) -> tuple[str, ...]:
    """Return the content servers in the order they are asked: the order's, then control."""
    return tuple(url for group in servers.groups(session.ordered) for url in group)


def stage_of(session: Session) -> StageSource | None:
    """Return what was staged for this release while the host still worked, if anything was."""
    from imaging.sources import StageSource

    assert session.release is not None
    if session.stage is not None and session.stage[0] == session.release.layer_digest:
        return session.stage[1]
    folder = session.recover / "stage"
    part = folder / f"{session.release.layer_digest.removeprefix('sha256:')}.part"
    if not session.local_mounted or not part.exists():
        return None
    session.close_stage()
    session.stage = (session.release.layer_digest, StageSource(folder, session.release.layer_digest))
    return session.stage[1]


def sources(session: Session) -> list[FrameSource]:
    """Return every place the layer may come from, nearest first."""
    stage = stage_of(session)
    assert session.release is not None
    return [*([stage] if stage is not None else []), *servers_of(session, session.release)]


def servers_of(session: Session, release: Release) -> list[FrameSource]:
    """Return the content servers that may have a release's layer."""
    from imaging.sources import HttpSource

    return [HttpSource(url, release.layer_digest) for url in content_urls(session)]


def fetcher(session: Session, shown: Shown = NOBODY) -> FrameFetcher:
    """Return what gives verified frames; `shown` are the tickets' providers, which are asked before the others."""
    from imaging.fetch import FrameFetcher
    from imaging.sources import HttpSource

    assert session.release is not None
    digest, stage = session.release.layer_digest, stage_of(session)
    shown = {url.rstrip("/"): headers for url, headers in shown.items()}
    remote = [tuple(HttpSource(url, digest, shown.get(url)) for url in group)
              for group in servers.groups(session.ordered, shown)]
    return FrameFetcher([*([stage] if stage is not None else []), *remote],
                        note=lambda sentence: session.log.say("restore", sentence))


def prepare(session: Session) -> int:
    """Read the index and what is staged; returns how many frames are still to be fetched. Nothing is touched.

    Raises NetworkError when frames are missing and no content server gives one: better now than after the wipe.
    """
    release = session.release
    assert release is not None
    _, session.index = servers.read_index(sources(session), release)
    done = restored(session)
    check_stage(session, done)
    lacking = [number for number in missing(session) if number not in done]
    frames = session.index.frames
    session.log.say("disks", f"{len(frames)} frames, {len(lacking)} of them to be fetched")
    if lacking:
        _require_server(session, frames[lacking[-1]])
    return len(lacking)


def restored(session: Session) -> frozenset[int]:
    """Return the numbers of the frames that are in the new root already and are not needed any more."""
    assert session.index is not None
    state = session.journal.state if session.journal is not None else None
    if state is None or not state.wiped:
        return frozenset()
    return frozenset(range(len(session.index.frames))) if "restore" in state.done else state.frames


def check_stage(session: Session, done: Collection[int]) -> None:
    """Read the staged frames that are still needed against their digests; rotten ones count as missing.

    They were right when they were staged, and that may be weeks ago on a disk that is failing.
    """
    from concurrent.futures import ThreadPoolExecutor

    stage = stage_of(session)
    if stage is None:
        return
    assert session.index is not None
    frames, progress = session.index.frames, session.progress("disks")
    staged = [number for number in range(len(frames)) if stage.has(number) and number not in done]
    total, read, rotten = sum(frames[number].length for number in staged), 0, list[int]()
    with ThreadPoolExecutor(READERS) as pool:
        for number, sound in zip(staged, pool.map(lambda n: _is_sound(stage, frames[n]), staged), strict=True):
            read += frames[number].length
            progress("reading what is staged", read, total)
            if not sound:
                rotten.append(number)
    if rotten:
        session.log.say("disks", f"{len(rotten)} of {len(staged)} staged frames do not read back as they were staged, "
                                 f"the first is number {rotten[0]}; they are fetched again: look at the disk")
        stage.forget(rotten)


def _is_sound(stage: StageSource, frame: Frame) -> bool:
    from blake3 import blake3

    try:
        return blake3(stage.read(frame.offset, frame.length)).digest() == frame.digest
    except RerootError:
        return False


def missing(session: Session) -> list[int]:
    """Return the numbers of the frames that the stage does not have."""
    assert session.index is not None
    stage = stage_of(session)
    return [number for number in range(len(session.index.frames)) if stage is None or not stage.has(number)]


def _require_server(session: Session, frame: Frame) -> None:
    """Raise NetworkError unless a content server gives a frame that is missing, whole and right."""
    from blake3 import blake3

    def check(data: bytes) -> None:
        if blake3(data).digest() != frame.digest:
            raise CorruptError("it sent other bytes than the release has")

    assert session.release is not None
    servers.first_right(servers_of(session, session.release), (frame.offset, frame.length), check,
                        f"release {session.release.ref}")


# -- the recovery image, for an installation -----------------------------------------------------------------


def recovery_files(session: Session) -> dict[str, Path]:
    """Fetch the recovery image that the order names, in memory, every part checked; returns title -> file."""
    wanted = session.ordered.recovery
    assert wanted is not None and session.catalogue is not None
    manifest = servers.manifest(session.catalogue, wanted, session.ordered.id)
    folder = session.places.scratch / "image"
    durable.make_folder(folder)
    return {title: fetch_part(content_urls(session), folder / title, digest, size,
                              lambda text: session.log.say("bootloader", text))
            for title, (digest, size) in parts(manifest, STARTED).items()}


def fetch_part(urls: Iterable[str], into: Path, digest: str, size: int, say: Callable[[str], None]) -> Path:
    """Fetch one blob of `size` bytes from the first content server that gives it whole; returns `into`."""
    reasons = []
    for url in urls:
        client = Client(url)
        try:
            _stream(client, into, digest, size)
            say(f"{into.name}: {size >> 10} KiB from {url}")
            return into
        except RerootError as error:
            reasons.append(error.sentence)
        finally:
            client.close()
    raise NetworkError(f"no content server gives {into.name} of the recovery image ({'; '.join(reasons)}); check "
                       "that one of them runs")


def _stream(client: Client, into: Path, digest: str, size: int) -> None:
    from imaging.sources import PATIENCE_S, SLOWEST

    hasher, got = hashlib.sha256(), 0
    with into.open("wb") as stream:
        for piece in client.stream(f"/v2/reroot/blobs/{digest}", deadline_s=PATIENCE_S + size / SLOWEST):
            got += len(piece)
            if got > size:
                break
            hasher.update(piece)
            stream.write(piece)
    if got != size or "sha256:" + hasher.hexdigest() != digest:
        raise CorruptError(f"{client.base_url} gives other bytes for {into.name} than its digest says")
