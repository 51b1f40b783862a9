"""What a machine without a key may ask for: its install or rescue order, its boot script, and files; I/O."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from control import book, ipxe
from control.api.hosts import envelope
from control.database import OrderRow
from control.gate import HEADER
from control.orders import target_path
from control.parts import Parts, parts_of
from fleet.hosts import host_of
from fleet.hosts import mac as canonical_mac
from plumbing import clock
from plumbing.errors import NotFoundError, UsageError

MAX_MACS = 64

INSTALLED_PHASES = frozenset({"finish", "health"})
"""An order that has come so far: the disk starts by itself, into the new system or, if cut short, into recovery."""

UNIFIED = "recovery.efi"
"""The unified kernel image in the site's boot folder."""

router = APIRouter()


@router.get("/api/v1/boot/order")
async def order(
    request: Request, mac: Annotated[list[str], Query(max_length=MAX_MACS)] = [],  # noqa: B006 - FastAPI copies it
    serial: Annotated[str, Query(max_length=128)] = "",
) -> Response:
    """Return the current install or rescue order of the machine with this MAC address and serial."""
    parts = parts_of(request)
    found = await asyncio.to_thread(_any_order, parts, _macs(mac), serial or None)
    if found is not None and found.mode not in {"install", "rescue"}:
        found = None  # an upgrade's order is for the host's own key
    return Response(status_code=204) if found is None else envelope(found)


@router.get("/boot/ipxe")
async def ipxe_script(
    request: Request, mac: Annotated[list[str], Query(max_length=MAX_MACS)] = [],  # noqa: B006 - FastAPI copies it
    serial: Annotated[str, Query(max_length=128)] = "", platform: Annotated[str, Query(max_length=32)] = "",
) -> Response:
    """Return the script that boots recovery when this machine has an order, and its own disk otherwise."""
    parts = parts_of(request)
    found = await asyncio.to_thread(_any_order, parts, _macs(mac), serial or None)
    if _starts_its_disk(parts, found):
        return PlainTextResponse(ipxe.local_disk_script())
    image = found.recovery if found is not None else None
    if image is None:
        image = await asyncio.to_thread(_default_recovery, parts)
    folder = f"{parts.config.content_urls()[0]}/boot/files/{image.removesuffix('.json')}"
    arguments = [f"reroot.control={parts.config.server.public_url}", *parts.config.boot.arguments]
    return PlainTextResponse(ipxe.recovery_script(f"{folder}/vmlinuz", f"{folder}/initrd.img", arguments))


@router.api_route("/boot/http/{mac}/recovery.efi", methods=["GET", "HEAD"])
async def http_boot(request: Request, mac: str) -> Response:
    """Send UEFI HTTP boot its program: `reroot recovery uki`'s where the site has one, else iPXE.

    Refused (404) for a machine with nothing to do, so that its firmware goes on to the disk, as iPXE's script has it.
    """
    parts = parts_of(request)
    found = await asyncio.to_thread(_any_order, parts, _macs([mac]), None)
    if _starts_its_disk(parts, found):
        raise NotFoundError("there is nothing to do for this machine; it boots its own disk")
    for name in (UNIFIED, "ipxe.efi"):
        if (path := parts.site.boot / name).is_file():
            return FileResponse(path, media_type="application/efi", headers={"Cache-Control": "no-store"})
    raise NotFoundError(f"{parts.site.boot} has neither {UNIFIED} nor ipxe.efi; make the first with `reroot recovery "
                        f"uki NAME/VERSION -o {parts.site.boot / UNIFIED}`")


@router.get("/healthz")
async def healthz(request: Request) -> Response:
    """Say that the database answers."""
    await asyncio.to_thread(parts_of(request).database.check)
    return JSONResponse({"status": "ok"})


@router.api_route("/v2/{_:path}", methods=["GET", "HEAD"])
@router.api_route("/catalogue/{_:path}", methods=["GET", "HEAD"])
@router.api_route("/boot/files/{_:path}", methods=["GET", "HEAD"])
async def files(request: Request) -> Response:
    """Serve what the content server serves, so that a machine that knows one URL can start."""
    raw_path = request.scope["raw_path"].decode("latin-1")
    if ticket := request.headers.get(HEADER):
        await asyncio.to_thread(parts_of(request).gate.look, ticket)
    answer = await asyncio.to_thread(parts_of(request).library.find, raw_path)
    if answer.path is None:
        return Response(answer.body, media_type=answer.content_type, headers=dict(answer.headers))
    return FileResponse(answer.path, media_type=answer.content_type, headers=dict(answer.headers))


def _macs(texts: list[str]) -> set[str]:
    try:
        return {canonical_mac(one) for one in texts}
    except ValueError as error:
        raise UsageError(str(error)) from error


def _starts_its_disk(parts: Parts, found: OrderRow | None) -> bool:
    """Whether a machine that tried the network first is sent on to its disk.

    There an upgrade is carried out, by recovery with the host's own /local, and an installation that came far enough
    goes on; recovery from the network could do neither, and would begin again for ever.
    """
    if found is None:
        return parts.config.boot.stray == "local"
    return found.mode == "upgrade" or found.phase in INSTALLED_PHASES


def _any_order(parts: Parts, macs: set[str], serial: str | None) -> OrderRow | None:
    host = host_of(parts.hosts, macs, serial)
    return book.current_order(parts.database, host.name, clock.wall()) if host is not None else None


def _default_recovery(parts: Parts) -> str:
    """Return the recovery image for machines whose order names none: the configured one, else the only one."""
    if parts.config.boot.recovery:
        return target_path("recovery", parts.config.boot.recovery, None)
    published = [path for path in parts.issuer.targets.paths() if path.startswith("recovery/")]
    if len(published) != 1:
        raise NotFoundError(f"there are {len(published)} recovery images in the catalogue; name one in [boot] recovery")
    return published[0]
