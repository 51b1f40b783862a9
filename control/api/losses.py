"""Loss reports over HTTP: what hosts send and administrators ask and answer; docs/protocols/loss.md; I/O."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from control import losses
from control.api.requests import AdminRequest, Body, SignedRequest, parse, read_body
from control.lossgate import judge
from control.parts import Parts, parts_of
from plumbing import clock
from plumbing.errors import UsageError
from precious.losses import LossReport

router = APIRouter(prefix="/api/v1")


class LossBody(Body):
    """POST /hosts/{host}/loss: a report, or why there is none."""

    report: dict[str, object] | None = None
    failed: str = Field(default="", max_length=2000)


class AcceptBody(Body):
    """POST /admin/hosts/{host}/loss/accept; `findings` null means all."""

    findings: tuple[str, ...] | None
    who: str = Field(min_length=1, max_length=200)


@router.get("/hosts/{host}/loss")
async def errand(host: str, request: Request, signed: SignedRequest) -> Response:
    """Return the policy that the host's report is to be made under."""
    signed.must_be(host)
    parts = parts_of(request)
    policy = await asyncio.to_thread(parts.issuer.policy, parts.hosts.get(host))
    return JSONResponse({"policy": policy.to_json()})


@router.post("/hosts/{host}/loss", status_code=204)
async def receive(host: str, request: Request, signed: SignedRequest) -> Response:
    """Keep a host's report."""
    signed.must_be(host)
    parts = parts_of(request)
    body = parse(LossBody, signed.body)
    if (body.report is None) == (not body.failed):
        raise UsageError("send either a report, or why there is none")
    report = LossReport.from_json(body.report) if body.report is not None else None
    failed = "".join(letter if letter.isprintable() else "?" for letter in body.failed)
    await asyncio.to_thread(losses.receive, parts.database, host, report, failed, clock.wall())
    parts.rollouts.look_again(host)
    return Response(status_code=204)


@router.get("/admin/hosts/{host}/loss", dependencies=[AdminRequest])
async def show(host: str, request: Request) -> Response:
    """Return the newest report, what of it is answered for, and the verdict."""
    return await _shown(parts_of(request), host)


@router.post("/admin/hosts/{host}/loss", dependencies=[AdminRequest], status_code=202)
async def ask(host: str, request: Request) -> Response:
    """Have the host make a new report."""
    parts = parts_of(request)
    parts.hosts.get(host)
    await asyncio.to_thread(losses.ask, parts.database, [host], clock.wall())
    parts.bell.ring(host)
    return await _shown(parts, host, 202)


@router.post("/admin/hosts/{host}/loss/accept", dependencies=[AdminRequest])
async def accept(host: str, request: Request) -> Response:
    """Write down that findings may be lost."""
    parts = parts_of(request)
    parts.hosts.get(host)
    body = parse(AcceptBody, await read_body(request))
    if not body.who.isprintable():
        raise UsageError("who accepts must be a name without control characters")
    await asyncio.to_thread(losses.accept, parts.database, host, body.findings, body.who, clock.wall())
    parts.rollouts.look_again(host)
    return await _shown(parts, host)


async def _shown(parts: Parts, host: str, status: int = 200) -> Response:
    policy = await asyncio.to_thread(parts.issuer.policy, parts.hosts.get(host))
    standing = await asyncio.to_thread(losses.standing, parts.database, host)
    answers = await asyncio.to_thread(losses.answers_of, parts.database, host)
    verdict = judge(policy, standing, clock.wall())
    current = standing.answers()
    return JSONResponse({
        "host": host, "rule": policy.loss.rule.value, "gate": verdict.gate.value, "why": verdict.why,
        "stale": verdict.wants, "asked": _iso(standing.asked_s), "received": _iso(standing.received_s),
        "failed": standing.failed, "report": standing.report.to_json() if standing.report is not None else None,
        "open": [finding.id for finding in verdict.open],
        "accepted": [{"finding": one.finding, "who": one.who, "at": _iso(one.at_s)} for one in answers
                     if one.finding in current],
    }, status)


def _iso(seconds: float | None) -> str | None:
    return clock.iso(seconds) if seconds is not None else None
