"""A client that asks often: its requests are in a session, which the first of them opens. I/O: HTTP.

A session that the server does not know (any more) is opened anew, once for a request: what is refused so has changed
nothing. With a server that has no sessions every request is signed, as by any other client. The protocol is
docs/protocols/host-api.md.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass

from plumbing import clock, session
from plumbing.errors import RerootError
from plumbing.http import Client, Response, Signer


@dataclass
class _Session:
    """An open one; `ends_s` is on this machine's monotonic clock, `count` that of the last request."""

    identity: str
    secret: session.Secret
    ends_s: float
    count: int = 0


class Conversation(Client):
    """Requests of one host to one server; used by one thread, as every Client."""

    def __init__(self, base_url: str, signer: Signer, *, timeout_s: float = 30.0) -> None:
        """Ask the server at `base_url`; `signer` signs what opens a session."""
        super().__init__(base_url, timeout_s=timeout_s, signer=self._authenticated)
        self._signer, self._name = signer, ""
        self._session: _Session | None = None
        self._possible = True

    def request(
        self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None,
        max_bytes: int = 16 << 20, deadline_s: float | None = None,
    ) -> Response:
        """See Client; `deadline_s` bounds each of the requests that this one may take."""
        for again in (True, False):
            if self._possible and (self._session is None or clock.monotonic() >= self._session.ends_s):
                self._begin(deadline_s)
            answer = super().request(method, path, body=body, headers=headers, max_bytes=max_bytes,
                                     deadline_s=deadline_s)
            if answer.status != http.client.UNAUTHORIZED or self._session is None or not again:
                break
            self._session = None
        return answer

    def _begin(self, deadline_s: float | None) -> None:
        """Open a session, or see that this server has none."""
        self._session = None
        key = session.new_key()
        ours = session.public_of(key)
        sent_s = clock.monotonic()
        answer = super().request("POST", session.OPENING, body=json.dumps({"public": ours}).encode(),
                                 headers={"Content-Type": "application/json"}, max_bytes=1 << 16,
                                 deadline_s=deadline_s)
        try:
            match answer.accepted():
                case {"session": str(name), "public": str(theirs), "lifetime_s": int(life_s)} if (
                        session.IDENTITY.fullmatch(name) and 0 < life_s <= session.MAX_LIFETIME_S):
                    secret = session.agree(key, theirs, self._name, name, (ours, theirs))
                    self._session = _Session(name, secret, sent_s + life_s)
                    return
        except RerootError:
            pass  # the request itself will be told what is wrong
        self._possible = answer.status >= http.client.INTERNAL_SERVER_ERROR

    def _authenticated(self, method: str, target: str, body: bytes) -> Mapping[str, str]:
        if self._session is None:
            headers = self._signer(method, target, body)
            self._name = headers.get("Reroot-Host", "")
            return headers
        self._session.count += 1
        return session.speak(self._session.secret, self._session.identity, self._session.count, method, target, body)
