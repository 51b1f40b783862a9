"""Rollouts as they run: feeds rollout.executor what hosts reported, keeps its state, issues its orders; I/O.

One step is: lock the rollout's row, take in how its orders stand, let the executor decide, store, commit, then issue.
A crash between commit and issue leaves a host in flight without an order; the next step issues it. A host that has
an order of this rollout never gets another. The protocol is docs/protocols/rollout.md.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import threading
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from control import auth, book
from control.config import RolloutSection
from control.database import Database, HostRow, OrderRow, RolloutRow, unwritable
from control.losswatch import LossWatch, unanswered
from control.orders import Issuer, UnansweredError, Wish
from fleet.hosts import Host, Hosts, HostsFile
from plumbing import clock
from plumbing.errors import DiskError, NotFoundError, RefusedError, RerootError, UsageError
from rollout import plan as planning
from rollout import record
from rollout.capacity import Load
from rollout.executor import (
    FINAL,
    Command,
    Event,
    Failed,
    Halt,
    Healthy,
    Held,
    Pace,
    Phase,
    State,
    step,
)
from throttle.records import Lease

log = logging.getLogger("reroot.rollouts")
SWEEP_NONCES_S = 60.0
NAMED = 10
"""How many hosts a sentence names."""


@dataclass(frozen=True)
class Demand:
    """What an administrator asks of a rollout; None takes the site's default. Times in seconds."""

    release: str
    hosts: tuple[str, ...] = ()
    host_class: str | None = None
    recovery: str | None = None
    level: str | None = None
    update_time_s: float | None = None
    download_time_s: float | None = None
    servers: int | None = None
    per_server: int | None = None
    blast_budget: int | None = None
    failure_budget: int | None = None
    interval_s: float | None = None
    start_interval_s: float | None = None
    deadline_s: float | None = None
    minimum: Mapping[str, int] = field(default_factory=dict)


class Rollouts:
    """All rollouts of a site, and the loop that moves them."""

    def __init__(
        self, database: Database, hosts_file: HostsFile, issuer: Issuer, defaults: RolloutSection,
        ring: Callable[[str], None],
    ) -> None:
        self._database = database
        self._hosts_file = hosts_file
        self._issuer = issuer
        self._defaults = defaults
        self._ring = ring
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._nudged = asyncio.Event()
        self._silent: dict[str, str] = {}
        self._silent_lock = threading.Lock()
        self._losses = LossWatch(database, issuer, ring)

    # -- what administrators do ---------------------------------------------------------------------------------

    def start(self, demand: Demand, now: float) -> dict[str, object]:
        """Plan, check and record a rollout; its first step follows at once. Raises RefusedError, UsageError …"""
        members = chosen(self._hosts_file.current(), demand)
        _must_be_ready(members, book.host_rows(self._database))
        state = State(*_pace_and_waves(members, demand, self._defaults, self._hosts_file.current()))
        self._issuer.check_release(demand.release, demand.recovery, members)
        spec = {"release": demand.release, "recovery": demand.recovery, "level": demand.level}
        row = RolloutRow(id=str(uuid.uuid4()), created_s=now, changed_s=now, status=state.phase.value, spec=spec,
                         state=json.dumps(record.to_json(state)), knob_s=None)
        with self._lock, self._database.session() as session:  # two starts at once must see each other
            _must_be_free({host.name for host in members}, session)
            session.add(row)
        self._losses.ask(members, now)
        self.nudge()
        return _view(row, now)

    def look_again(self, host: str) -> None:
        """Something happened to a host's losses; from any thread."""
        self._losses.look_again(host)
        self.nudge()

    def command(self, rollout: str, command: Command, now: float) -> dict[str, object]:
        """Pause, resume or abort; raises RefusedError when the rollout is over."""
        self._advance(rollout, now, [command])
        return self.view(rollout, now)

    def set_knob(self, rollout: str, interval_s: float | None, now: float) -> dict[str, object]:
        """Set the interval between triggers, None for the rollout's own pace; raises RefusedError when it is over."""
        with self._database.session() as session:
            row = _locked(session, rollout)
            _must_go_on(row)
            row.knob_s = interval_s
        self.nudge()
        return self.view(rollout, now)

    def view(self, rollout: str, now: float) -> dict[str, object]:
        """Return one rollout as administrators see it; raises NotFoundError."""
        with self._database.reading() as session:
            row = session.get(RolloutRow, rollout)
        if row is None:
            raise NotFoundError(f"there is no rollout {rollout}; `reroot rollout list` shows what there is")
        return _view(row, now)

    def views(self, now: float) -> list[dict[str, object]]:
        """Return all rollouts, newest first."""
        with self._database.reading() as session:
            return [_view(row, now) for row in session.scalars(
                select(RolloutRow).order_by(RolloutRow.created_s.desc()))]

    # -- the loop -----------------------------------------------------------------------------------------------

    def nudge(self) -> None:
        """Have the loop look at once, from any thread."""
        with suppress(RuntimeError):  # the loop is closed: nothing runs any more
            self._loop.call_soon_threadsafe(self._nudged.set)

    async def run(self, stop: asyncio.Event) -> None:
        """Move the rollouts every tick, and when nudged, until `stop` is set."""
        forgotten = clock.monotonic()
        while not stop.is_set():
            self._nudged.clear()
            try:
                await asyncio.to_thread(self.tick, clock.wall())
                if clock.monotonic() - forgotten > SWEEP_NONCES_S:
                    forgotten = clock.monotonic()
                    await asyncio.to_thread(auth.forget_old_nonces, self._database, clock.wall())
            except OperationalError as error:  # a full disk: the server says so, waits, and goes on when there is room
                log.error("%s", unwritable(error))
            except (RerootError, OSError) as error:
                log.error("the rollouts were not looked at: %s", error)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._nudged.wait(), self._defaults.tick_s)

    def holder_silent(self, lease: Lease) -> None:
        """Charge a host that fell silent with a ticket in its hand to the rollout that it is in; from any thread.

        The next tick does it: a host that is in no rollout's flight is nobody's failure.
        """
        with self._silent_lock:
            self._silent[lease.holder] = (f"said nothing for {lease.lifetime_s} s while it held the ticket "
                                          f"{lease.ticket} of {lease.service}, which is quarantined")
        self.nudge()

    def _charge_silent(self, moving: Sequence[str], now: float) -> None:
        with self._silent_lock:
            silent, self._silent = self._silent, {}
        if not silent:
            return
        failures = [Failed(host, why) for host, why in silent.items()]
        for rollout in moving:
            try:
                self._advance(rollout, now, failures)  # the executor takes those that are in flight
            except (RerootError, OSError, OperationalError):
                with self._silent_lock:
                    self._silent = {**silent, **self._silent}
                raise

    def tick(self, now: float) -> None:
        """Close overdue orders, then give every rollout one step."""
        for order in book.sweep(self._database, now):
            log.warning("order %s of %s: %s", order.id, order.host, order.message)
        with self._database.reading() as session:
            moving = [row.id for row in _unfinished(session)]
        self._charge_silent(moving, now)
        for rollout in moving:
            try:
                self._advance(rollout, now, [])
            except (RerootError, OSError) as error:
                log.error("rollout %s: %s", rollout, error)

    def _advance(self, rollout: str, now: float, events: Sequence[Event]) -> None:
        with self._lock:
            found, ready = self._look(rollout, now)
            state, spec, untold = self._step(rollout, now, [*events, *found], ready)
            while untold and state.phase is Phase.RUNNING:
                failures: list[Event] = []
                for host in untold:
                    try:
                        self._tell(rollout, host, spec, state.pace.host_timeout_s, now)
                    except UnansweredError as error:  # it changed since it was looked at
                        failures.append(Held(host, error.sentence))
                    except (DiskError, OSError) as error:  # not the host's fault: the next step tells it
                        log.error("rollout %s: %s cannot be triggered yet: %s", rollout, host, error)
                    except RerootError as error:
                        log.error("rollout %s: %s cannot be triggered: %s", rollout, host, error.sentence)
                        failures.append(Failed(host, error.sentence))
                if not failures:
                    return
                state, spec, untold = self._step(rollout, now, failures, ready)

    def _look(self, rollout: str, now: float) -> tuple[list[Event], set[str]]:
        """Ask what losses say of hosts, before the transaction that may trigger them."""
        with self._database.reading() as session:
            row = session.get(RolloutRow, rollout)
            if row is None or row.status in FINAL:
                return [], set()
            state, knob_s = record.from_json(json.loads(row.state)), row.knob_s
        return self._losses.look(state, knob_s, self._hosts_file.current(), now)

    def _step(
        self, rollout: str, now: float, events: Sequence[Event], ready: Collection[str],
    ) -> tuple[State, Mapping[str, str | None], list[str]]:
        """Store one step of the executor; return the state and the hosts in flight that have no order yet."""
        with self._database.session() as session:
            row = _locked(session, rollout)
            if any(isinstance(event, Command) for event in events):
                _must_go_on(row)
            before = record.from_json(json.loads(row.state))
            orders = {order.host: order for order in session.scalars(select(OrderRow).where(
                OrderRow.rollout == rollout).order_by(OrderRow.issued_s))}
            # one that its host gave back for an unanswered loss is over: the host is told anew when there is an answer
            orders = {host: order for host, order in orders.items() if not unanswered(order) or
                      order.issued_s >= before.in_flight.get(host, math.inf)}
            heard = [event for order in orders.values() if (event := _event(order)) is not None]
            state, actions = step(before, [*heard, *events], now, row.knob_s, ready)
            if state != before:
                row.state, row.status, row.changed_s = json.dumps(record.to_json(state)), state.phase.value, now
            spec = dict(row.spec)
        for action in actions:
            if isinstance(action, Halt):
                log.error("rollout %s halted: %s", rollout, action.reason)
        return state, spec, [host for host in state.in_flight if host not in orders]

    def _tell(self, rollout: str, name: str, spec: Mapping[str, str | None], timeout_s: float, now: float) -> None:
        wish = Wish(host=name, release=spec["release"], recovery=spec.get("recovery"), level=spec.get("level"),
                    deadline_s=timeout_s, rollout=rollout)
        order = self._issuer.issue(wish, self._hosts_file.current(), now)
        log.info("rollout %s: %s has the order %s", rollout, name, order.id)
        self._ring(name)


def chosen(hosts: Hosts, demand: Demand) -> list[Host]:
    """Return the hosts a demand names, each once; raises UsageError or NotFoundError, never an empty list."""
    if bool(demand.hosts) == bool(demand.host_class):
        raise UsageError("a rollout needs either hosts or a class; give one of them")
    if demand.host_class:
        return list(hosts.with_class(demand.host_class))
    return [hosts.get(name) for name in dict.fromkeys(demand.hosts)]


def _unfinished(session: Session) -> Sequence[RolloutRow]:
    return session.scalars(select(RolloutRow).where(RolloutRow.status.not_in(FINAL))).all()


def _must_be_ready(members: Sequence[Host], rows: Mapping[str, HostRow]) -> None:
    """Raise RefusedError naming the hosts that could never be triggered."""
    unready = [f"{host.name} ({lack})" for host in members if (lack := _lacks(rows.get(host.name)))]
    if unready:
        raise RefusedError(f"{len(unready)} of {len(members)} hosts cannot be triggered: {_some(unready)}; enrol them "
                           "(docs/enrol.md) and start their agents, or leave them out")


def _lacks(row: HostRow | None) -> str:
    """Return what an upgrade order of this host would lack, empty when nothing."""
    if row is None or row.public_key is None:
        return "not enrolled"
    disks = (row.facts or {}).get("disks")
    if not isinstance(disks, dict):
        return "no inventory yet"
    missing = [name for name in ("root", "boot") if not isinstance(disks.get(name), dict)]
    return f"no {missing[0]} partition in its inventory" if missing else ""


def _must_be_free(names: Collection[str], session: Session) -> None:
    """Raise RefusedError when one of the hosts is in a rollout that is not over."""
    for row in _unfinished(session):
        state = record.from_json(json.loads(row.state))
        shared = [host for wave in state.waves for host in wave if host in names]
        if shared:
            verb = "is" if len(shared) == 1 else "are"
            raise RefusedError(f"{_some(shared)} {verb} in the rollout {row.id}, which is {row.status}; let it finish, "
                               f"end it with `reroot rollout abort {row.id}`, or leave them out")


def _must_go_on(row: RolloutRow) -> None:
    if row.status in FINAL:
        raise RefusedError(f"rollout {row.id} is {row.status}, which is final; `reroot rollout list` shows the others")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _pace_and_waves(
    members: Sequence[Host], demand: Demand, defaults: RolloutSection, hosts: Hosts,
) -> tuple[Pace, tuple[tuple[str, ...], ...]]:
    update_s = demand.update_time_s or defaults.update_time_s
    load = Load(len(members), update_s, demand.download_time_s or update_s, demand.servers or defaults.servers,
                demand.per_server or defaults.per_server)
    blast = demand.blast_budget or defaults.blast_budget
    planned = planning.plan(load, deadline_s=demand.deadline_s,
                            blast_budget=demand.blast_budget if demand.interval_s is None else None)
    if planned.refused:
        raise RefusedError(planned.refused)
    if planned.meets_deadline is False:
        raise RefusedError(f"the deadline needs {planned.capacity.servers_needed} servers and there are "
                           f"{load.servers}; add servers, allow more time, or leave hosts out")
    pace = planning.pace(load, blast_budget=blast, failure_budget=demand.failure_budget or defaults.failure_budget,
                         interval_s=demand.interval_s, start_interval_s=demand.start_interval_s)
    serves = {host.name: host.serves for host in hosts.by_name.values() if host.serves}
    for service in demand.minimum:
        if not any(service in served for served in serves.values()):
            raise NotFoundError(f"no host in hosts.toml serves {service!r}, of which a minimum shall stay up; "
                                "check its spelling")
    # A host without a known subnet is a subnet of its own: nothing is gained by keeping it from others.
    return pace, planning.order([(host.name, host.subnet or host.name) for host in members], serves, demand.minimum)


def _event(order: OrderRow) -> Event | None:
    if unanswered(order):
        return Held(order.host, order.message or "a loss that nobody answered for")
    match order.state:
        case "completed":
            return Healthy(order.host)
        case "failed":
            return Failed(order.host, order.message or "failed")
        case "cancelled":
            return Failed(order.host, order.message or "its order was cancelled")
    return None


def _locked(session: Session, rollout: str) -> RolloutRow:
    row = session.get(RolloutRow, rollout, with_for_update=True)
    if row is None:
        raise NotFoundError(f"there is no rollout {rollout}; `reroot rollout list` shows what there is")
    return row


def _view(row: RolloutRow, now: float) -> dict[str, object]:
    state = record.from_json(json.loads(row.state))
    return {"id": row.id, "release": row.spec.get("release"), "created": clock.iso(row.created_s),
            **record.view(state, now, row.knob_s)}
