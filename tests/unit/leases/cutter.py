"""A proxy that loses answers: the request reached the server, which did what it says, and nobody is told."""

from __future__ import annotations

import random
import socket
import threading
from contextlib import suppress


class Cutter:
    """Passes connections on to a port of this machine, and cuts some of them when the answer comes."""

    def __init__(self, port: int, seed: int) -> None:
        self._to = port
        self._chance = random.Random(seed)
        self.share = 0.0
        """How many of the answers are lost, 0 to 1."""
        self.lost = 0
        self.spoken = 0
        """How often something of a request in a session came by."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Cut everything."""
        self.share = 1.0
        self._listener.close()
        for one in list(self._open):
            _cut(one)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._to))
                except OSError:
                    near.close()
                    continue
                self._open |= {near, far}
                threading.Thread(target=self._pass, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(far, near, True), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.spoken += not answers and b"\r\nReroot-Session: " in data
                if answers and self._chance.random() < self.share:
                    self.lost += 1
                    break
                sink.sendall(data)
        for one in (source, sink):
            _cut(one)
            self._open.discard(one)


def _cut(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
