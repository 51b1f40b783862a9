"""What hosts call: enrol, open a session, fetch the order, report; I/O."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import Field, field_validator, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from control import auth, book, losses
from control.api.requests import MAX_ENROL_BYTES, Body, SignedRequest, parse, read_body
from control.bell import left
from control.book import Told
from control.database import OrderRow
from control.parts import Parts, parts_of
from control.progress import Report
from control.sessions import LIFETIME_S
from plumbing import clock
from plumbing.errors import NotFoundError, TrustError

ENVELOPE_TYPE = "application/vnd.dsse+json"
LOOK_AGAIN_S = 15.0
"""How often a waiting request looks for an order that another server process issued."""

router = APIRouter(prefix="/api/v1")


class EnrolBody(Body):
    """POST /enrol."""

    host: str = Field(max_length=253)
    public_key: str = Field(max_length=64)
    proof: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    order: str | None = Field(default=None, max_length=36)
    nonce: str | None = Field(default=None, max_length=64)

    @model_validator(mode="after")
    def _one_secret(self) -> EnrolBody:
        if (self.proof is None) == (self.order is None or self.nonce is None):
            raise ValueError("send either a token's proof, or an order with its nonce")
        return self


class SessionBody(Body):
    """POST /session."""

    public: str = Field(max_length=64)


class ReportBody(Body):
    """POST /hosts/{host}/report."""

    order: str | None = Field(default=None, max_length=36)
    phase: str = Field(pattern=r"^[a-z][a-z-]{0,31}$")
    event: Literal["begin", "progress", "done", "failed", "healthy", "inventory"]
    at: str = Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")
    data: dict[str, object] = Field(default_factory=dict)
    message: str | None = None

    @field_validator("data")
    @classmethod
    def _writable(cls, data: dict[str, object]) -> dict[str, object]:
        # Python reads NaN and 1e999, and no JSON answer may hold them: one such report would hide all the others.
        json.dumps(data, allow_nan=False)
        return data


@router.post("/enrol", status_code=201)
async def enrol(request: Request) -> Response:
    """Accept a machine's key for a one-time secret."""
    wish = parse(EnrolBody, await read_body(request, MAX_ENROL_BYTES))
    if wish.host not in parts_of(request).hosts.by_name:
        raise NotFoundError("no open enrolment has this secret; `reroot host add` or a new install order makes one")
    enrolment = auth.Enrolment(wish.host, wish.public_key, wish.proof, wish.order, wish.nonce)
    await asyncio.to_thread(auth.enrol, parts_of(request).database, enrolment, clock.wall())
    return JSONResponse({"host": wish.host}, 201)


@router.post("/session", status_code=201)
async def open_session(request: Request, signed: SignedRequest) -> Response:
    """Agree on a secret with the signing host, for many requests."""
    return JSONResponse(opened(parts_of(request), signed.host, signed.key, signed.body), 201)


def opened(parts: Parts, host: str, key: str | None, body: bytes) -> dict[str, object]:
    """Open a session for a host that signed with `key`; raises TrustError when that is None, UsageError."""
    if key is None:
        raise TrustError("a session is opened by a request that is signed, not by one in a session; sign it")
    identity, public = parts.sessions.open(host, key, parse(SessionBody, body).public)
    return {"session": identity, "public": public, "lifetime_s": LIFETIME_S}


@router.get("/hosts/{host}/order")
async def order(
    host: str, request: Request, signed: SignedRequest, wait: Annotated[float, Query(ge=0, le=120)] = 0.0,
    loss: bool = False,
) -> Response:
    """Return the host's current order, waiting for one up to `wait` seconds.

    A host that says `loss=1` is told at once, by a header of the empty answer, that it owes a loss report.
    """
    signed.must_be(host)
    parts = parts_of(request)
    deadline = clock.monotonic() + wait
    with parts.bell.listen(host) as rung:
        while True:
            found = await asyncio.to_thread(book.current_order, parts.database, host, clock.wall())
            if found is not None:
                return envelope(found)
            if loss and await asyncio.to_thread(losses.is_asked, parts.database, host):
                return Response(status_code=204, headers={"Reroot-Asks": "loss"})
            if not left(deadline) or parts.bell.closed or await request.is_disconnected():
                return Response(status_code=204)
            await parts.bell.wait(rung, min(left(deadline), LOOK_AGAIN_S))


@router.post("/hosts/{host}/report", status_code=204)
async def report(host: str, request: Request, signed: SignedRequest) -> Response:
    """Keep what a host says of itself."""
    signed.must_be(host)
    body = parse(ReportBody, signed.body)
    told = Told(body.order, body.at, Report(body.phase, body.event, body.data, body.message or ""))
    await asyncio.to_thread(book.record, parts_of(request).database, host, told, clock.wall())
    parts_of(request).rollouts.nudge()
    return Response(status_code=204)


def envelope(found: OrderRow) -> Response:
    """Return an order as it goes over the wire."""
    return Response(found.envelope, media_type=ENVELOPE_TYPE, headers={"Reroot-Order": found.id,
                                                                       "Cache-Control": "no-store"})
