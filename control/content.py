"""The content server: the store, the catalogue and the boot files over HTTP, in a process of its own; I/O.

aiohttp's FileResponse answers Range, HEAD and conditional requests and hands the file to sendfile, so the bytes
never pass through Python. Who shows a ticket is served while that is live, at its pace (control.gate). It is a child
process because a restore of many hosts must not slow the API down.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
from multiprocessing.connection import Connection

from aiohttp import web
from sqlalchemy.exc import OperationalError

from control import door, load
from control import log as logs
from control.database import Database, unwritable
from control.files import Library
from control.gate import HEADER, Gate, TicketFile, boot_id
from control.patience import close_slow, patient, quiet_about_strangers
from control.site import Site
from plumbing.errors import DiskError, NotFoundError, RefusedError, RerootError

log = logging.getLogger("reroot.content")
_GATE: web.AppKey[Gate] = web.AppKey("gate", Gate)
_LIBRARY: web.AppKey[Library] = web.AppKey("library", Library)


def application(library: Library, gate: Gate) -> web.Application:
    """Return the aiohttp application over `library`, for whoever `gate` lets in."""
    app = web.Application()
    app[_LIBRARY] = library
    app[_GATE] = gate
    app.router.add_get("/healthz", _healthz)
    app.router.add_get("/{path:.*}", _file)
    return app


async def _healthz(_request: web.Request) -> web.Response:
    return web.json_response({"status": "ok", "load": await asyncio.to_thread(load.load)})


async def _file(request: web.Request) -> web.StreamResponse:
    library = request.app[_LIBRARY]
    raw_path = request.raw_path.partition("?")[0]
    ticket = request.headers.get(HEADER)
    try:
        bandwidth = 0 if ticket is None else await asyncio.to_thread(request.app[_GATE].look, ticket)
        answer = await asyncio.to_thread(library.find, raw_path)
    except RefusedError as error:
        return _refuse(raw_path, web.HTTPForbidden.status_code, error)
    except OperationalError as error:
        return _refuse(raw_path, web.HTTPInternalServerError.status_code, DiskError(unwritable(error)))
    except NotFoundError as error:
        return _refuse(raw_path, web.HTTPNotFound.status_code, error)
    except RerootError as error:
        log.error("%s", error.sentence)
        return _refuse(raw_path, web.HTTPInternalServerError.status_code, error)
    headers = {"Content-Type": answer.content_type, **answer.headers}
    if answer.path is None:
        return web.Response(body=answer.body, headers=headers)
    if ticket is not None:
        return TicketFile(answer.path, headers, request.app[_GATE], ticket, bandwidth)
    return web.FileResponse(answer.path, headers=headers, chunk_size=1 << 20)


def _refuse(raw_path: str, status: int, error: RerootError) -> web.Response:
    if not raw_path.startswith("/v2/"):
        return web.json_response({"kind": error.kind.value, "value": error.sentence}, status=status)
    code = "DENIED" if status == web.HTTPForbidden.status_code else (
        "BLOB_UNKNOWN" if "/blobs/" in raw_path else "MANIFEST_UNKNOWN")
    body = json.dumps({"errors": [{"code": code, "message": error.sentence}]})
    return web.Response(text=body, content_type="application/json", status=status)


def main(site_root: str, listener: socket.socket, lifeline: Connection, database: str, processes: int) -> None:
    """Serve, as one of `processes`, until the parent closes its end of `lifeline`, or is gone, which closes it too."""
    logs.begin("info")
    door.widen()
    logging.getLogger("aiohttp.server").addFilter(quiet_about_strangers)
    for number in (signal.SIGINT, signal.SIGTERM):  # they may reach the whole group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    gate = Gate(Database(database), boot_id(), processes)
    asyncio.run(_serve(Site.open(site_root), listener, lifeline, gate))


async def _serve(site: Site, listener: socket.socket, lifeline: Connection, gate: Gate) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    logs.calm(loop)
    loop.add_reader(lifeline.fileno(), stop.set)
    runner = web.AppRunner(application(Library(site.store, site.catalogue, site.boot), gate), access_log=None,
                           handle_signals=False, shutdown_timeout=2.0)
    await runner.setup()
    try:
        assert runner.server is not None
        accepting = await loop.create_server(patient(runner.server, door.Door()), sock=listener, backlog=512)
        watch = asyncio.create_task(close_slow(runner.server))
        lifeline.send_bytes(b"ready")
        await stop.wait()
        watch.cancel()
        accepting.close()
    finally:
        loop.remove_reader(lifeline.fileno())
        await runner.cleanup()
