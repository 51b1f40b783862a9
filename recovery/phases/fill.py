"""restore and verify (I/O): the release onto the new root, and every file read back from the disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from plumbing.errors import CorruptError
from recovery import disks
from recovery.journal import Noted
from recovery.log import size
from recovery.phases import content
from recovery.session import Session, fstype_of

WORKERS = 2


def mount_root(session: Session) -> Path:
    """Mount the new root for writing, if it is not mounted; returns where."""
    root = session.disks_found.root
    session.mount(root.device, session.places.root, fstype_of(root))
    return session.places.root


@contextmanager
def _tickets(session: Session, needed: bool) -> Iterator[Mapping[str, Mapping[str, str]]]:
    """Hold the tickets that the order asks for while frames are fetched; yields their providers' URLs.

    With each URL come the headers that show its ticket there.
    """
    if not needed or session.identity is None:
        yield {}
        return
    from recovery.tickets import held

    with held(session.identity, session.ordered.services, lambda text: session.log.say("restore", text)) as found:
        yield {ticket.url: ticket.headers() for ticket in found if ticket.url}


def restore(session: Session) -> Mapping[str, object]:
    """Unpack the release onto the new root; frames restored before a restart are not fetched again."""
    from imaging.ahead import Ahead
    from imaging.restore import restore as unpack

    assert session.index is not None
    journal, root = session.journalled, mount_root(session)
    done = set(journal.state.frames)
    journal.begin("restore")
    missing = [number for number in content.missing(session) if number not in done]
    with _tickets(session, bool(missing)) as urls:
        noted, needed = Noted(journal), session.index.filled
        announced = [session.index.frames[number] for number in missing if number in needed]
        with Ahead(content.fetcher(session, urls), announced) as ahead:
            report = unpack(session.index, ahead, root, workers=WORKERS, progress=session.progress("restore"),
                            done=done, on_frame=noted.add)
        noted.write()
    disks.sync_filesystem(root)
    journal.done("restore")
    session.log.say("restore", f"{report.entries} entries, {size(report.content_bytes)} in {report.seconds:.1f} s")
    return {"entries": report.entries, "bytes": report.content_bytes, "frames": report.frames,
            "reused_frames": report.frames_reused, "fetched_frames": len(missing)}


def verify(session: Session) -> Mapping[str, object]:
    """Read every file back from the disk and compare; a difference takes back everything from wipe on."""
    from imaging.verify import verify as compare

    assert session.index is not None
    journal = session.journalled
    journal.begin("verify")
    # unmounting writes out and forgets: what is read next comes from the disk
    session.unmount(session.places.root)
    root = mount_root(session)
    wrong = compare(session.index, root, session.progress("verify"))
    if wrong:
        for mismatch in wrong[:10]:
            session.log.say("verify", str(mismatch))
        journal.begin("wipe")
        raise CorruptError(f"{len(wrong)} entries of the new root are not what the release says, the first is "
                           f"{wrong[0]}; the root is made anew")
    journal.done("verify")
    return {"entries": len(session.index.entries)}
