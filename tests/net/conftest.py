"""A wire: the lab's namespace as the server's side, a second namespace as a client, joined by a veth."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from pyroute2 import netns
from pyroute2.iproute.linux import NetNS

from lab.network import Network
from plumbing.run import Completed, run

T = TypeVar("T")


@dataclass
class Wire:
    """`server` is where services run (10.77.1.1 on lan1), `client` a namespace with one interface, eth0."""

    server: Network
    client: str
    loop: asyncio.AbstractEventLoop
    mac: str = "52:54:00:77:01:0b"
    closers: list[Callable[[], None]] = field(default_factory=list)

    def serve(self, work: Coroutine[object, object, T]) -> T:
        """Run a coroutine on the server's event loop, whose thread lives in the server's namespace."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self.loop)
        return future.result(10)

    def ask(self, *argv: str | Path, check: bool = True, stdin: bytes | None = None) -> Completed:
        """Run a program in the client's namespace."""
        return run(["nsenter", f"--net=/run/netns/{self.client}", "--", *argv], timeout_s=60, check=check, stdin=stdin)


@pytest.fixture
def wire() -> Iterator[Wire]:
    name = f"t{os.getpid()}"
    network, client = Network(name), f"reroot-{name}-client"
    network.up()
    netns.create(client)
    loop = asyncio.new_event_loop()
    try:
        with NetNS(network.namespace) as link:
            link.link("add", ifname="wire", kind="veth", peer={"ifname": "eth0", "net_ns_fd": client})
            bridge = link.link_lookup(ifname="lan1")[0]
            link.link("set", index=link.link_lookup(ifname="wire")[0], master=bridge, state="up")
        with NetNS(client) as link:
            index = link.link_lookup(ifname="eth0")[0]
            link.link("set", index=index, address=Wire.mac, state="up")
            link.link("set", index=1, state="up")

        def live() -> None:
            with network.inside():
                loop.run_forever()

        thread = threading.Thread(target=live, daemon=True)
        thread.start()
        made = Wire(network, client, loop)
        yield made
        for close in made.closers:
            close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
    finally:
        netns.remove(client)
        network.down()
