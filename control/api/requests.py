"""What every signed or administrative request passes before its handler: size, signature or session, token; I/O."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated, TypeVar

from fastapi import Depends
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from control import auth
from control.parts import parts_of
from control.patience import KNOWN
from plumbing import clock, session
from plumbing.errors import TrustError, UsageError

MAX_BODY_BYTES = 1 << 20
MAX_ENROL_BYTES = 4096
"""Of a body that is read before anybody knows who sent it."""
MAX_LENGTH_S = 10 * 366 * 86_400
"""No length of time that anybody asks for is longer: ten years, in seconds."""

Length = Annotated[float, Field(gt=0, le=MAX_LENGTH_S)]
Interval = Annotated[float, Field(ge=0, le=MAX_LENGTH_S)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
M = TypeVar("M", bound="Body")


class Body(BaseModel):
    """A request's JSON object; a key nobody knows is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


async def read_body(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """Read the body, at most `limit` bytes of it, whatever the headers promise."""
    pieces, total = [], 0
    async for piece in request.stream():
        total += len(piece)
        if total > limit:
            raise UsageError(f"the request's body is longer than {limit} bytes; send less")
        pieces.append(piece)
    return b"".join(pieces)


def parse(model: type[M], body: bytes) -> M:
    """Turn a body into `model`; raises UsageError naming the first key that is wrong."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise UsageError(sentence(error)) from error


def sentence(error: ValidationError) -> str:
    """Say in one sentence what is wrong with a body."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"the request's {where or 'body'} will not do: {first['msg']}"


class Signed:
    """A request that a host proved to be its own, and its body; `key` is what it signed with, None in a session."""

    def __init__(self, host: str, body: bytes, key: str | None = None) -> None:
        self.host, self.body, self.key = host, body, key

    def must_be(self, host: str) -> None:
        """Raise TrustError when the path is another host's."""
        if self.host != host:
            raise TrustError(f"{self.host} signed a request for {host}; a host speaks for itself only")


async def signed(request: Request) -> Signed:
    """Check the signature of a request, or its session, and read its body only when it can hold; raises TrustError."""
    parts = parts_of(request)
    raw: bytes = request.scope["raw_path"]
    query: bytes = request.scope["query_string"]
    target = raw.decode("latin-1") + (f"?{query.decode('latin-1')}" if query else "")
    said = request.headers.get(session.HEADER)
    if said is not None:
        identity, count, digest = session.read(said)
        spoken = await parts.sessions.find(identity)
        body = await read_body(request)
        found = Signed(spoken.accept(count, digest, request.method, target, body), body)
    else:
        claimed = await parts.signatures.claimed(parts.hosts.by_name, request.headers, clock.wall())
        body = await read_body(request)
        who = await parts.signatures.authenticate(claimed, request.method, target, body, clock.wall())
        found = Signed(who.host, body, who.key.text)
    mark_known(request)
    return found


async def admin(request: Request) -> None:
    """Raise TrustError unless the request carries the admin token."""
    auth.authorize_admin(request.headers.get("authorization"), parts_of(request).admin_token)
    mark_known(request)


async def reader(request: Request) -> str:
    """Return who asks for precious files: the name that his token has; raises TrustError."""
    parts = parts_of(request)
    header = request.headers.get("authorization")
    who = await asyncio.to_thread(auth.precious_reader, header, parts.site.keys)
    mark_known(request)
    return who


async def reader_or_admin(request: Request) -> str:
    """Return who asks what there is of precious files: a reader's name, or admin; raises TrustError."""
    with suppress(TrustError):
        await admin(request)
        return "admin"
    return await reader(request)


def mark_known(request: Request) -> None:
    """Tell the connection that its sender proved who it is: strangers may have fewer of them (control.door)."""
    setattr(request.state, KNOWN, True)


SignedRequest = Annotated[Signed, Depends(signed)]
AdminRequest = Depends(admin)
Reader = Annotated[str, Depends(reader)]
ReaderOrAdmin = Annotated[str, Depends(reader_or_admin)]
