"""The orders and events on record: what the API and the rollout loop read and write of them; I/O on the database.

Each function is one short transaction. What a report means is decided by control.progress.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from control import progress
from control.database import Database, EventRow, HostRow, OrderRow
from control.progress import Goal, Report, Standing
from plumbing import clock
from plumbing.errors import BusyError, NotFoundError, RefusedError

MAX_MESSAGE = 2000
"""Characters of a report's message that are kept."""
MAX_EVENTS = 10_000
"""Events of one host that are kept: the newest. A host that went mad must not fill the server's disk."""


class ConflictError(BusyError):
    """Something else is under way; asking again does not help (HTTP 409)."""


@dataclass(frozen=True)
class Told:
    """A report as it arrived: which order, when by the host's clock, and what."""

    order: str | None
    at: str
    report: Report


def current_order(database: Database, host: str, now: float) -> OrderRow | None:
    """Return the order that `host` may fetch now."""
    with database.reading() as session:
        return _current(session, host, now)


def record(database: Database, host: str, told: Told, now: float) -> None:
    """Keep a report and move its order; raises NotFoundError when the order is not this host's."""
    report = told.report
    with database.session() as session:
        order = session.get(OrderRow, told.order) if told.order else None
        if told.order and (order is None or order.host != host):
            raise NotFoundError(f"{host} has no order {told.order}")
        session.add(EventRow(
            host=host, order_id=told.order, phase=report.phase, event=report.event, at=told.at, received_s=now,
            data=dict(report.data), message=report.message[:MAX_MESSAGE]))
        _forget_oldest(session, host)
        if order is not None:
            goal = Goal(order.mode, order.digest, release_name(order.release))
            _move(order, progress.judge(_standing(order), goal, report), now)
        row = session.get(HostRow, host)
        if row is not None:
            _note(row, order, report, now)


def add_order(database: Database, order: OrderRow, *, replace: bool, now: float) -> None:
    """Store a new order; an open one of the same host is replaced, or raises ConflictError."""
    with database.session() as session:
        add_order_in(session, order, replace=replace, now=now)


def add_order_in(session: Session, order: OrderRow, *, replace: bool, now: float) -> None:
    """Do what `add_order` does inside the caller's transaction."""
    open_ones = session.scalars(select(OrderRow).where(
        OrderRow.host == order.host, OrderRow.state.in_(progress.OPEN_STATES))).all()
    for old in open_ones:
        if not replace:
            raise ConflictError(f"{order.host} has the open order {old.id} ({old.mode}, {old.state}); "
                                f"withdraw it with `reroot host order {order.host} --cancel`, or add --replace")
        _move(old, Standing("cancelled", old.phase, old.recovering, f"replaced by {order.id}"), now)
    session.add(order)
    if session.get(HostRow, order.host) is None:
        session.add(HostRow(name=order.host))
    session.add(EventRow(host=order.host, order_id=order.id, phase="order", event="issued", at=clock.iso(now),
                         received_s=now, data={"mode": order.mode, "release": order.release}))


def cancel(database: Database, order_id: str, why: str, now: float) -> OrderRow:
    """Withdraw an order that is not over yet; raises NotFoundError or RefusedError."""
    with database.session() as session:
        order = session.get(OrderRow, order_id)
        if order is None:
            raise NotFoundError(f"there is no order {order_id}")
        after = progress.cancelled(_standing(order), why)
        if after is None:
            raise RefusedError(f"the order {order_id} is {order.state} already; there is nothing to withdraw")
        _move(order, after, now)
        return order


def sweep(database: Database, now: float) -> list[OrderRow]:
    """Close the orders whose time is over; returns those it closed."""
    closed = []
    with database.reading() as session:
        late = session.scalars(select(OrderRow.id).where(
            OrderRow.state.in_(progress.OPEN_STATES),
            (OrderRow.deadline_s <= now) | (OrderRow.expires_s <= now))).all()
    for order_id in late:
        with database.session() as session:
            order = session.get_one(OrderRow, order_id)
            after = progress.overdue(_standing(order), order.mode, now, order.deadline_s, order.expires_s)
            if after.state != order.state:
                _move(order, after, now)
                session.add(EventRow(host=order.host, order_id=order.id, phase=order.phase or "order", event="overdue",
                                     at=clock.iso(now), received_s=now, message=after.message or ""))
                closed.append(order)
    return closed


def get_order(database: Database, order_id: str) -> OrderRow:
    """Return one order; raises NotFoundError."""
    with database.reading() as session:
        order = session.get(OrderRow, order_id)
    if order is None:
        raise NotFoundError(f"there is no order {order_id}")
    return order


def orders_of(database: Database, host: str, limit: int = 20) -> list[OrderRow]:
    """Return a host's orders, newest first."""
    with database.reading() as session:
        return list(session.scalars(select(OrderRow).where(OrderRow.host == host)
                                    .order_by(OrderRow.issued_s.desc()).limit(limit)))


def unfinished(database: Database) -> frozenset[str]:
    """Return the ids of the orders that are open, or whose host may still be in recovery."""
    with database.reading() as session:
        return frozenset(session.scalars(select(OrderRow.id).where(
            OrderRow.state.in_(progress.OPEN_STATES) | ((OrderRow.state == "failed") & OrderRow.recovering))))


def newest_orders(database: Database) -> dict[str, OrderRow]:
    """Return the newest order of every host that ever had one."""
    newest = select(OrderRow.host, func.max(OrderRow.issued_s).label("at")).group_by(OrderRow.host).subquery()
    with database.reading() as session:
        rows = session.scalars(select(OrderRow).join(
            newest, (OrderRow.host == newest.c.host) & (OrderRow.issued_s == newest.c.at)))
        return {row.host: row for row in rows}


def host_rows(database: Database) -> dict[str, HostRow]:
    """Return what is known of every host that ever had a token, a key or an order."""
    with database.reading() as session:
        return {row.name: row for row in session.scalars(select(HostRow))}


def host_row(database: Database, host: str) -> HostRow | None:
    """Return what is known of one host."""
    with database.reading() as session:
        return session.get(HostRow, host)


def facts_of(database: Database, host: str) -> Mapping[str, object]:
    """Return the facts that a host's agent reported last; {} when it never did."""
    with database.reading() as session:
        row = session.get(HostRow, host)
        return dict(row.facts or {}) if row is not None else {}


def events_of(database: Database, host: str, after: int = 0, limit: int = 500) -> list[EventRow]:
    """Return a host's events with an id above `after`, oldest first."""
    with database.reading() as session:
        return list(session.scalars(select(EventRow).where(EventRow.host == host, EventRow.id > after)
                                    .order_by(EventRow.id).limit(limit)))


def count_states(database: Database) -> dict[str, int]:
    """Return how many orders there are in each state."""
    with database.reading() as session:
        counted = session.execute(select(OrderRow.state, func.count()).group_by(OrderRow.state))
        return dict(counted.tuples().all())


def release_name(target: str | None) -> str | None:
    """Turn releases/NAME/VERSION/ARCH.json into NAME/VERSION/ARCH."""
    return target.removeprefix("releases/").removesuffix(".json") if target else None


def _forget_oldest(session: Session, host: str) -> None:
    edge = session.scalar(select(EventRow.id).where(EventRow.host == host).order_by(
        EventRow.id.desc()).offset(MAX_EVENTS).limit(1))
    if edge is not None:
        session.execute(delete(EventRow).where(EventRow.host == host, EventRow.id <= edge))


def _current(session: Session, host: str, now: float) -> OrderRow | None:
    newest = session.scalar(select(OrderRow).where(OrderRow.host == host).order_by(
        OrderRow.issued_s.desc()).limit(1))
    if newest is None or not progress.is_current(_standing(newest), now, newest.expires_s):
        return None
    return newest


def _standing(order: OrderRow) -> Standing:
    return Standing(order.state, order.phase, order.recovering, order.message)


def _move(order: OrderRow, standing: Standing, now: float) -> None:
    if _standing(order) == standing:
        return
    order.state, order.phase = standing.state, standing.phase
    order.recovering, order.message = standing.recovering, (standing.message or "")[:MAX_MESSAGE] or None
    order.changed_s = now


def _note(row: HostRow, order: OrderRow | None, report: Report, now: float) -> None:
    if report.event == "inventory":
        row.facts = dict(report.data)
    if report.event != "healthy":
        return
    row.healthy_s = now
    release, level = report.data.get("release"), report.data.get("level")
    if isinstance(release, str):
        row.release = release[:400]
    if isinstance(level, str):
        row.level = level[:64]
    if order is not None and order.state == "completed" and order.level is not None:
        row.level = order.level
