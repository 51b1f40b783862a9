"""Rollouts over HTTP, for administrators; docs/protocols/rollout.md; I/O."""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from control.api.requests import AdminRequest, Body, Count, Interval, Length, parse, read_body
from control.parts import parts_of
from control.rollouts import Demand
from plumbing import clock
from rollout.executor import Command

router = APIRouter(prefix="/api/v1/admin/rollouts", dependencies=[AdminRequest])


class StartBody(Body):
    """POST /rollouts."""

    release: str = Field(min_length=1, max_length=400)
    hosts: tuple[str, ...] = ()
    class_: str | None = Field(default=None, alias="class", max_length=200)
    recovery: str | None = Field(default=None, max_length=400)
    level: str | None = Field(default=None, max_length=64)
    update_time_s: Length | None = None
    download_time_s: Length | None = None
    servers: Count | None = None
    per_server: Count | None = None
    blast_budget: Count | None = None
    failure_budget: Count | None = None
    interval_s: Interval | None = None
    start_interval_s: Interval | None = None
    deadline_s: Length | None = None
    minimum: dict[str, int] = Field(default_factory=dict)


class KnobBody(Body):
    """PUT /rollouts/{id}/knob."""

    interval_s: Interval | None


@router.post("", status_code=201)
async def start(request: Request) -> Response:
    """Start a rollout."""
    body = parse(StartBody, await read_body(request))
    values = body.model_dump(exclude={"class_"})
    demand = Demand(**values, host_class=body.class_)
    return JSONResponse(await asyncio.to_thread(parts_of(request).rollouts.start, demand, clock.wall()), 201)


@router.get("")
async def listing(request: Request) -> Response:
    """Return all rollouts, newest first."""
    return JSONResponse({"rollouts": await asyncio.to_thread(parts_of(request).rollouts.views, clock.wall())})


@router.get("/{rollout}")
async def show(rollout: str, request: Request) -> Response:
    """Return one rollout."""
    return JSONResponse(await asyncio.to_thread(parts_of(request).rollouts.view, rollout, clock.wall()))


@router.post("/{rollout}/{command}")
async def command(rollout: str, command: Literal["pause", "resume", "abort"], request: Request) -> Response:
    """Pause, resume or abort."""
    work = parts_of(request).rollouts.command
    return JSONResponse(await asyncio.to_thread(work, rollout, Command(command), clock.wall()))


@router.put("/{rollout}/knob")
async def knob(rollout: str, request: Request) -> Response:
    """Set how far apart hosts are triggered."""
    body = parse(KnobBody, await read_body(request))
    work = parts_of(request).rollouts.set_knob
    return JSONResponse(await asyncio.to_thread(work, rollout, body.interval_s, clock.wall()))
