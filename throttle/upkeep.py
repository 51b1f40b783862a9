"""Looks after providers: asks whether they are well, leaves out those that are not, and moves adaptive slots. I/O.

Every server asks for itself: what one cannot reach it does not name. The slots that load gives are written like
tickets, so all servers go by the same ones; whichever looks first when a step is due takes it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from plumbing import clock
from plumbing.errors import RerootError
from plumbing.http import Client
from throttle import adaptive, health
from throttle.health import Finding, Health
from throttle.records import Change, Tuned
from throttle.service import TicketService
from throttle.tickettab import Provider, Service
from throttle.view import View

log = logging.getLogger(__name__)

EVERY_S = 5.0
"""How often each provider is asked, in seconds."""
PATIENCE_S = 3.0
"""How long its answer may take, in seconds."""
AT_ONCE = 16
_MAX_ANSWER = 64 << 10


class Upkeep:
    """The checks and steps of one server's services."""

    def __init__(self, tickets: TicketService, check: Callable[[str], Finding] | None = None) -> None:
        """Look after `tickets`; `check` asks one URL and blocks meanwhile."""
        self._tickets = tickets
        self._check = check or ask
        self._known: dict[str, Health] = {}
        self._few = asyncio.Semaphore(AT_ONCE)

    async def run(self, stop: asyncio.Event, every_s: float = EVERY_S) -> None:
        """Look after the providers until `stop` is set."""
        while not stop.is_set():
            try:
                await self.look()
            except RerootError as error:
                log.error("the providers were not looked after: %s", error.sentence)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), every_s)

    async def look(self) -> None:
        """Ask every provider once, then take the steps that are due."""
        services = self._tickets.definitions()
        urls = {one.health for service in services.values() for one in service.providers if one.health}
        self._known = {url: known for url, known in self._known.items() if url in urls}
        await asyncio.gather(*(self._ask(url) for url in urls))
        self._tickets.leave_out({name: self._down(service) for name, service in services.items()})
        if any(service.adaptive is not None for service in services.values()):
            await self._tickets.change(lambda view, _now: (self._steps(view, list(services.values())), None))

    async def _ask(self, url: str) -> None:
        async with self._few:
            found = await asyncio.to_thread(self._check, url)
        known = self._known.get(url, Health())
        after = self._known[url] = health.judge(known, found)
        if after.down != known.down:
            log.warning("%s %s", url, f"is left out: {after.why}" if after.down else "is well again")

    def _down(self, service: Service) -> dict[str, str]:
        return {one.name: known.why for one in service.providers
                if (known := self._known.get(one.health)) is not None and known.down}

    def _steps(self, view: View, services: Sequence[Service]) -> list[Change]:
        found = []
        for service in services:
            for provider in service.providers if service.adaptive is not None else ():
                if provider.slots and (change := self._step(view, service, provider)) is not None:
                    found.append(change)
        return found

    def _step(self, view: View, service: Service, provider: Provider) -> Change | None:
        assert service.adaptive is not None
        pool, wall = view.pool(service.name), clock.wall()
        before = pool.tuned.get(provider.name)
        # Wall time, for other servers read it too: a clock that was set back delays nothing, see abs().
        if before is not None and abs(wall - before.changed_s) < service.adaptive.every_s:
            return None
        known = self._known.get(provider.health, Health())
        step = adaptive.step(service.adaptive, adaptive.Measure(
            provider.slots if before is None else before.slots, pool.taken[provider.name],
            self._tickets.waits(service.name), None if known.down else known.load))
        if before is not None and step.slots != before.slots:
            log.info("%s of %s: %s", provider.name, service.name, step.why)
        if before is not None and step.why == before.why:
            return None  # nothing new to say
        return Change(before, Tuned(service.name, provider.name, step.slots, step.why, wall))


def ask(url: str) -> Finding:
    """Ask one provider: `http://…` must answer 200, and may tell {"load": 0.5}; `tcp://name:port` must accept."""
    parts = urlsplit(url)
    if parts.scheme == "tcp":
        try:
            with socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE_S):
                return Finding()
        except OSError as error:
            return Finding(f"{url} does not accept ({error.strerror or error})")
    client = Client(f"http://{parts.netloc}", timeout_s=PATIENCE_S)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        answer = client.request("GET", target, max_bytes=_MAX_ANSWER, deadline_s=PATIENCE_S)
    except RerootError:
        return Finding(f"{url} does not answer")
    finally:
        client.close()
    return Finding(load=_load(answer.body)) if answer.status == 200 else Finding(f"{url} answered {answer.status}")


def _load(body: bytes) -> float | None:
    try:
        told = json.loads(body)
    except ValueError:
        return None
    load = told.get("load") if isinstance(told, dict) else None
    return float(load) if isinstance(load, int | float) and not isinstance(load, bool) and 0 <= load <= 100 else None
