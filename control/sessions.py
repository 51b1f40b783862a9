"""The sessions of one server: opened by a signature, believed by a digest; in memory. I/O: reads hosts' keys.

Nobody is believed longer than LOOK_S after his host's key was replaced, by whatever server, or his host was taken out
of hosts.toml: a request that comes later than that after the last look waits for the next one, which many share. The
protocol is docs/protocols/host-api.md, its rules are plumbing.session.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from control.database import Database, HostRow
from control.group_commit import GroupCommit
from control.signatures import SEEN
from plumbing import clock, session
from plumbing.errors import TrustError
from plumbing.session import Secret

LIFETIME_S = 3600
"""How long a session lives, in seconds."""
LOOK_S = 1.0
"""How long a host is believed without a look at its key and at hosts.toml, in seconds."""
SEEN_S = 60.0
"""How often it is written down, in seconds, that a host was seen in a session."""
MOST_OF_HOST = 32
"""Sessions of one host; the one that was silent for longest makes room."""
MOST = 50_000
"""Sessions in all, about a kilobyte each; the oldest makes room."""
_UNKNOWN = f"this server has no such session (any more); open one with POST {session.OPENING}"


@dataclass(eq=False, slots=True)
class Session:
    """One session; times are monotonic seconds, `key` is what the host had enrolled when it was opened."""

    identity: str
    host: str
    key: str
    secret: Secret
    ends_s: float
    looked_s: float
    """When the last look at the host's key began."""
    seen_s: float
    count: int = 0

    def accept(self, count: str, digest: str, method: str, target: str, body: bytes) -> str:
        """Return the host that made this request, and take its count; raises TrustError."""
        if not self.secret.holds(digest, method, target, count, body):
            raise TrustError(f"the request's digest is not that of a request in this session of {self.host}")
        if int(count) <= self.count:
            raise TrustError("the request was sent before, or after one with a higher count; each needs a higher one")
        self.count = int(count)
        return self.host


class Sessions:
    """What one server knows of the sessions that it opened."""

    def __init__(self, database: Database, listed: Callable[[], Collection[str]]) -> None:
        """Look for keys in `database`; `listed` tells the hosts of hosts.toml as it stands."""
        self._database = database
        self._listed = listed
        self._all: dict[str, Session] = {}  # the oldest first
        self._of: dict[str, list[Session]] = {}
        self._looking: GroupCommit[Session, bool] = GroupCommit(self._look)

    def __len__(self) -> int:
        return len(self._all)

    def open(self, host: str, key: str, public: str) -> tuple[str, str]:
        """Open a session for `host`, whose signature by `key` held; return its identity and this server's public key.

        Raises UsageError when `public` is not a key.
        """
        now = clock.monotonic()
        ours, identity = session.new_key(), secrets.token_urlsafe(12)
        answer = session.public_of(ours)
        secret = session.agree(ours, public, host, identity, (public, answer))
        self._make_room(host, now)
        # looked at for the first time by its first request: the signature's own look was some time before now
        made = Session(identity, host, key, secret, now + LIFETIME_S, now - LOOK_S, now)
        self._all[identity] = made
        self._of.setdefault(host, []).append(made)
        return identity, answer

    def believed(self, identity: str, now: float) -> Session | None:
        """Return the session when its host may be believed at `now`, monotonic seconds, without a look."""
        found = self._all.get(identity)
        return found if found is not None and now < found.looked_s + LOOK_S and now < found.ends_s else None

    async def find(self, identity: str) -> Session:
        """Return the session when its host may be believed, after a look when one is due; raises TrustError."""
        now = clock.monotonic()
        found = self._all.get(identity)
        if found is None:
            raise TrustError(_UNKNOWN)
        if now >= found.looked_s + LOOK_S and (
                found.host not in self._listed() or not await self._looking.do(found)):
            self._drop(found)
        if found.identity not in self._all or now >= found.ends_s:
            self._drop(found)
            raise TrustError(_UNKNOWN)
        return found

    def _look(self, batch: Sequence[Session]) -> list[bool | Exception]:
        """Tell for each session whether its host's key is the one that opened it; in a thread."""
        now = clock.monotonic()
        hosts = sorted({one.host for one in batch})
        with self._database.reading() as reading:
            keys = dict(reading.execute(select(HostRow.name, HostRow.public_key).where(HostRow.name.in_(hosts))).all())
        right = [keys.get(one.host) == one.key for one in batch]
        for one, is_right in zip(batch, right, strict=True):
            if is_right:
                one.looked_s = now
        seen = sorted({one.host for one, is_right in zip(batch, right, strict=True)
                       if is_right and now >= one.seen_s + SEEN_S})
        if seen:
            with self._database.session() as writing:
                writing.connection().execute(SEEN, [{"k_name": host, "at": clock.wall()} for host in seen])
            for one in batch:
                one.seen_s = now if one.host in seen else one.seen_s
        return list(right)

    def _make_room(self, host: str, now: float) -> None:
        while self._all:
            oldest = next(iter(self._all.values()))
            if now < oldest.ends_s and len(self._all) < MOST:
                break
            self._drop(oldest)
        ours = self._of.get(host, [])
        if len(ours) >= MOST_OF_HOST:
            self._drop(min(ours, key=lambda one: one.looked_s))

    def _drop(self, gone: Session) -> None:
        if self._all.pop(gone.identity, None) is not None:
            ours = self._of[gone.host]
            ours.remove(gone)
            if not ours:
                del self._of[gone.host]
