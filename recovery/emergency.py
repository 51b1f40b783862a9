"""The entries of the rescue menu (I/O): each says what it will touch, and asks for a word that means yes.

What goes over a root needs that and a valid signed order; what runs a program of the site's own needs that and the
site's signature. docs/protocols/recovery.md, "The rescue menu".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from plumbing import clock
from plumbing.errors import NotFoundError, RefusedError
from recovery import examine, identity, offload, servers
from recovery.dialogue import Dialogue, Entry, Start, confirm, show
from recovery.log import size
from recovery.machine import Event
from recovery.session import Session
from recovery.signed_order import MAX_ENVELOPE_BYTES

if TYPE_CHECKING:
    from imaging.trusted import TrustedCatalogue

SHELL = ("/bin/busybox", "sh", "-l")
OWN = "recover"
"""The file below /local/recover that holds a program of the site's own, signed."""


def entries(session: Session) -> tuple[Entry, ...]:
    """Return the menu of one boot, in its order."""
    return (
        Entry("what this machine is", show(lambda: examine.describe(session))),
        Entry("run the order again", _run_again),
        Entry("check the disks and mount them read-only under /mnt", show(lambda: _check(session))),
        Entry("a shell on this console", _shell),
        Entry("the last lines of the log", show(lambda: session.log.last(60))),
        Entry("reboot", _reboot),
        Entry("copy the precious archive to another disk", lambda: offload.to_disk(session)),
        Entry("restore the last known release once more", lambda: restore_last(session)),
        Entry("run /local/recover/recover, if it is there and signed", lambda: run_own(session)),
    )


def _run_again() -> Dialogue:
    yield from ()
    return Event.AGAIN


def _reboot() -> Dialogue:
    yield from ()
    return Event.DONE


def _check(session: Session) -> Iterator[str]:
    yield "nothing is repaired and nothing is written; this can take minutes"
    yield from examine.check_disks(session)


def _shell() -> Dialogue:
    yield "leave the shell with `exit` to come back to this menu"
    yield Start(SHELL)
    return None


def restore_last(session: Session) -> Dialogue:
    """Carry out the order that is on /local once more, when it is still valid and a person says so.

    A spent order is refused wherever it comes from, because whoever sends it replays it; a person at the console who
    types the host's name is the one who may.
    """
    from recovery.phases import begin

    journal, known = session.journal, session.identity
    if journal is None or known is None or session.command_line.local is None:
        raise RefusedError("this machine was not started from its own boot area, so its last release is not known for "
                           "sure; start it from its disk, or issue an order for it")
    path = session.recover / "order.json"
    if not path.is_file() or journal.state.order is None:
        raise NotFoundError(f"no release is known on this machine; issue an order: reroot host order {known.host}")
    session.catalogue = session.catalogue or _catalogue(session, known)
    found = begin.first_valid(session, [(str(path), path.read_bytes())])
    if found.mode != "upgrade" or found.release is None or found.id != journal.state.order:
        raise RefusedError(f"order {found.id} on /local is not the upgrade that was carried out last; issue a new "
                           "order")
    yield f"order {found.id} of {found.issued}: {found.release.target}"
    if not journal.state.finished:
        yield "it is under way; choose 2 to go on with it"
        return None
    yield (f"this makes the root of {found.host} anew and puts that release on it; its precious files are kept first "
           "and put back, everything else on the root goes; /local stays")
    if not (yield from confirm(found.host)):
        return None
    journal.again()
    session.log.say("rescue", f"order {found.id} is carried out once more, as a person at the console wants")
    return Event.AGAIN


def run_own(session: Session) -> Dialogue:
    """Run the site's own program for this host's rescue, from memory, as the bytes that were verified."""
    from recovery import ownprogram

    with offload.recover_folder(session) as (recover, _):
        known = session.identity or identity.load(recover.parent)
        envelope = _read(recover / OWN)
    if known is None:
        raise RefusedError("/local does not say who this host is, so a program for it cannot be told from another's")
    catalogue = session.catalogue or _catalogue(session, known)
    program = ownprogram.verify(envelope, catalogue.fetch("orders/keys.json"), host=known.host, now=clock.wall())
    yield (f"/local/recover/recover is signed for {known.host} until {clock.iso(program.expires_s)}, "
           f"{size(len(program.data))}; it runs as root and may touch everything on this machine")
    if not (yield from confirm(known.host)):
        return None
    at = session.places.scratch / "own-program"
    at.unlink(missing_ok=True)
    handle = os.open(at, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700)
    with os.fdopen(handle, "wb") as stream:
        stream.write(program.data)
    status = yield Start((str(at),))
    yield f"it ended with status {status}"
    return None


def _catalogue(session: Session, known: identity.Identity) -> TrustedCatalogue:
    return servers.catalogue(session.places.trust_root, known.control, session.places.scratch / "trust")


def _read(path: Path) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise NotFoundError(f"{path.name} is not on /local/recover ({error.strerror}); make one with `reroot recovery "
                            "program HOST FILE`, and copy it there") from error
    with os.fdopen(handle, "rb") as stream:
        return stream.read(MAX_ENVELOPE_BYTES + 1)
