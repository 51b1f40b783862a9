"""Who may join and who administers: machines without a key by a one-time secret, people by token; I/O.

Hosts are known by their signatures (control.signatures). The protocol is docs/protocols/host-api.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from control.database import Database, EventRow, HostRow, NonceRow, OrderRow, TokenRow
from control.progress import OPEN_STATES
from fleet.hosts import Host
from plumbing import clock, hostauth
from plumbing.errors import NotFoundError, TrustError, UsageError

TOKEN_LIFETIME_S = 86_400.0
"""How long a token that `reroot host add` printed can be used, in seconds, unless it is told otherwise."""

MIN_TOKEN = 32
"""Characters that a token of an administrator or reader must have."""

_NO_SUCH_SECRET = "no open enrolment has this secret; `reroot host add` or a new install order makes one"  # noqa: S105


@dataclass(frozen=True)
class Enrolment:
    """What a machine says to become a host: its new public key, and a token's proof or an install order's nonce."""

    host: str
    public_key: str
    proof: str | None = None
    order: str | None = None
    nonce: str | None = None


def forget_old_nonces(database: Database, now: float) -> None:
    """Drop the nonces whose requests are too old to be accepted anyway."""
    with database.session() as session:
        session.execute(delete(NonceRow).where(NonceRow.expires_s < now))


def authorize_admin(header: str | None, token: str) -> None:
    """Raise TrustError unless `header` is "Bearer TOKEN"; takes the same time whatever was sent."""
    sent = (header or "").removeprefix("Bearer ").strip()
    if not hmac.compare_digest(sent.encode(), token.encode()):
        raise TrustError("this path is for administrators; send the contents of keys/admin.token as bearer token")


def precious_reader(header: str | None, keys: Path) -> str:
    """Return whose token for precious files, of those in the folder `keys`, is in `header`: precious, or precious NAME.

    The files are read each time: one that is removed ends an access at once. Raises TrustError.
    """
    sent = (header or "").removeprefix("Bearer ").strip().encode()
    found = ""
    for path in sorted(keys.glob("precious*.token")):
        token = path.read_bytes().strip()
        if len(token) >= MIN_TOKEN and hmac.compare_digest(sent, token):
            found = path.name.removesuffix(".token").replace(".", " ", 1)
    if not found:
        raise TrustError("precious files are given out to those who have a token for it; send the contents of "
                         "keys/precious.token (`reroot trust recovery-key` makes one)")
    return found


def fleetlock_token(admin_token: str, host: str) -> str:
    """Return what lets a FleetLock client speak for `host`: derived, so nothing is kept; new with each admin token."""
    digest = hmac.new(admin_token.encode(), f"reroot-fleetlock-1\n{host}".encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def authorize_fleetlock(admin_token: str, host: str, token: str, listed: Collection[str]) -> None:
    """Raise TrustError unless `token` is that of `host` and the host is in hosts.toml."""
    right = hmac.compare_digest(fleetlock_token(admin_token, host).encode(), token.encode())
    if not right or host not in listed:
        raise TrustError("the base URL's token is not that of a host of this site; `reroot ticket fleetlock HOST` "
                         "prints the right one")


def host_at(address: str, hosts: Iterable[Host]) -> str:
    """Return the host whose fixed address in hosts.toml is `address`; raises TrustError unless exactly one has it."""
    try:
        caller = ipaddress.ip_address(address.partition("%")[0])
    except ValueError as error:
        raise TrustError("the request comes from no IP address") from error
    caller = getattr(caller, "ipv4_mapped", None) or caller
    found = [host.name for host in hosts if host.address and ipaddress.ip_interface(host.address).ip == caller]
    if len(found) != 1:
        raise TrustError(f"{caller} is the address of no host, or of several; write its `address` into hosts.toml, or "
                         "give its client a base URL from `reroot ticket fleetlock HOST`")
    return found[0]


def make_token(database: Database, host: str, now: float, lifetime_s: float = TOKEN_LIFETIME_S) -> tuple[str, float]:
    """Return a fresh enrolment token for `host` and its expiry (wall seconds); older open ones cease to be valid."""
    token = secrets.token_urlsafe(24)
    with database.session() as session:
        session.execute(delete(TokenRow).where(TokenRow.host == host, TokenRow.claimed_by.is_(None)))
        session.add(TokenRow(digest=hostauth.token_digest(token).hex(), host=host, expires_s=now + lifetime_s))
        if session.get(HostRow, host) is None:
            session.add(HostRow(name=host))
    return token, now + lifetime_s


def enrol(database: Database, wish: Enrolment, now: float) -> None:
    """Accept a host's key, once per secret and inside its window; raises NotFoundError otherwise."""
    _check_key(wish.public_key)
    with database.session() as session:
        secret = _token_row(session, wish, now) if wish.proof else _order_row(session, wish, now)
        if secret.claimed_by is not None:
            if secret.claimed_by == wish.public_key:
                return  # the same claim again: its answer was lost on the way
            raise NotFoundError(_NO_SUCH_SECRET)
        secret.claimed_by = wish.public_key
        row = session.get(HostRow, wish.host) or HostRow(name=wish.host)
        row.public_key, row.enrolled_s = wish.public_key, now
        session.add(row)
        session.add(EventRow(host=wish.host, order_id=wish.order, phase="enrol", event="done", at=clock.iso(now),
                             received_s=now, data={"by": "token" if wish.proof else "order",
                                                   "key": hashlib.sha256(wish.public_key.encode()).hexdigest()[:16]}))


def _token_row(session: Session, wish: Enrolment, now: float) -> TokenRow:
    usable = session.scalars(select(TokenRow).where(TokenRow.host == wish.host, TokenRow.expires_s > now)).all()
    found = [row for row in usable if hmac.compare_digest(
        hostauth.enrolment_proof(bytes.fromhex(row.digest), wish.host, wish.public_key).encode(),
        (wish.proof or "").encode())]
    if not found:
        raise NotFoundError(_NO_SUCH_SECRET)
    return found[0]


def _order_row(session: Session, wish: Enrolment, now: float) -> OrderRow:
    row = session.get(OrderRow, wish.order or "")
    usable = row is not None and row.host == wish.host and row.mode == "install" and now < row.expires_s and (
        row.state in OPEN_STATES or (row.state == "failed" and row.recovering))
    if row is None or not usable or not hmac.compare_digest(row.nonce.encode(), (wish.nonce or "").encode()):
        raise NotFoundError(_NO_SUCH_SECRET)
    return row


def _check_key(text: str) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except (ValueError, binascii.Error) as error:
        raise UsageError("public_key must be the base64 of an Ed25519 key's 32 bytes") from error
