"""A real HTTP server on the loopback for the tests of sources and trust: files with Range, and ways to misbehave."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range")))
        self.server.clients.add(self.client_address)
        special = self.server.answers.get(self.path)
        (special or Handler.file)(self)

    def file(self) -> None:
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send(404, b"")
            return
        self.ranged(path.read_bytes())

    def ranged(self, data: bytes) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if wanted is None:
            self.send(200, data)
            return
        first, last = int(wanted[1]), int(wanted[2])
        self.send(206 if first < len(data) else 416, data[first:last + 1])

    def send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Serves `folder`; `answers` replaces what a path gets."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.clients: set[object] = set()
        self.stop = threading.Event()
        self.line = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Server:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stop.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients here hang up on purpose


@contextmanager
def serving(folder: Path, path: str, data: bytes) -> Iterator[Server]:
    """Serve `data` at `path` from a file below `folder`."""
    file = folder / path.lstrip("/")
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    with Server(folder) as server:
        yield server


def drip(handler: Handler) -> None:
    """Promise much and send a byte at a time until the test is over."""
    handler.send_response(206)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while not handler.server.stop.wait(0.02):
        handler.wfile.write(b"x")
        handler.wfile.flush()
