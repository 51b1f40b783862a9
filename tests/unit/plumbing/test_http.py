"""The HTTP client against servers that drip, and in a runtime without TLS."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from plumbing import clock
from plumbing.errors import NetworkError, UsageError
from plumbing.http import Client


@contextmanager
def dripping() -> Iterator[str]:
    """A server that answers at once and then sends a byte now and then, for ever."""
    listener, over = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def serve() -> None:
        line, _ = listener.accept()
        with line:
            line.recv(4096)
            line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            try:
                while not over.wait(0.05):
                    line.sendall(b".")
            except OSError:
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    over.set()
    thread.join(5)
    listener.close()


def test_a_stream_that_drips_ends_at_its_deadline() -> None:
    with dripping() as url:
        began = clock.monotonic()
        with pytest.raises(NetworkError, match=r"timed out|too slowly"):
            list(Client(url, timeout_s=10).stream("/blob", deadline_s=0.5))
        assert clock.monotonic() - began < 5


def test_https_without_tls_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host runtime carries no ssl module, and http.client has no HTTPSConnection then."""
    monkeypatch.delattr(http.client, "HTTPSConnection")
    with pytest.raises(UsageError, match=r"https://control needs TLS, which this runtime was built without"):
        Client("https://control")
    Client("http://control")
