"""Tickets as the control server's API sees them. I/O: the tickettab, the repository in a thread, the clock.

Requests that come while a commit is under way are decided together and written by one transaction; each is answered
after its commit, never before. The order of one round: read what others changed if the version moved, end what is
overdue, returns and renewals, then free slots to those who wait in the order in which they came.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from plumbing import clock
from plumbing.errors import BusyError, NotFoundError, RerootError
from throttle import choice, semaphore, tickettab
from throttle.line import Line
from throttle.records import Change, Lease, fence_of
from throttle.repository import Repository
from throttle.rounds import Job, Round, fail
from throttle.semaphore import Asker
from throttle.status import Status
from throttle.tab import Tab
from throttle.tickettab import Service
from throttle.view import View
from throttle.waiting import Request, Waiting

T = TypeVar("T")
log = logging.getLogger(__name__)

LOOK_AGAIN_S = 1.0
"""How often the repository is asked for what another process changed, in seconds."""
MAX_BATCH = 1000
"""Requests of one transaction: more would make the first of them wait for the last."""
MAX_LOST = 50
"""Commits that other processes may be faster with, one after another, before a round gives up."""


class Directory(Protocol):
    """What tickets need to know of hosts."""

    def near(self, host: str, providers: frozenset[str]) -> Mapping[str, int]:
        """Return those of `providers` that share a subnet with `host`, with the length of its prefix in bits."""

    def url(self, provider: str) -> str:
        """Return the base URL `provider` serves content at, empty when it is a pool and not a host."""


class TicketService:
    """Get, renew and give back tickets of the services in one tickettab."""

    def __init__(
        self, repository: Repository, tab: Path, directory: Directory, *,
        on_silent: Callable[[Lease], None] | None = None, executor: Executor | None = None,
    ) -> None:
        """Read the tickettab; raises ConfigError when it is wrong.

        The repository works in `executor`. `on_silent` is told, in the event loop, of each lease that was quarantined
        because nobody renewed it.
        """
        self._repository = repository
        self._directory = directory
        self._on_silent = on_silent
        self._executor = executor
        self._tab = Tab(tab)
        self._view = View()
        self._known = False  # whether the view is what the repository had at its version
        self._behind = False  # whether the repository has a newer one
        self._waiting = Waiting()
        self._queue: list[Job[Any] | Request] = []
        self._worker: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._down: Mapping[str, Mapping[str, str]] = {}

    def names(self) -> tuple[str, ...]:
        """Return the services of the tickettab as it was read last."""
        return tuple(self._tab.services)

    def definitions(self) -> Mapping[str, Service]:
        """Return the services as they stand in the tickettab now."""
        return self._tab.current()

    @property
    def problem(self) -> str | None:
        """What is wrong with the tickettab as it stands; the last good one is in force."""
        self._tab.current()
        return self._tab.problem

    # -- what hosts ask -----------------------------------------------------------------------------------------

    async def get(self, service: str, host: str, *, wait_s: float = 0.0, address: str = "") -> Lease:
        """Lease a slot to `host`, waiting up to `wait_s` for one; raises BusyError or NotFoundError.

        `address` is where the host asks from. Whoever got BusyError keeps its place for a while after the time that
        the error names.
        """
        request = self.ask(service, host, wait_s=wait_s, address=address)
        try:
            return await request.answer
        except asyncio.CancelledError:
            self.leave(request)
            raise

    def ask(self, service: str, host: str, *, wait_s: float = 0.0, address: str = "") -> Request:
        """Do as `get` does and return at once: its `answer` will have what that returns or raises."""
        self._defined(service)
        answer: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        request = Request(service, Asker(host, address=address), clock.monotonic() + wait_s, answer)
        self._submit(request)
        return request

    def leave(self, request: Request) -> None:
        """Give up a request whose answer was cancelled: whoever is behind it is next."""
        if request.joined:
            self._waiting.end_at(request, 0.0)
            self._wake()

    def renew(self, ticket: str, host: str) -> asyncio.Future[Lease]:
        """Begin the lifetime of `host`'s ticket anew; raises RefusedError when it is not held any more."""
        def rule(now: float) -> tuple[Sequence[Change], Lease]:
            lease = self._view.lease(fence_of(ticket))
            service = self._tab.services.get(lease.service) if lease is not None else None
            return semaphore.renew(self._view, service, ticket, host, now)

        return self._do(rule)

    def give_back(self, ticket: str, host: str) -> asyncio.Future[None]:
        """End `host`'s ticket; nothing happens when it ended before. Raises RefusedError on another's."""
        return self._do(lambda _now: (semaphore.release(self._view, ticket, host), None))

    async def held(self, service: str, host: str) -> Lease | None:
        """Return the live ticket that `host` holds of `service`."""
        return await self._do(lambda _now: ((), self._view.pool(service).held.get(host)))

    async def offer(self, service: str, host: str, slots: int, url: str, lifetime_s: int) -> None:
        """Have `host` provide `slots` of `service` at `url` for `lifetime_s` seconds, or anew.

        Raises NotFoundError, RefusedError when the service takes no offers, UsageError for numbers out of range.
        """
        known = self._defined(service)
        await self._do(lambda now: (semaphore.offer(self._view, known, host, slots, url, lifetime_s, now), None))

    async def withdraw(self, service: str, host: str) -> None:
        """End what `host` offers to `service`; raises NotFoundError when there is neither the offer nor the service."""
        def rule(_now: float) -> tuple[Sequence[Change], None]:
            changes = semaphore.withdraw(self._view, service, host)
            if not changes:
                self._defined(service)
            return changes, None

        await self._do(rule)

    def url(self, lease: Lease) -> str:
        """Return where the holder of `lease` fetches from, empty when the provider is not a host."""
        offer = self._view.pool(lease.service).offers.get(lease.provider)
        return offer.url if offer is not None else self._directory.url(lease.provider)

    # -- what the server asks -------------------------------------------------------------------------------------

    async def change(self, rule: Callable[[View, float], tuple[Sequence[Change], T]]) -> T:
        """Have `rule` look at the newest view at a monotonic time and write what it changes; for tuning."""
        return await self._do(lambda now: rule(self._view, now))

    def leave_out(self, down: Mapping[str, Mapping[str, str]]) -> None:
        """Name these providers of each service in no ticket, for the reasons given; all others may be named."""
        back = any(name not in down.get(service, {}) for service, names in self._down.items() for name in names)
        self._down = down
        if back:
            self._wake()

    def waits(self, service: str) -> int:
        """Return how many hosts have a place before a service of this server."""
        return len(self._waiting.line(service))

    async def status(self) -> list[Status]:
        """Return every service with its live leases, also those that the tickettab has no more."""
        await self._do(lambda _now: ((), None))
        now, services = clock.monotonic(), self._tab.current()
        gone = {name: Service(name, 1, ()) for name, pool in self._view.pools.items()
                if name not in services and (pool.held or pool.quarantined)}
        return [self._status(one, now, name in services) for name, one in {**services, **gone}.items()]

    async def run(self, stop: asyncio.Event) -> None:
        """End what is overdue and look for what other processes changed, until `stop` is set."""
        while not stop.is_set():
            try:
                await self._do(lambda _now: ((), None))
            except RerootError as error:
                log.error("the tickets were not looked at: %s", error.sentence)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), LOOK_AGAIN_S)
        self._waiting.end_all()
        self._wake()

    def _status(self, service: Service, now: float, defined: bool) -> Status:
        pool = self._view.pool(service.name)
        return Status(service, tuple(pool.held.values()), now, choice.slots(service, pool, now),
                      tuple(pool.quarantined.values()), dict(pool.offers), dict(pool.tuned),
                      dict(self._down.get(service.name, {})), self._waiting.line(service.name).places(), defined)

    def _defined(self, name: str) -> Service:
        found = self._tab.services.get(name) or self._tab.current().get(name)  # each round looks at the files too
        if found is None:
            raise NotFoundError(tickettab.unknown(name, self._tab.services, str(self._tab.path)))
        return found

    # -- rounds -------------------------------------------------------------------------------------------------

    def _do(self, rule: Callable[[float], tuple[Sequence[Change], T]]) -> asyncio.Future[T]:
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._submit(Job(rule, answer))
        return answer

    def _submit(self, one: Job[Any] | Request) -> None:
        self._queue.append(one)
        self._wake()

    def _wake(self) -> None:
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        while True:
            await asyncio.sleep(0)  # whoever comes in this turn of the loop is of the same round
            batch, self._queue = self._queue[:MAX_BATCH], self._queue[MAX_BATCH:]
            try:
                await self._round(batch)
            except Exception as error:
                if not isinstance(error, RerootError):
                    log.exception("a round of tickets failed")
                    error = RerootError("the ticket server failed at this; its log says where")
                for one in batch:
                    fail(one, error)
                    if isinstance(one, Request) and one.joined:
                        self._waiting.end_at(one, 0.0)
                self._end_overdue()
            if not self._queue:
                break
        self._arm()

    async def _round(self, batch: Sequence[Job[Any] | Request]) -> None:
        self._tab.current()
        self._end_overdue()  # whoever went away must not be served
        for _ in range(MAX_LOST):
            await self._catch_up()
            found = Round()
            try:
                self._decide(batch, found, clock.monotonic())
                written = await self._in_thread(
                    self._repository.commit, self._view.version, self._view.last_fence, tuple(found.changes))
            except BaseException:
                self._known = False  # it may have been written, or not: everything is read anew
                self._undo(found)
                raise
            if written:
                self._view.version += bool(found.changes)
                self._answer(found)
                self._end_overdue()
                return
            self._behind = True
            self._undo(found)
        raise BusyError("other ticket servers are faster all the time; try again")

    async def _in_thread(self, work: Callable[..., T], *words: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *words)

    async def _catch_up(self) -> None:
        """Read what other processes wrote."""
        if self._known and self._behind:
            caught = await self._in_thread(self._repository.since, self._view.version, clock.monotonic())
            if caught is not None:
                for key, record in caught.told:
                    self._view.put(key, record)
                self._view.version, self._behind = caught.version, False
                return
        if not self._known or self._behind:
            loaded = await self._in_thread(self._repository.load, clock.monotonic())
            self._view = View(loaded.version, loaded.last_fence, loaded.records)
            self._known, self._behind = True, False

    def _decide(self, batch: Sequence[Job[Any] | Request], found: Round, now: float) -> None:
        for name in list(self._view.pools):
            while changes := semaphore.expire(self._view, name, now):
                self._fold(found, changes)
        for one in batch:
            if isinstance(one, Request):
                self._begin(one, found, now)
                continue
            try:
                changed, answer = one.rule(now)
            except RerootError as error:
                found.answers.append((one, error))
            else:
                self._fold(found, changed)
                found.answers.append((one, answer))
        for name, line in self._waiting.services():
            self._serve(name, line, found, now)

    def _begin(self, request: Request, found: Round, now: float) -> None:
        """Renew the ticket that the asker has, or have it wait."""
        service = self._tab.services.get(request.service)
        if service is None:  # the tickettab was edited just now
            found.answers.append((request, NotFoundError(tickettab.unknown(
                request.service, self._tab.services, str(self._tab.path)))))
        elif request.asker.host in self._view.pool(service.name).held:
            place = self._waiting.line(service.name).leave(request.asker.host)
            if place is not None:  # it waited elsewhere, or an answer was lost
                found.left.append((service.name, place))
            others = [one for one in self._waiting.of(service.name, request.asker.host) if one is not request]
            self._grant(service, request.asker, [request, *others], found, now)
        else:
            self._waiting.join(request, now, self._slots(now))

    def _serve(self, name: str, line: Line, found: Round, now: float) -> None:
        """Give free slots of one service to those who wait."""
        service = self._tab.services.get(name)
        if service is None:
            return
        free = sum(choice.free(service, self._view.pool(name), now, self._down.get(name, ())).values())
        while free > 0 and (host := line.next()) is not None:
            requests = self._waiting.of(name, host)
            place = line.leave(host)
            assert place is not None
            found.left.append((name, place))
            if not self._grant(service, requests[0].asker, list(requests), found, now):
                return
            free -= 1

    def _grant(self, service: Service, asker: Asker, requests: list[Request], found: Round, now: float) -> bool:
        pool = self._view.pool(service.name)
        providers = frozenset([*(one.name for one in service.providers), *pool.offers])
        near = self._directory.near(asker.host, providers) if len(providers) > 1 else {}
        granted = semaphore.acquire(self._view, service, Asker(asker.host, near, asker.address) if near else asker, now,
                                    wall=clock.wall(), down=self._down.get(service.name, ()))
        if granted is None:
            return False
        changes, lease = granted
        self._fold(found, changes)
        found.answers += [(request, lease) for request in requests]
        return True

    def _fold(self, found: Round, changes: Sequence[Change]) -> None:
        for change in changes:
            self._view.fold(change)
            found.changes.append(change)

    def _undo(self, found: Round) -> None:
        for change in reversed(found.changes):
            self._view.fold(change.undone())
        for name, place in reversed(found.left):
            self._waiting.put_back(name, place)

    def _answer(self, found: Round) -> None:
        for one, answer in found.answers:
            if isinstance(one, Request):
                self._waiting.answered(one)
            if isinstance(answer, RerootError):
                fail(one, answer)
            elif not one.answer.done():
                one.answer.set_result(answer)
        wall = clock.wall()
        for change in found.changes:
            match change.before, change.after:
                case Lease(quarantined=False, since_s=float(since_s)) as back, None:
                    self._waiting.returned(back.service, max(0.0, wall - since_s))
                case _, Lease(quarantined=True) as silent if self._on_silent is not None:
                    self._on_silent(silent)

    def _end_overdue(self) -> None:
        """Answer those who waited as long as they wanted to."""
        now = clock.monotonic()
        slots = self._slots(now)
        for request, retry_s, ahead in self._waiting.ended(now, slots):
            count, before = slots(request.service), f", {ahead} hosts ahead" if ahead else ""
            fail(request, BusyError(f"all {count} tickets of {request.service} are taken{before}; ask again later",
                                    retry_after_s=retry_s))

    def _slots(self, now: float) -> Callable[[str], int]:
        """Return what tells how many slots a service has."""
        @cache
        def slots(name: str) -> int:
            service = self._tab.services.get(name)
            return 0 if service is None else sum(choice.slots(service, self._view.pool(name), now).values())

        return slots

    def _arm(self) -> None:
        """Look again when the next request ends, and for what other processes give back, while anybody waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting.held:
            now = clock.monotonic()
            until = min(now + LOOK_AGAIN_S, self._waiting.next_end() or now,
                        *(end for name, _ in self._waiting.services()
                          if (end := self._view.pool(name).first_end()) is not None))
            self._timer = asyncio.get_running_loop().call_later(max(0.0, until - now), self._wake)
