"""Tickets over HTTP; the rules are throttle's, the protocol is docs/protocols/tickets.md; I/O."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from control.api.requests import Body, SignedRequest, parse
from control.parts import Parts, parts_of
from throttle.semaphore import Lease

HOLD_S = 10.0
"""How long a request for a ticket may be held back in case a slot comes free, in seconds."""

router = APIRouter(prefix="/api/v1/tickets")


class TicketBody(Body):
    """POST /tickets."""

    service: str = Field(min_length=1, max_length=200)


@router.post("")
async def get(request: Request, signed: SignedRequest) -> Response:
    """Lease a slot to the signing host."""
    wish = parse(TicketBody, signed.body)
    parts = parts_of(request)
    wait_s = 0.0 if parts.bell.closed else HOLD_S
    return _ticket(parts, await parts.tickets.get(wish.service, signed.host, wait_s=wait_s))


@router.post("/{ticket}/renew")
async def renew(ticket: str, request: Request, signed: SignedRequest) -> Response:
    """Begin a ticket's lifetime anew."""
    parts = parts_of(request)
    return _ticket(parts, await parts.tickets.renew(ticket, signed.host))


@router.delete("/{ticket}", status_code=204)
async def give_back(ticket: str, request: Request, signed: SignedRequest) -> Response:
    """End a ticket."""
    await parts_of(request).tickets.give_back(ticket, signed.host)
    return Response(status_code=204)


def _ticket(parts: Parts, lease: Lease) -> Response:
    return JSONResponse({"ticket": lease.ticket, "provider": lease.provider, "fence": lease.fence,
                         "lifetime_s": lease.lifetime_s, "url": parts.tickets.url(lease)})
