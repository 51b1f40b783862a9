"""Who signed a request, and for the first time: keys from memory, nonces on disk, many to one transaction; I/O.

The rules of the signature are plumbing.hostauth, the protocol is docs/protocols/host-api.md. A key from memory may be
old, so the transaction that keeps the nonce compares it with what the host enrolled: a key that was replaced, by
whatever server, is believed by none.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from control.database import Database, HostRow, NonceRow
from control.group_commit import GroupCommit
from plumbing import hostauth
from plumbing.errors import TrustError
from plumbing.hostauth import Claim

NONCE_MEMORY_S = 2 * hostauth.WINDOW_S
MAX_KEYS = 100_000
"""Keys that are kept in memory, some 300 bytes each."""
_STRANGER = "the request is not signed by an enrolled host; enrol it with `reroot host add` first"


@dataclass(frozen=True)
class Key:
    """The public key that a host enrolled: as it is stored, and to verify with."""

    text: str
    public: Ed25519PublicKey


@dataclass(frozen=True)
class Claimed:
    """A request of somebody who says that he is a host: the claim, and the key that this host enrolled."""

    claim: Claim
    key: Key


class Signatures:
    """What one server knows of keys, and the nonces it keeps."""

    def __init__(self, database: Database, executor: Executor | None = None) -> None:
        """Keep nonces in `database`, by transactions in `executor`."""
        self._database = database
        self._keys: dict[str, Key] = {}
        self._accepting: GroupCommit[tuple[Claimed, float], None] = GroupCommit(self._accept, executor)

    async def claimed(self, listed: Collection[str], headers: Mapping[str, str], now: float) -> Claimed:
        """Return what a request claims when it can hold, before its body is read; `listed` are those of hosts.toml.

        Raises TrustError. A host that is not listed any more is nobody, whatever key it enrolled.
        """
        claim = hostauth.read_claim(headers)
        hostauth.check_time(claim, now)
        key = self._keys.get(claim.host) if claim.host in listed else None
        if key is None and claim.host in listed:
            key = await self._read(claim.host)
        if key is None:
            raise TrustError(_STRANGER)
        return Claimed(claim, key)

    async def authenticate(self, who: Claimed, method: str, target: str, body: bytes, now: float) -> str:
        """Return the name of the host that signed this request and did so for the first time; raises TrustError."""
        try:
            hostauth.verify(who.claim, who.key.public, now, method, target, body)
        except TrustError:
            fresh = await self._read(who.claim.host)
            if fresh is None or fresh.text == who.key.text:
                raise
            who = Claimed(who.claim, fresh)
            hostauth.verify(who.claim, fresh.public, now, method, target, body)
        await self._accepting.do((who, now))
        return who.claim.host

    async def _read(self, host: str) -> Key | None:
        text = await asyncio.to_thread(self._stored, host)
        if text is None:
            self._keys.pop(host, None)
            return None
        if len(self._keys) >= MAX_KEYS:
            self._keys.clear()
        key = self._keys[host] = Key(text, Ed25519PublicKey.from_public_bytes(base64.b64decode(text)))
        return key

    def _stored(self, host: str) -> str | None:
        with self._database.reading() as session:
            found: str | None = session.scalar(select(HostRow.public_key).where(HostRow.name == host))
        return found

    def _accept(self, batch: Sequence[tuple[Claimed, float]]) -> list[Exception | None]:
        """Keep the nonces of `batch`; answer each request that was sent before, or by a key that is none any more."""
        try:
            with self._database.engine.begin() as connection:
                return _accept_in(connection, batch)
        except IntegrityError as error:
            # Another server kept one of these nonces this very moment, or the nonces are odd enough to be refused.
            if len(batch) == 1:
                return [_sent_before(batch[0][0].claim.host, error)]
            return [answer for one in batch for answer in self._accept([one])]


def _accept_in(connection: Connection, batch: Sequence[tuple[Claimed, float]]) -> list[Exception | None]:
    hosts = {who.claim.host for who, _ in batch}
    keys = dict(connection.execute(select(HostRow.name, HostRow.public_key).where(HostRow.name.in_(hosts))).all())
    used = {(row.host, row.nonce) for row in connection.execute(select(NonceRow.host, NonceRow.nonce).where(
        NonceRow.nonce.in_([who.claim.nonce for who, _ in batch])))}
    answers: list[Exception | None] = []
    fresh = []
    for who, now in batch:
        claim = who.claim
        if keys.get(claim.host) != who.key.text:
            answers.append(TrustError(_STRANGER))
        elif (claim.host, claim.nonce) in used:
            answers.append(_sent_before(claim.host))
        else:
            used.add((claim.host, claim.nonce))
            fresh.append({"host": claim.host, "nonce": claim.nonce, "expires_s": now + NONCE_MEMORY_S})
            answers.append(None)
    if fresh:
        connection.execute(_KEEP, fresh)
        # In one order, so that two servers do not wait for each other's rows.
        seen = {who.claim.host: now for (who, now), answer in zip(batch, answers, strict=True) if answer is None}
        connection.execute(_SEEN, [{"k_name": host, "at": seen[host]} for host in sorted(seen)])
    return answers


def _sent_before(host: str, cause: Exception | None = None) -> TrustError:
    error = TrustError(f"the request was sent before; {host} must sign each one anew")
    error.__cause__ = cause
    return error


_KEEP = insert(NonceRow)
_SEEN = update(HostRow.__table__).where(HostRow.__table__.c.name == bindparam("k_name")).values(  # type: ignore[arg-type]
    seen_s=bindparam("at"))
