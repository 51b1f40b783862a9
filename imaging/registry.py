"""An OCI registry as a client sees it: manifests, blobs, uploads. I/O: HTTP.

The OCI distribution specification 1.1: "Pulling" (GET, HEAD, Range), "Pushing a blob in chunks" (POST, PATCH …, PUT),
"Pushing manifests". A request that fails for a reason that may pass is made again; an upload that was cut asks the
registry how far it came and goes on there. What a registry sends is bounded, and believed by nobody before its digest
was compared.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import BinaryIO
from urllib.parse import quote, urljoin, urlsplit

from imaging.registry_auth import Credentials, challenge
from imaging.release import MANIFEST_TYPE
from imaging.store import INDEX_TYPE, MAX_JSON_BYTES
from plumbing.digest import DIGEST
from plumbing.errors import (
    ConfigError,
    CorruptError,
    NetworkError,
    NotFoundError,
    RefusedError,
    RerootError,
    UsageError,
)
from plumbing.http import Client, Response

CHUNK_BYTES = 16 << 20
"""How much of a blob one PATCH carries: what is sent again after a cut, and held in memory."""
PIECE_BYTES = 4 << 20
"""How much of a blob one GET asks for."""
ANSWER_S = 300.0
"""How long one answer may take, in seconds: a piece at 14 kB/s."""
ATTEMPTS = 6
PAUSE_S = 0.5
"""The wait before the second attempt, in seconds; it doubles, with jitter, up to 8 s."""
REDIRECTS = 5

_DOCKER = "application/vnd.docker.distribution.manifest"
_ACCEPTED = f"{MANIFEST_TYPE}, {INDEX_TYPE}, {_DOCKER}.v2+json, {_DOCKER}.list.v2+json"
"""Docker's schema 2 is the same by other names; an image to build from may be one."""
_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HOST = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?")


@dataclass(frozen=True)
class Place:
    """Where in which registry: `origin` is http(s)://host[:port], `reference` a tag, a digest or empty."""

    origin: str
    repository: str
    reference: str = ""

    @property
    def host(self) -> str:
        """The registry's name and port."""
        return self.origin.partition("://")[2]

    def __str__(self) -> str:
        mark = "@" if DIGEST.fullmatch(self.reference) else ":"
        return f"{self.host}/{self.repository}{mark if self.reference else ''}{self.reference}"

    @classmethod
    def parse(cls, text: str, *, plain: bool = False) -> Place:
        """Read registry/repository[:tag|@digest], HTTPS unless `plain` or written with http://; raises UsageError."""
        scheme, there, rest = text.rpartition("://")
        host, _, path = rest.partition("/")
        path, at, digest = path.partition("@")
        name, colon, tag = (path, "", "") if at else path.partition(":")
        scheme = scheme if there else "http" if plain else "https"
        if (scheme not in {"http", "https", "docker"} or not _HOST.fullmatch(host) or not _NAME.fullmatch(name)
                or (colon and not _TAG.fullmatch(tag)) or (at and not DIGEST.fullmatch(digest))):
            raise UsageError(f"{text!r} is no place in a registry; write REGISTRY[:PORT]/REPOSITORY[:TAG], such as "
                             "registry.example.org/os/debian:13.1-amd64; a repository is in lower case")
        if scheme == "docker":
            scheme = "http" if plain else "https"
        return cls(f"{scheme}://{host}", name, tag or digest)


class Registry:
    """One repository of one registry, used by one thread. `answer_s` is how long any answer may take, in seconds."""

    def __init__(self, place: Place, credentials: Credentials | None = None, *,
                 pause: Callable[[float], None] = time.sleep, chunk_bytes: int = CHUNK_BYTES) -> None:
        if credentials is not None and place.origin.startswith("http://") and not _local(place.origin):
            raise RefusedError(f"the password for {place.host} would go over the network in clear; use https, or give "
                               "no credentials")
        self.place = place
        self._credentials = credentials
        self._authorization = f"Bearer {credentials.token}" if credentials and credentials.token else ""
        self._pause = pause
        self._chunk_bytes = chunk_bytes
        self._clients: dict[str, Client] = {}
        self._reached = False
        self.answer_s = ANSWER_S

    # -- pulling ------------------------------------------------------------------------------------------------

    def manifest(self, reference: str) -> bytes:
        """Return the manifest or image index that a tag or digest names; raises NotFoundError. Not checked."""
        answer = self._ask("GET", f"manifests/{reference}", headers={"Accept": _ACCEPTED},
                           max_bytes=MAX_JSON_BYTES)
        return answer.body

    def tags(self) -> list[str]:
        """Return the tags of the repository as the registry tells them; raises NotFoundError."""
        told = self._ask("GET", "tags/list").json()
        found = told.get("tags") if isinstance(told, dict) else None
        return sorted(tag for tag in found or [] if isinstance(tag, str) and _TAG.fullmatch(tag))

    def has_blob(self, digest: str) -> bool:
        """Whether the repository has the blob."""
        try:
            self._ask("HEAD", f"blobs/{digest}")
        except NotFoundError:
            return False
        return True

    def blob(self, digest: str, size: int, offset: int = 0) -> Iterator[bytes]:
        """Yield the blob from byte `offset` to `size`, piece by piece; not checked."""
        while offset < size:
            length = min(PIECE_BYTES, size - offset)
            yield self.span(digest, offset, length, attempts=ATTEMPTS)
            offset += length

    def span(self, digest: str, offset: int, length: int, *, attempts: int = 1) -> bytes:
        """Return `length` bytes of the blob from `offset`; not checked."""
        answer = self._send("GET", self._url(f"blobs/{digest}"), max_bytes=max(length, 1 << 16), attempts=attempts,
                            headers={"Range": f"bytes={offset}-{offset + length - 1}"})
        whole = answer.status == http.client.OK and offset == 0 and len(answer.body) == length
        if not whole and answer.status != http.client.PARTIAL_CONTENT:
            raise NetworkError(f"{self.place.host} does not send parts of a blob (it answered {answer.status}); "
                               "use `skopeo copy` to a folder and `reroot image import`")
        if len(answer.body) != length:
            raise CorruptError(f"{self.place.host} sent {len(answer.body)} bytes of {digest[:19]}… instead of "
                               f"{length}; try again, and ask who runs it")
        return answer.body

    def close(self) -> None:
        """Drop every connection; the next request opens a new one."""
        for client in self._clients.values():
            client.close()

    # -- pushing ------------------------------------------------------------------------------------------------

    def upload(self, digest: str, size: int, content: BinaryIO, *, begun: str = "",
               told: Callable[[int, str], None] | None = None) -> None:
        """Send a blob of `size` bytes, in chunks, and have it kept as `digest`.

        `begun` is the URL of an upload that was cut short earlier; it goes on where the registry says it is, or from
        the start when the registry has forgotten it. `told` hears before each step how many bytes are there, and the
        URL.
        """
        location, done = self._resumed(begun) if begun else ("", 0)
        failures = 0
        while True:
            try:
                if not location:
                    location, done = self._begin(), 0
                while done < size:
                    if told is not None:
                        told(done, location)
                    content.seek(done)
                    data = content.read(min(self._chunk_bytes, size - done))
                    location, done = self._chunk(location, done, data)
                    failures = 0
                mark = "&" if "?" in location else "?"
                self._send("PUT", f"{location}{mark}digest={quote(digest, safe=':')}", attempts=1)
                return
            except (NetworkError, NotFoundError):
                failures += 1
                if failures >= ATTEMPTS:
                    raise
                self._wait(failures)
                if self.has_blob(digest):  # the answer to the last PUT was lost, or somebody else sent it
                    return
                location, done = self._resumed(location) if location else ("", 0)

    def put_manifest(self, reference: str, data: bytes, media_type: str = MANIFEST_TYPE) -> None:
        """Publish a manifest whose blobs are all there under a tag or its digest."""
        self._ask("PUT", f"manifests/{reference}", body=data, headers={"Content-Type": media_type})

    def _begin(self) -> str:
        return self._location(self._ask("POST", "blobs/uploads/"))

    def _chunk(self, location: str, done: int, data: bytes) -> tuple[str, int]:
        # Not made again blindly: it may have arrived. The caller asks how far the upload came.
        answer = self._send("PATCH", location, body=data, attempts=1, headers={
            "Content-Type": "application/octet-stream", "Content-Range": f"{done}-{done + len(data) - 1}"})
        return self._location(answer), done + len(data)

    def _resumed(self, location: str) -> tuple[str, int]:
        """Return where an upload goes on and how many bytes are there; nothing and 0 when it is gone."""
        try:
            answer = self._send("GET", location)
        except (NotFoundError, NetworkError):
            return "", 0
        span = re.fullmatch(r"(?:bytes=)?0-(\d{1,18})", answer.headers.get("range", ""))
        if span is None:
            return "", 0
        # An empty upload is told as 0-0, as is one of a single byte; nobody sends single bytes.
        last = int(span[1])
        return self._location(answer), last + 1 if last else 0

    def _location(self, answer: Response) -> str:
        told = answer.headers.get("location")
        if not told:
            raise NetworkError(f"{self.place.host} took an upload and did not say where; is it an OCI registry?")
        return self._led(f"{self.place.origin}/", told)

    # -- requests -----------------------------------------------------------------------------------------------

    def _ask(self, method: str, what: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None,
             max_bytes: int = 1 << 20) -> Response:
        return self._send(method, self._url(what), body=body, headers=headers, max_bytes=max_bytes)

    def _url(self, what: str) -> str:
        return f"{self.place.origin}/v2/{self.place.repository}/{what}"

    def _send(self, method: str, url: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None,
              max_bytes: int = 1 << 20, attempts: int = ATTEMPTS) -> Response:
        """Return a 2xx answer; raises NotFoundError, RefusedError, ConfigError, or NetworkError after all attempts."""
        for attempt in range(1, attempts + 1):
            try:
                answer = self._authorized(method, url, body, headers or {}, max_bytes)
            except NetworkError as error:
                if attempt == attempts or not self._reached:  # a wrong name stays wrong
                    raise NetworkError(f"the registry {self.place.host} does not answer ({error.__cause__ or error}); "
                                       "check its name and port, and whether it speaks http or https; the same "
                                       "command goes on where it stopped") from error
            else:
                self._reached = True
                if 200 <= answer.status < 300:
                    return answer
                if attempt == attempts or not (answer.status >= 500 or answer.status == 429):
                    raise self._refusal(answer)
            self._wait(attempt)
        raise AssertionError("unreachable")

    def _authorized(self, method: str, url: str, body: bytes, headers: Mapping[str, str], max_bytes: int) -> Response:
        answer = self._followed(method, url, body, headers, max_bytes)
        if answer.status != 401:
            return answer
        wanted = challenge(answer.headers.get("www-authenticate", ""))
        known = self._credentials
        if wanted.scheme == "bearer":
            query = wanted.token_query(f"repository:{self.place.repository}:pull,push")
            self._authorization = f"Bearer {self._token(wanted.parameters.get('realm', ''), query)}"
        elif wanted.scheme == "basic" and known is not None and known.user:
            self._authorization = known.basic()
        else:
            return answer
        return self._followed(method, url, body, headers, max_bytes)

    def _token(self, realm: str, query: str) -> str:
        parts = urlsplit(self._led("", realm))
        origin = f"{parts.scheme}://{parts.netloc}"
        if self._credentials is not None and parts.scheme != "https" and not _local(origin):
            raise RefusedError(f"{self.place.host} asks for its password to be sent to {origin} in clear; nothing was "
                               "sent, ask who runs it")
        known = self._credentials
        headers = {"Authorization": known.basic()} if known is not None and known.user else {}
        target = f"{parts.path}?{'&'.join(filter(None, (parts.query, query)))}"
        answer = self._client(origin).request("GET", target, headers=headers, max_bytes=1 << 20,
                                              deadline_s=self.answer_s)
        if answer.status != 200:
            raise self._refusal(answer)
        told = answer.json()
        token = (told.get("token") or told.get("access_token")) if isinstance(told, dict) else None
        if not isinstance(token, str) or not re.fullmatch(r"[!-~]{1,65536}", token):
            raise NetworkError(f"{origin} gave no token; is it a registry's token server?")
        return token

    def _followed(self, method: str, url: str, body: bytes, headers: Mapping[str, str], max_bytes: int) -> Response:
        for _ in range(REDIRECTS):
            parts = urlsplit(url)
            origin = f"{parts.scheme}://{parts.netloc}"
            ours = origin == self.place.origin  # nobody else is shown who we are
            sent = {**headers, **({"Authorization": self._authorization} if ours and self._authorization else {})}
            target = f"{parts.path}{f'?{parts.query}' if parts.query else ''}"
            answer = self._client(origin).request(method, target, body=body, headers=sent, max_bytes=max_bytes,
                                                  deadline_s=self.answer_s)
            if answer.status not in {301, 302, 303, 307, 308} or method not in {"GET", "HEAD"}:
                return answer
            url = self._led(url, answer.headers.get("location", ""))
        raise NetworkError(f"{self.place.host} redirects without end")

    def _led(self, url: str, told: str) -> str:
        """Return where the registry leads from `url`."""
        try:
            found = urljoin(url, told)
            urlsplit(found)
        except ValueError as error:
            raise CorruptError(f"{self.place.host} leads to {told[:80]!r}, which is no address; ask who runs it"
                               ) from error
        return found

    def _client(self, origin: str) -> Client:
        if origin not in self._clients:
            self._clients[origin] = Client(origin)
        return self._clients[origin]

    def _wait(self, attempt: int) -> None:
        self._pause(min(PAUSE_S * 2 ** (attempt - 1), 8.0) * random.uniform(0.5, 1.0))  # noqa: S311 - jitter

    def _refusal(self, answer: Response) -> RerootError:
        """Return the error for an answer that is not what was asked for."""
        why = f"{answer.status}{_said(answer)}"
        if answer.status in {401, 403}:
            given = "the credentials given" if self._credentials else "no credentials"
            return ConfigError(f"{self.place} cannot be used with {given} ({why}); log in with `skopeo login "
                               f"{self.place.host}`, or name the file with --authfile")
        if answer.status == 404:
            return NotFoundError(f"{self.place} is not there ({why}); `skopeo list-tags docker://{self.place.host}/"
                                 f"{self.place.repository}` shows what is")
        if answer.status >= 500 or answer.status in {408, 416, 429}:
            return NetworkError(f"the registry {self.place.host} fails ({why}); try again, the same command goes on "
                                "where it stopped")
        return RefusedError(f"the registry {self.place.host} refused ({why})")


def _said(answer: Response) -> str:
    """Return a registry's own words, cut and printable; its words are a stranger's."""
    try:
        first = json.loads(answer.body)["errors"][0]
        words = f"{first['code']} {first.get('message', '')}"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return ""
    return ": " + "".join(letter if letter.isprintable() else "?" for letter in words[:200]).strip()


def _local(origin: str) -> bool:
    """Whether a server is on this machine, which has no network between."""
    host = urlsplit(origin).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
