"""A layer in an OCI registry, asked for ranges. I/O.

The pull side of the OCI distribution specification 1.1 (GET /v2/NAME/blobs/DIGEST with Range), the token scheme that
Docker's registry documents (401, a challenge naming realm, service and scope, a bearer token from there), and a
redirect to where a registry's storage keeps the blob. Bounded: one token and one redirect for each range.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Mapping
from urllib.parse import urlencode, urljoin, urlsplit

from imaging.sources import PATIENCE_S, SLOWEST, HttpSource, checked_range
from plumbing.errors import CorruptError, NetworkError, TrustError, UsageError
from plumbing.http import Client, Response

TOKEN_BYTES = 64 << 10
"""The longest answer of a token server that is read, in bytes."""
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*")
_PARAMETER = re.compile(r'([A-Za-z]+)="([^"]*)"')
_REDIRECTS = {301, 302, 307, 308}


class RegistrySource:
    """A layer in `repository` of the registry at `base_url`; used from several threads at once.

    `login` is a user and a password: for the token server when the registry names one, for the registry otherwise. It
    is sent over whatever `base_url` and the realm are, so use a password that only reads.
    """

    def __init__(self, base_url: str, repository: str, layer_digest: str, login: tuple[str, str] | None = None, *,
                 timeout_s: float = PATIENCE_S) -> None:
        if not _REPOSITORY.fullmatch(repository) or len(repository) > 255:
            raise UsageError(f"{repository[:90]!r} is not a repository's name; write lower case words joined by /")
        self._http = HttpSource(base_url, layer_digest, repository=repository, timeout_s=timeout_s)
        self.name = f"{self._http.name}/{repository}"
        self._scope = f"repository:{repository}:pull"
        self._timeout_s = timeout_s
        self._basic = login and "Basic " + base64.b64encode(":".join(login).encode()).decode("ascii")
        self._lock = threading.Lock()
        self._authorization: str | None = None

    def read(self, offset: int, length: int) -> bytes:
        """Fetch a range; asks for a token when the registry wants one, or a new one when the last has expired."""
        used = self._authorization
        answer = self._ask(offset, length, used)
        if answer.status == 401:
            answer = self._ask(offset, length, self._renewed(used, answer.headers.get("www-authenticate", "")))
        if answer.status in {401, 403}:
            raise NetworkError(f"{self.name} does not let this login read (it answered {answer.status}); check user "
                               "and password")
        if answer.status in _REDIRECTS:
            answer = self._follow(answer.headers.get("location", ""), offset, length)
        return checked_range(answer, self.name, offset, length)

    def close(self) -> None:
        """Drop every connection; no thread may be reading."""
        self._http.close()

    def _ask(self, offset: int, length: int, authorization: str | None) -> Response:
        return self._http.ask(offset, length, {"Authorization": authorization} if authorization else {})

    def _follow(self, location: str, offset: int, length: int) -> Response:
        """Fetch from where the registry's storage has the blob; that place is told nothing about the login."""
        place = urlsplit(urljoin(self._http.url, location))
        client = Client(f"{place.scheme}://{place.netloc}", timeout_s=self._timeout_s)
        try:
            return client.request("GET", f"{place.path or '/'}{'?' + place.query if place.query else ''}",
                                  headers={"Range": f"bytes={offset}-{offset + length - 1}"},
                                  max_bytes=max(length, TOKEN_BYTES), deadline_s=self._timeout_s + length / SLOWEST)
        finally:
            client.close()

    def _renewed(self, used: str | None, challenge: str) -> str | None:
        """Return what to send as Authorization, new unless another thread has just got one."""
        with self._lock:
            if self._authorization == used:
                kind, _, rest = challenge.partition(" ")
                if kind.lower() == "bearer":
                    self._authorization = "Bearer " + self._token(dict(_PARAMETER.findall(rest)))
                elif kind.lower() == "basic" and self._basic and used is None:
                    self._authorization = self._basic
                else:
                    told = "refuses this one" if self._basic else "was given none"
                    raise NetworkError(f"{self.name} wants a login and {told}; check user and password")
            return self._authorization

    def _token(self, challenge: Mapping[str, str]) -> str:
        realm = urlsplit(challenge.get("realm", ""))
        query = urlencode({**({"service": challenge["service"]} if "service" in challenge else {}),
                           "scope": challenge.get("scope", self._scope)})
        client = Client(f"{realm.scheme}://{realm.netloc}", timeout_s=self._timeout_s)
        try:
            answer = client.request("GET", f"{realm.path or '/'}?{'&'.join(filter(None, (realm.query, query)))}",
                                    headers={"Authorization": self._basic} if self._basic else {},
                                    max_bytes=TOKEN_BYTES, deadline_s=self._timeout_s)
        finally:
            client.close()
        if answer.status != 200:
            raise TrustError(f"the token server {client.base_url} of {self.name} answered {answer.status}; check user "
                             "and password")
        value = answer.json()
        token = (value.get("token") or value.get("access_token")) if isinstance(value, dict) else None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise CorruptError(f"the token server {client.base_url} of {self.name} sent no token; check its log")
        return token
