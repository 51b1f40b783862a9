"""HTTP/1.1 client for hosts: standard library only, bounded in time and bytes, one connection kept open.

The server may be hostile or dying, so every answer has a limit in bytes and every wait one in seconds.
A Client is used by one thread; parallel fetchers make one each.
"""

from __future__ import annotations

import http.client
import io
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from plumbing import clock
from plumbing.errors import CorruptError, NetworkError, UsageError, from_wire

Signer = Callable[[str, str, bytes], Mapping[str, str]]
"""(method, path with query, body) -> headers that authenticate the request; see plumbing.hostauth."""

_FAILURES = (OSError, http.client.HTTPException, UnicodeError)
"""What asking fails with; UnicodeError with a name or path, as a redirection tells it, that nothing can have."""


@dataclass(frozen=True)
class Response:
    """A whole answer; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> object:
        """Parse the body; raises CorruptError when it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise CorruptError(f"the server answered {self.status} with something that is not JSON") from error

    def accepted(self) -> object:
        """Return the JSON of a 2xx answer, None when it is empty; raises the error that any other answer names."""
        if 200 <= self.status < 300:
            return self.json() if self.body else None
        told = self.json()
        if not isinstance(told, dict) or not isinstance(told.get("value"), str):
            raise CorruptError(f"the server answered {self.status} without saying why; look at its log")
        raise from_wire(str(told.get("kind")), told["value"])


class Client:
    """Requests to one server, named by its base URL (http://host:port[/prefix])."""

    def __init__(self, base_url: str, *, timeout_s: float = 30.0, signer: Signer | None = None) -> None:
        try:
            parts = urlsplit(base_url)
            host, port = parts.hostname, parts.port  # reading the port checks it
        except ValueError:
            host = None
        if not host or parts.scheme not in {"http", "https"}:
            raise UsageError(f"{base_url!r} is not a server's URL; write it as http://name:port")
        self.base_url = base_url.rstrip("/")
        if parts.scheme == "https" and not hasattr(http.client, "HTTPSConnection"):
            raise UsageError(f"{base_url} needs TLS, which this runtime was built without; write it as http://: "
                             "signatures and digests, not TLS, are what is believed here")
        self._secure = parts.scheme == "https"
        self._host, self._port = host, port
        self._prefix = parts.path.rstrip("/")
        self.timeout_s = timeout_s
        self.signer = signer
        self._connection: http.client.HTTPConnection | None = None

    def twin(self) -> Client:
        """Return another client of the same server, for another thread."""
        return Client(self.base_url, timeout_s=self.timeout_s, signer=self.signer)

    def close(self) -> None:
        """Drop the connection; the next request opens a new one."""
        if self._connection is not None:
            with suppress(OSError):
                self._connection.close()
            self._connection = None

    def request(
        self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None,
        max_bytes: int = 16 << 20, deadline_s: float | None = None,
    ) -> Response:
        """Send one request and read the whole answer, at most `max_bytes` of it.

        `timeout_s` of the client bounds each wait; `deadline_s` the whole answer, so that it can't drip for ever.
        Any status is returned, not raised. Raises NetworkError when no complete answer comes.
        """
        reply = self._open(method, path, body, headers or {}, deadline_s)
        try:
            data = reply.read(max_bytes + 1)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._unreachable(path, error) from error
        if len(data) > max_bytes:
            self.close()
            raise CorruptError(f"{self.base_url}{path} answered with more than {max_bytes} bytes")
        if not reply.isclosed() and reply.will_close:
            self.close()
        return Response(reply.status, {k.lower(): v for k, v in reply.getheaders()}, data)

    def post_json(self, path: str, value: object, *, max_bytes: int = 16 << 20,
                  deadline_s: float | None = None) -> Response:
        """POST `value` as JSON; the rest is as `request` has it."""
        return self.request("POST", path, body=json.dumps(value).encode(),
                            headers={"Content-Type": "application/json"}, max_bytes=max_bytes, deadline_s=deadline_s)

    def get_range(self, path: str, offset: int, length: int, *, deadline_s: float | None = None) -> bytes:
        """Fetch exactly `length` bytes from `offset`; raises NetworkError or CorruptError."""
        span = f"bytes={offset}-{offset + length - 1}"
        answer = self.request("GET", path, headers={"Range": span}, max_bytes=length, deadline_s=deadline_s)
        if answer.status != http.client.PARTIAL_CONTENT:
            raise NetworkError(f"{self.base_url}{path} answered {answer.status} to a request for {span}")
        if len(answer.body) != length:
            raise CorruptError(f"{self.base_url}{path} sent {len(answer.body)} bytes for {span}")
        return answer.body

    def stream(self, path: str, *, deadline_s: float, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        """Yield the body of a 200 answer piece by piece; all of it must have come after `deadline_s` seconds."""
        reply = self._open("GET", path, b"", {}, deadline_s)
        if reply.status != http.client.OK:
            self.close()
            raise NetworkError(f"{self.base_url}{path} answered {reply.status}")
        try:
            while piece := reply.read(chunk_bytes):
                yield piece
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._unreachable(path, error) from error

    def _open(self, method: str, path: str, body: bytes, headers: Mapping[str, str],
              deadline_s: float | None = None) -> http.client.HTTPResponse:
        target = self._prefix + path
        plain = {"User-Agent": "reroot/1", **headers}
        kept_open = self._connection is not None
        until = None if deadline_s is None else clock.monotonic() + deadline_s
        try:
            return self._send(method, target, body, self._signed(method, target, body, plain), until)
        except _FAILURES as error:
            self.close()
            if not kept_open:
                raise self._unreachable(path, error) from error
        # A kept connection may have been closed by the server in the meantime. Signed anew: the first may have arrived.
        try:
            return self._send(method, target, body, self._signed(method, target, body, plain), until)
        except _FAILURES as error:
            self.close()
            raise self._unreachable(path, error) from error

    def _signed(self, method: str, target: str, body: bytes, headers: Mapping[str, str]) -> Mapping[str, str]:
        return headers if self.signer is None else {**headers, **self.signer(method, target, body)}

    def _send(self, method: str, target: str, body: bytes, headers: Mapping[str, str],
              until: float | None) -> http.client.HTTPResponse:
        if self._connection is None:
            kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
            self._connection = kind(self._host, self._port, timeout=self.timeout_s)
        elif self._connection.sock is not None:
            self._connection.sock.settimeout(self.timeout_s)  # a deadline may have left a shorter one
        self._connection.response_class = (
            http.client.HTTPResponse if until is None else _reply_until(until, self.timeout_s))
        self._connection.request(method, target, body=body or None, headers=dict(headers))
        return self._connection.getresponse()

    def _unreachable(self, path: str, error: Exception) -> NetworkError:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return NetworkError(f"{self.base_url}{path} does not answer ({reason}); check the address, the cable "
                            "and that `reroot serve` runs there")


class _Paced(io.RawIOBase):
    """What a socket sends, until a moment on the monotonic clock."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase, until: float, timeout_s: float) -> None:
        self._socket, self._raw, self._until, self._timeout_s = sock, raw, until, timeout_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int | None:  # type: ignore[override]
        left = self._until - clock.monotonic()
        if left <= 0:
            raise TimeoutError("it answers, and too slowly")
        self._socket.settimeout(min(self._timeout_s, left))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _reply_until(until: float, timeout_s: float) -> type[http.client.HTTPResponse]:
    """Return an answer's class whose head and body must have come by `until`."""

    class Reply(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, debuglevel: int = 0, method: str | None = None,
                     url: str | None = None) -> None:
            super().__init__(sock, debuglevel, method, url)
            raw = self.fp.detach()
            self.fp = io.BufferedReader(_Paced(sock, raw, until, timeout_s), 1 << 16)

    return Reply
