"""One process of hosts that get, hold, renew, return or forget tickets, and write down what they asked and were told.

Usage: holders.py WISH, a file with {"hosts": [[name, key in hex] …], "urls": [...], "service", "seed", "history"}.
Each host is a thread. A line is in the history before the request leaves, so of a host that dies over it the answer is
unknown. Hosts end when the process is killed, in the middle of whatever they do.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from plumbing import clock, hostauth
from plumbing.conversation import Conversation
from plumbing.errors import RerootError
from plumbing.http import Client

TIMEOUT_S = 15.0
"""Longer than the server holds a request, in seconds."""
OUTCOMES = {200: "ok", 204: "ok", 403: "refused", 429: "busy"}
FORGETFUL = 0.1
"""How often a host does not return its ticket."""
HOLD_S = 0.2


class Host:
    """One host of the site."""

    def __init__(self, name: str, key: str, wish: dict[str, object], write: Callable[[bytes], object]) -> None:
        private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key))
        urls = wish["urls"]
        assert isinstance(urls, list)
        def sign(method: str, target: str, body: bytes) -> Mapping[str, str]:
            return hostauth.sign(private, name, clock.wall(), method, target, body)

        # to each server sometimes in a session, sometimes not
        self._clients = [kind for url in urls for kind in (
            Client(url, timeout_s=TIMEOUT_S, signer=sign), Conversation(url, sign, timeout_s=TIMEOUT_S))]
        self._name, self._service, self._write = name, wish["service"], write
        self._chance = random.Random(f"{wish['seed']} {name}")
        self._numbers = itertools.count()
        self._pause = threading.Event()

    def live(self) -> None:
        """Ask and hold for ever."""
        while True:
            answer = self._ask("get", "POST", "/api/v1/tickets", {"service": self._service})
            if "ticket" in answer:
                self._hold(str(answer["ticket"]), float(str(answer["lifetime_s"])))
            else:
                self._pause.wait(self._chance.uniform(0.05, 0.4))  # the server may be down, or all slots taken

    def _hold(self, ticket: str, lifetime_s: float) -> None:
        for _ in range(self._chance.choice((0, 1, 1, 2))):
            self._pause.wait(self._chance.uniform(0, HOLD_S))
            if "ticket" not in self._ask("renew", "POST", f"/api/v1/tickets/{ticket}/renew", {}, ticket):
                return
        self._pause.wait(self._chance.uniform(0, HOLD_S))
        if self._chance.random() < FORGETFUL:
            self._pause.wait(self._chance.uniform(0, 1.5 * min(lifetime_s, 1.0)))
        else:
            self._ask("return", "DELETE", f"/api/v1/tickets/{ticket}", None, ticket)

    def _ask(self, verb: str, method: str, path: str, value: object, ticket: str = "") -> dict[str, object]:
        """Make one request and write down both ends of it; returns the JSON of a 200, else nothing."""
        identity = f"{self._name}-{next(self._numbers)}"
        self._say(id=identity, holder=self._name, verb=verb, invoked_s=clock.monotonic(), ticket=ticket)
        try:
            body = b"" if value is None else json.dumps(value).encode()
            answer = self._chance.choice(self._clients).request(method, path, body=body)
            outcome = OUTCOMES.get(answer.status, "unknown")
            told = answer.json() if answer.status == 200 else {}
        except RerootError:
            return {}
        if outcome == "unknown":
            print(answer.status, answer.body, file=sys.stderr)
            return {}
        assert isinstance(told, dict)
        self._say(id=identity, returned_s=clock.monotonic(), outcome=outcome, ticket=told.get("ticket", ticket),
                  lifetime_s=told.get("lifetime_s", 0.0))
        return told

    def _say(self, **entry: object) -> None:
        self._write(json.dumps(entry).encode() + b"\n")


def main(wish: dict[str, object]) -> None:
    """Let all hosts live until somebody ends them."""
    history = os.open(str(wish["history"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    hosts = wish["hosts"]
    assert isinstance(hosts, list)
    for name, key in hosts:
        host = Host(name, key, wish, partial(os.write, history))
        threading.Thread(target=host.live, daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_bytes()))
