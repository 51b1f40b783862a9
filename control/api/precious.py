"""Second copies: sent and read by hosts, listed, fetched and pruned by people, all of it on the audit log; I/O.

The protocol is docs/protocols/second-copy.md. A host speaks for itself, and of orders that are its own and open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import Field
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from control import book
from control.api.requests import (
    AdminRequest,
    Body,
    Reader,
    ReaderOrAdmin,
    SignedRequest,
    parse,
    read_body,
)
from control.audit import MAX_WORD, Access
from control.parts import parts_of
from control.patience import KNOWN
from control.progress import OPEN_STATES
from control.second_copies import Came
from plumbing import clock
from plumbing.errors import NotFoundError, RefusedError, RerootError, UsageError
from precious.second_copy import Copy
from recovery.order import GUID, HOST_NAME

DIGEST = r"^[0-9a-f]{64}$"


class Watched(APIRoute):
    """A route of which every refusal is on the audit log, whoever was refused and however early."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler with the log around it."""
        handle = super().get_route_handler()

        async def watched(request: Request) -> Response:
            try:
                return await handle(request)
            except (RerootError, RequestValidationError) as error:
                named = request.path_params
                told = error if isinstance(error, RerootError) else UsageError("the request is malformed")
                await note(request, _claimed(request), f"{request.method} {self.name}", named.get("host", ""),
                           named.get("order", ""), told)
                raise

        return watched


of_hosts = APIRouter(prefix="/api/v1/hosts/{host}/precious/{order}", route_class=Watched)
of_people = APIRouter(prefix="/api/v1/admin/precious", route_class=Watched)


class CopyBody(Body):
    """POST: what a host is about to send."""

    bytes: int = Field(ge=1, le=1 << 49)
    blake3: str = Field(pattern=DIGEST)


class PruneBody(Body):
    """POST /prune."""

    dry_run: bool = False


async def note(request: Request, who: str, what: str, host: str, order: str, error: RerootError | None = None) -> None:
    """Put one access on the log; raises DiskError."""
    address = request.client.host if request.client else ""
    access = Access(who, what, _plain(host), _plain(order), address, *(
        (error.kind.value, error.sentence) if error is not None else ()))
    await asyncio.to_thread(parts_of(request).audit.note, access, clock.wall())


def _claimed(request: Request) -> str:
    """Return who a request says that it is from."""
    words = request.headers
    who = f"host {words['reroot-host']}" if "reroot-host" in words else "a bearer" if "authorization" in words else (
        "somebody")
    return _plain(who if getattr(request.state, KNOWN, False) else f"unproven {who}")


def _plain(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text[:MAX_WORD])


async def _open_order(request: Request, host: str, order: str) -> None:
    """Raise unless `order` is an open upgrade of `host`: nothing else has a copy that could still be sent."""
    row = await asyncio.to_thread(book.get_order, parts_of(request).database, order)
    if row.host != host:
        raise NotFoundError(f"{host} has no order {order}")
    if row.mode != "upgrade" or row.state not in OPEN_STATES:
        raise RefusedError(f"order {order} is {row.state} ({row.mode}); a second copy belongs to an upgrade that is "
                           "under way")


@of_hosts.post("")
async def announce(host: str, order: str, request: Request, signed: SignedRequest) -> Response:
    """Reserve room for a host's copy, and say how much of it is here."""
    signed.must_be(host)
    wish = parse(CopyBody, signed.body)
    await _open_order(request, host, order)
    copies = parts_of(request).copies
    came = await asyncio.get_running_loop().run_in_executor(
        copies.threads, copies.begin, host, order, wish.bytes, wish.blake3)
    await note(request, f"host {host}", "announce", host, order)
    return _came(came)


@of_hosts.put("")
async def piece(
    host: str, order: str, request: Request, signed: SignedRequest, blake3: Annotated[str, Query(pattern=DIGEST)],
    offset: Annotated[int, Query(ge=0, le=1 << 49)],
) -> Response:
    """Take a piece of a host's copy."""
    signed.must_be(host)
    await _open_order(request, host, order)
    copies = parts_of(request).copies
    came = await asyncio.get_running_loop().run_in_executor(
        copies.threads, copies.write, host, order, blake3, offset, signed.body)
    if came.stored:
        await note(request, f"host {host}", "store", host, order)
    return _came(came)


@of_hosts.get("")
async def read_back(host: str, order: str, request: Request, signed: SignedRequest) -> Response:
    """Give a host its own copy."""
    signed.must_be(host)
    return await _file(request, f"host {host}", "read", host, order)


@of_people.get("")
async def listing(request: Request, who: ReaderOrAdmin, host: str | None = None) -> Response:
    """Return which copies there are."""
    parts = parts_of(request)
    found = await asyncio.to_thread(parts.copies.copies, host and _host(host))
    if host is not None and not found:
        parts.hosts.get(host)  # says which host may have been meant
    await note(request, who, "list", host or "", "")
    return JSONResponse({"copies": [copy_json(copy) for copy in found]})


@of_people.get("/copies/{host}/{order}")
async def fetch(host: str, order: str, request: Request, who: Reader) -> Response:
    """Give a copy out; it is encrypted, and this server could not open it."""
    return await _file(request, who, "fetch", host, order)


@of_people.get("/audit")
async def audit(
    request: Request, who: ReaderOrAdmin, host: str | None = None, limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
) -> Response:
    """Return the last lines of the audit log."""
    found = await asyncio.to_thread(parts_of(request).audit.entries, host, limit)
    await note(request, who, "audit", host or "", "")
    return JSONResponse({"entries": found})


@of_people.post("/prune", dependencies=[AdminRequest])
async def prune(request: Request) -> Response:
    """Remove the copies that outlived their time, or say which that would be."""
    parts = parts_of(request)
    wish = parse(PruneBody, await read_body(request))
    needed = await asyncio.to_thread(book.unfinished, parts.database)
    await note(request, "admin", "prune (dry run)" if wish.dry_run else "prune", "", "")
    gone = await asyncio.to_thread(parts.copies.prune, needed, clock.wall(), dry_run=wish.dry_run)
    return JSONResponse({"removed": [{**copy_json(copy), "why": why} for copy, why in gone]})


def copy_json(copy: Copy) -> dict[str, object]:
    """Return a copy as people see it."""
    return {"host": copy.host, "order": copy.order, "bytes": copy.bytes, "blake3": copy.blake3,
            "stored": clock.iso(copy.stored_s)}


def _host(name: str) -> str:
    """Return a host's name that is no path; one that hosts.toml has no more may be wanted all the more."""
    if not HOST_NAME.fullmatch(name):
        raise NotFoundError(f"{name[:80]!r} is no host's name")
    return name


def _came(came: Came) -> Response:
    return JSONResponse({"offset": came.offset, "stored": came.stored})


async def _file(request: Request, who: str, what: str, host: str, order: str) -> Response:
    if not GUID.fullmatch(order):
        raise NotFoundError(f"{order[:40]!r} is no order's id")
    path, copy = await asyncio.to_thread(parts_of(request).copies.find, _host(host), order)
    await note(request, who, what, host, order)
    return FileResponse(path, media_type="application/octet-stream",
                        headers={"Reroot-Blake3": copy.blake3, "Cache-Control": "no-store"})
