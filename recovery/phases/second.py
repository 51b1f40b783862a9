"""The second copy (I/O): of the archive that was read back, to the control server, before anything is wiped.

Who can read it is said by the catalogue, and the host itself can; whether it must be there is said by the order. When
the archive is damaged after the wipe, the host fetches its copy, opens it with its own key, and puts that back.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from plumbing import clock, durable
from plumbing.errors import CorruptError, DiskError, NetworkError, NotFoundError, RerootError, from_wire
from recovery import identity, tickets
from recovery.session import Session
from recovery.upload import ANSWER_S, Upload

SHORT_WAIT_S = 600.0
"""How long to wait for a ticket for a copy that the upgrade can do without, in seconds."""
FETCH_S = 4 * 3600.0
"""How long fetching a copy may take, in seconds; there is nothing else to put back then."""
SPARE = "-second"
"""What the name of the archive's folder gets appended for what came of its second copy."""


def take(session: Session, archive: Path) -> dict[str, object]:
    """Send a second copy of the archive in the folder `archive` when the order wants one; returns figures to report.

    Raises what kept it from being stored, when the order says that it must be; else that is said and reported.
    """
    from precious.policy import Policy

    policy, found = Policy.from_json(session.ordered.precious).second_copy, session.disks_found
    same_disk = found.local is None or found.local.disk_device == found.root.disk_device
    if not policy.wanted(same_disk=same_disk):
        return {}
    try:
        wait_s = tickets.TICKET_WAIT_S if policy.required else SHORT_WAIT_S
        return {"second_copy": {"stored": True, **_send(session, archive, policy.services, wait_s)}}
    except RerootError as error:
        if policy.required:
            raise from_wire(error.kind, f"the second copy of the precious files was not taken, and the policy requires "
                            f"it, so nothing is wiped: {error.sentence}") from error
        session.log.say("preserve", f"no second copy, the upgrade goes on without: {error.sentence}")
        return {"second_copy": {"stored": False, "why": error.sentence}}


def _send(session: Session, archive: Path, services: Sequence[str], wait_s: float) -> dict[str, object]:
    from precious import sealing

    who = session.identity
    assert who is not None  # an upgrade needs one
    def say(text: str) -> None:
        session.log.say("preserve", text)

    began, order = clock.monotonic(), session.ordered.id
    sealed = sealing.Sealed(archive, order, who.host, _readers(session))
    client = who.client(timeout_s=ANSWER_S)
    try:
        digest = sealed.digest()
        say(f"sending a second copy, {sealed.size} bytes")
        tell = session.progress("preserve")
        with tickets.held(who, services, say, wait_s) as held:
            Upload(client, f"/api/v1/hosts/{who.host}/precious/{order}", sealed, digest, say=say,
                   check=lambda: tickets.still_held(held)).run(lambda done, total: tell("second copy", done, total))
        return {"bytes": sealed.size, "blake3": digest, "seconds": round(clock.monotonic() - began, 1)}
    finally:
        client.close()
        sealed.close()


def _readers(session: Session) -> tuple[bytes, ...]:
    from precious import sealkeys

    if session.catalogue is None:
        raise NetworkError("the catalogue, which says for whom second copies are, was not read")
    try:
        listed = session.catalogue.fetch(sealkeys.TARGET)
    except NotFoundError as error:
        raise NotFoundError("the site has no recovery key to encrypt it for; `reroot trust recovery-key` makes one"
                            ) from error
    return (*sealkeys.listed(listed), identity.precious_key(session.places.local))


def instead(session: Session, archive: Path) -> Path | None:
    """Return a whole archive made of the second copy if the one in the folder `archive` is damaged, else None.

    Raises what is wrong with the first when the second cannot be had either.
    """
    from precious import keep

    tell, spare = session.progress("putback"), archive.with_name(archive.name + SPARE)
    try:
        keep.verify(archive, tell)
        return None
    except (CorruptError, DiskError) as error:
        session.log.say("putback", f"{error.sentence}; the second copy is fetched")
        try:
            _fetch(session, archive.name, spare)
            keep.verify(spare, tell)
        except RerootError as why:
            raise from_wire(error.kind, f"{error.sentence}; and the second copy is not to be had: {why.sentence}"
                            ) from why
    return spare


def _fetch(session: Session, order: str, into: Path) -> None:
    from precious import sealing, sealkeys

    who, key = session.identity, session.places.local / identity.AGENT / "precious.key"
    if who is None or not key.exists():
        raise NotFoundError("this host never made a key for second copies, so there is none that it could open")
    shutil.rmtree(into, ignore_errors=True)
    client = who.client(timeout_s=ANSWER_S)
    try:
        with durable.told(str(into), "the second copy stays on the control server"):
            durable.make_folder(into, 0o700)
            with (into / "copy").open("w+b") as copy:
                for piece in client.stream(f"/api/v1/hosts/{who.host}/precious/{order}", deadline_s=FETCH_S):
                    copy.write(piece)
                    session.log.alive()
                copy.seek(0)
                sealing.unseal(copy, sealkeys.load(key), into, host=who.host, order=order)
            (into / "copy").unlink()
    finally:
        client.close()
