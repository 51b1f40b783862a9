"""Hosts, orders and the state of things, for administrators; I/O."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from control import auth, book
from control.api.requests import AdminRequest, Body, Length, parse, read_body
from control.database import EventRow, HostRow, OrderRow
from control.orders import Wish
from control.parts import Parts, parts_of
from fleet.hosts import Host, from_table
from plumbing import clock
from plumbing.errors import ConfigError, NotFoundError, UsageError
from plumbing.spelling import hint
from throttle.status import problems as ticket_problems

router = APIRouter(prefix="/api/v1/admin", dependencies=[AdminRequest])


class HostBody(Body):
    """POST /hosts: `host` has the keys of a [[host]] table."""

    host: dict[str, object]
    token_lifetime_s: float = Field(default=auth.TOKEN_LIFETIME_S, gt=0, le=30 * 86_400)


class OrderBody(Body):
    """POST /orders."""

    host: str = Field(max_length=253)
    mode: str = Field(default="upgrade", max_length=16)
    release: str | None = Field(default=None, max_length=400)
    recovery: str | None = Field(default=None, max_length=400)
    level: str | None = Field(default=None, max_length=64)
    services: tuple[str, ...] | None = None
    lifetime_s: float | None = Field(default=None, gt=0, le=30 * 86_400)
    deadline_s: Length | None = None
    replace: bool = False


@router.get("/status")
async def status(request: Request) -> Response:
    """Return counts, tickets, rollouts and what is wrong."""
    parts = parts_of(request)
    services = await parts.tickets.status()
    rows = await asyncio.to_thread(book.host_rows, parts.database)
    hosts = parts.hosts.by_name
    return JSONResponse({
        "hosts": {"listed": len(hosts), "enrolled": sum(
            1 for name, row in rows.items() if name in hosts and row.public_key is not None)},
        "orders": await asyncio.to_thread(book.count_states, parts.database),
        "tickets": [{**service.to_json(), "groups": parts.reboot_slots.standing(service)} for service in services],
        "rollouts": await asyncio.to_thread(parts.rollouts.views, clock.wall()),
        "problems": [*await asyncio.to_thread(parts.problems), *ticket_problems(services)],
    })


@router.get("/hosts")
async def hosts(request: Request) -> Response:
    """Return every host of hosts.toml with what is known of it."""
    parts = parts_of(request)
    rows = await asyncio.to_thread(book.host_rows, parts.database)
    orders = await asyncio.to_thread(book.newest_orders, parts.database)
    return JSONResponse({"hosts": [
        host_json(host, rows.get(name), orders.get(name)) for name, host in parts.hosts.by_name.items()]})


@router.post("/hosts", status_code=201)
async def add_host(request: Request) -> Response:
    """Write a new host into hosts.toml, or find it there, and return a one-time enrolment token."""
    parts = parts_of(request)
    body = parse(HostBody, await read_body(request))
    try:
        wanted = from_table(body.host, "the request")
        if set(body.host) != {"name"}:
            await asyncio.to_thread(parts.hosts_file.add, wanted)
    except ConfigError as error:
        raise UsageError(error.sentence) from error
    if wanted.name not in parts.hosts.by_name:
        raise NotFoundError(f"there is no host {wanted.name!r} in hosts.toml; " + hint(
            wanted.name, parts.hosts.by_name, f"`reroot host add {wanted.name} --mac …` writes it there"))
    token, expires = await asyncio.to_thread(
        auth.make_token, parts.database, wanted.name, clock.wall(), body.token_lifetime_s)
    return JSONResponse({"host": wanted.name, "token": token, "expires": clock.iso(expires)}, 201)


@router.get("/hosts/{host}")
async def show_host(host: str, request: Request) -> Response:
    """Return one host, its facts and its orders."""
    parts = parts_of(request)
    listed = parts.hosts.get(host)
    row = await asyncio.to_thread(book.host_row, parts.database, host)
    orders = await asyncio.to_thread(book.orders_of, parts.database, host)
    return JSONResponse({
        **host_json(listed, row, orders[0] if orders else None),
        "facts": row.facts if row else {}, "orders": [order_json(order) for order in orders]})


@router.get("/hosts/{host}/precious")
async def precious(host: str, request: Request) -> Response:
    """Return the precious policy that an order for the host would carry now, each rule with its file and line."""
    parts = parts_of(request)
    policy = await asyncio.to_thread(parts.issuer.policy, parts.hosts.get(host))
    unlisted = policy.unlisted
    origin = f"{unlisted.origin}, line {unlisted.line}" if unlisted.line else unlisted.origin
    return JSONResponse({"policy": policy.to_json(), "unlisted_origin": origin,
                         "second_copy_origin": policy.second_copy.where})


@router.get("/hosts/{host}/events")
async def events(
    host: str, request: Request, after: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=5000)] = 500,
) -> Response:
    """Return what a host reported, oldest first."""
    parts = parts_of(request)
    parts.hosts.get(host)
    found = await asyncio.to_thread(book.events_of, parts.database, host, after, limit)
    return JSONResponse({"events": [event_json(event) for event in found]})


@router.post("/orders", status_code=201)
async def issue(request: Request) -> Response:
    """Sign and record an order; the host that waits for one gets it at once."""
    parts = parts_of(request)
    wish = Wish(**parse(OrderBody, await read_body(request)).model_dump())
    order = await asyncio.to_thread(parts.issuer.issue, wish, parts.hosts, clock.wall())
    parts.bell.ring(order.host)
    return JSONResponse({"order": order_json(order)}, 201)


@router.get("/orders/{order}")
async def show_order(order: str, request: Request) -> Response:
    """Return one order and how far it has come."""
    return JSONResponse({"order": order_json(await asyncio.to_thread(
        book.get_order, parts_of(request).database, order))})


@router.post("/orders/{order}/cancel")
async def cancel(order: str, request: Request) -> Response:
    """Withdraw an order."""
    parts: Parts = parts_of(request)
    found = await asyncio.to_thread(book.cancel, parts.database, order, "cancelled by an administrator", clock.wall())
    parts.rollouts.nudge()
    return JSONResponse({"order": order_json(found)})


def host_json(host: Host, row: HostRow | None, order: OrderRow | None) -> dict[str, object]:
    """Return a host as administrators see it."""
    return {
        "name": host.name, "macs": list(host.macs), "serial": host.serial, "address": host.address,
        "subnet": host.subnet, "class": list(host.classes), "firmware": host.firmware, "serves": list(host.serves),
        "enrolled": _iso(row.enrolled_s if row else None), "seen": _iso(row.seen_s if row else None),
        "healthy": _iso(row.healthy_s if row else None), "release": row.release if row else None,
        "level": row.level if row else None, "order": order_json(order) if order else None,
    }


def order_json(order: OrderRow) -> dict[str, object]:
    """Return an order as administrators see it."""
    return {
        "id": order.id, "host": order.host, "mode": order.mode, "state": order.state, "release": order.release,
        "digest": order.digest, "recovery": order.recovery, "level": order.level, "phase": order.phase,
        "message": order.message, "issued": _iso(order.issued_s), "expires": _iso(order.expires_s),
        "deadline": _iso(order.deadline_s), "changed": _iso(order.changed_s), "rollout": order.rollout,
    }


def event_json(event: EventRow) -> dict[str, object]:
    """Return an event as administrators see it; `received` is by the server's clock, with milliseconds."""
    return {"id": event.id, "order": event.order_id, "phase": event.phase, "event": event.event, "at": event.at,
            "received": _iso(event.received_s), "received_s": event.received_s, "data": event.data,
            "message": event.message}


def _iso(seconds: float | None) -> str | None:
    return clock.iso(seconds) if seconds is not None else None
