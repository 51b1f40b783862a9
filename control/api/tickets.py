"""Tickets over HTTP; the rules are throttle's, the protocol is docs/protocols/tickets.md; I/O."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from control.api.requests import Body, SignedRequest, parse
from control.parts import Parts, parts_of
from throttle.records import Lease
from throttle.tickettab import MAX_LIFETIME_S, MAX_OFFER

HOLD_S = 10.0
"""How long a request for a ticket may be held back in case a slot comes free, in seconds."""

router = APIRouter(prefix="/api/v1/tickets", tags=["tickets"])


class TicketBody(Body):
    """POST /tickets."""

    service: str = Field(min_length=1, max_length=200)


class TicketAnswer(BaseModel):
    """A ticket as its holder sees it: what `described` returns, for OpenAPI."""

    ticket: str
    provider: str
    fence: int
    lifetime_s: int
    url: str
    bandwidth: int


class Refused(BaseModel):
    """Every error: a kind from a small set, and a sentence for a person."""

    kind: str
    value: str


def _told(body: type[BaseModel] | None, answer: type[BaseModel] | None, *refusals: int) -> dict[str, Any]:
    """Return what OpenAPI is told of a route whose body is read by hand, since it is signed."""
    signature = [{"in": "header", "name": name, "required": True, "schema": {"type": "string"}}
                 for name in ("Reroot-Host", "Reroot-Time", "Reroot-Nonce", "Reroot-Signature")]
    extra: dict[str, Any] = {"parameters": signature}
    if body is not None:
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": body.model_json_schema()}}}
    good: dict[int | str, dict[str, Any]] = {} if answer is None else {200: {"model": answer}}
    return {"openapi_extra": extra, "responses": {**good, **{status: {"model": Refused} for status in refusals}}}


@router.post("", **_told(TicketBody, TicketAnswer, 400, 401, 404, 429))
async def get(request: Request, signed: SignedRequest) -> Response:
    """Lease a slot to the signing host."""
    wish = parse(TicketBody, signed.body)
    parts = parts_of(request)
    wait_s = 0.0 if parts.bell.closed else HOLD_S
    return _ticket(parts, await parts.tickets.get(
        wish.service, signed.host, wait_s=wait_s, address=request.client.host if request.client else ""))


@router.post("/{ticket}/renew", **_told(None, TicketAnswer, 401, 403))
async def renew(ticket: str, request: Request, signed: SignedRequest) -> Response:
    """Begin a ticket's lifetime anew."""
    parts = parts_of(request)
    return _ticket(parts, await parts.tickets.renew(ticket, signed.host))


@router.delete("/{ticket}", status_code=204, **_told(None, None, 401, 403))
async def give_back(ticket: str, request: Request, signed: SignedRequest) -> Response:
    """End a ticket."""
    await parts_of(request).tickets.give_back(ticket, signed.host)
    return Response(status_code=204)


class OfferBody(Body):
    """PUT /tickets/offers/{service}."""

    slots: int = Field(ge=1, le=MAX_OFFER)
    lifetime_s: int = Field(ge=1, le=MAX_LIFETIME_S)
    url: str = Field(max_length=400, pattern=r"^http://[A-Za-z0-9.:\[\]-]{1,300}$")


@router.put("/offers/{service}", status_code=204, **_told(OfferBody, None, 400, 401, 403, 404))
async def offer(service: str, request: Request, signed: SignedRequest) -> Response:
    """Have the signing host provide a service for a while."""
    body = parse(OfferBody, signed.body)
    await parts_of(request).tickets.offer(service, signed.host, body.slots, body.url, body.lifetime_s)
    return Response(status_code=204)


@router.delete("/offers/{service}", status_code=204, **_told(None, None, 401, 404))
async def withdraw(service: str, request: Request, signed: SignedRequest) -> Response:
    """End what the signing host offers."""
    await parts_of(request).tickets.withdraw(service, signed.host)
    return Response(status_code=204)


def described(parts: Parts, lease: Lease) -> dict[str, object]:
    """Return a ticket as its holder sees it."""
    return {"ticket": lease.ticket, "provider": lease.provider, "fence": lease.fence, "lifetime_s": lease.lifetime_s,
            "url": parts.tickets.url(lease), "bandwidth": lease.bandwidth}


def _ticket(parts: Parts, lease: Lease) -> Response:
    return JSONResponse(described(parts, lease))
