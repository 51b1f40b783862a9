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
from sqlalchemy import Connection, bindparam, select, text, update

from control.database import Database, HostRow
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

    @property
    def host(self) -> str:
        """The host's name."""
        return self.claim.host


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

    async def authenticate(self, who: Claimed, method: str, target: str, body: bytes, now: float) -> Claimed:
        """Return what held: the host signed this request, by this key, for the first time; raises TrustError."""
        try:
            hostauth.verify(who.claim, who.key.public, now, method, target, body)
        except TrustError:
            fresh = await self._read(who.claim.host)
            if fresh is None or fresh.text == who.key.text:
                raise
            who = Claimed(who.claim, fresh)
            hostauth.verify(who.claim, fresh.public, now, method, target, body)
        await self._accepting.do((who, now))
        return who

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
        with self._database.engine.begin() as connection:
            answers = _accept_in(connection, batch, one_by_one=False)
            if answers is not None:
                return answers
            connection.rollback()
        # One of them was sent before, which is seldom: each row says for itself whether it is new.
        with self._database.engine.begin() as connection:
            told = _accept_in(connection, batch, one_by_one=True)
            assert told is not None
            return told


def _accept_in(
    connection: Connection, batch: Sequence[tuple[Claimed, float]], *, one_by_one: bool,
) -> list[Exception | None] | None:
    """Keep the nonces in this transaction; None when not all were new and nobody knows which, unless `one_by_one`."""
    hosts = {who.claim.host for who, _ in batch}
    keys = dict(connection.execute(select(HostRow.name, HostRow.public_key).where(HostRow.name.in_(hosts))).all())
    answers: list[Exception | None] = [
        None if keys.get(who.claim.host) == who.key.text else TrustError(_STRANGER) for who, _ in batch]
    rows = [{"host": who.claim.host, "nonce": who.claim.nonce, "expires_s": now + NONCE_MEMORY_S} for who, now in batch]
    if one_by_one:
        for place, row in enumerate(rows):
            if answers[place] is None and connection.execute(_KEEP, row).rowcount != 1:
                answers[place] = _sent_before(str(row["host"]))
    else:
        fresh = [row for row, answer in zip(rows, answers, strict=True) if answer is None]
        if fresh and connection.execute(_KEEP, fresh).rowcount != len(fresh):
            return None
    # In one order, so that two servers do not wait for each other's rows.
    seen = {who.claim.host: now for (who, now), answer in zip(batch, answers, strict=True) if answer is None}
    if seen:
        connection.execute(SEEN, [{"k_name": host, "at": seen[host]} for host in sorted(seen)])
    return answers


def _sent_before(host: str) -> TrustError:
    return TrustError(f"the request was sent before; {host} must sign each one anew")


# SQLite and PostgreSQL both know this, and count what was not there before.
_KEEP = text("INSERT INTO nonces (host, nonce, expires_s) VALUES (:host, :nonce, :expires_s) ON CONFLICT DO NOTHING")
SEEN = update(HostRow.__table__).where(HostRow.__table__.c.name == bindparam("k_name")).values(  # type: ignore[arg-type]
    seen_s=bindparam("at"))
"""Writes when hosts were seen last: `at` (wall seconds) of each `k_name`."""
