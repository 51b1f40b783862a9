"""The content server: the store, the catalogue and the boot files over HTTP, in a process of its own; I/O.

aiohttp's FileResponse answers Range, HEAD and conditional requests and hands the file to sendfile, so the bytes
never pass through Python. It is a child process because a restore of many hosts must not slow the API down.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
from multiprocessing.connection import Connection

from aiohttp import web

from control import door
from control import log as logs
from control.files import Answer, Library
from control.patience import close_slow, patient, quiet_about_strangers
from control.site import Site
from plumbing.errors import NotFoundError, RerootError

log = logging.getLogger("reroot.content")
_LIBRARY: web.AppKey[Library] = web.AppKey("library", Library)


def application(library: Library) -> web.Application:
    """Return the aiohttp application over `library`."""
    app = web.Application()
    app[_LIBRARY] = library
    app.router.add_get("/healthz", _healthz)
    app.router.add_get("/{path:.*}", _file)
    return app


async def _healthz(_request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def _file(request: web.Request) -> web.StreamResponse:
    library = request.app[_LIBRARY]
    raw_path = request.raw_path.partition("?")[0]
    try:
        answer = await asyncio.to_thread(library.find, raw_path)
    except NotFoundError as error:
        return _refuse(raw_path, web.HTTPNotFound.status_code, error)
    except RerootError as error:
        log.error("%s", error.sentence)
        return _refuse(raw_path, web.HTTPInternalServerError.status_code, error)
    return respond(answer)


def respond(answer: Answer) -> web.StreamResponse:
    """Turn an answer of the library into aiohttp's response."""
    headers = {"Content-Type": answer.content_type, **answer.headers}
    if answer.path is None:
        return web.Response(body=answer.body, headers=headers)
    return web.FileResponse(answer.path, headers=headers, chunk_size=1 << 20)


def _refuse(raw_path: str, status: int, error: RerootError) -> web.Response:
    if not raw_path.startswith("/v2/"):
        return web.json_response({"kind": error.kind.value, "value": error.sentence}, status=status)
    code = "BLOB_UNKNOWN" if "/blobs/" in raw_path else "MANIFEST_UNKNOWN"
    body = json.dumps({"errors": [{"code": code, "message": error.sentence}]})
    return web.Response(text=body, content_type="application/json", status=status)


def main(site_root: str, listener: socket.socket, lifeline: Connection) -> None:
    """Serve until the parent closes its end of `lifeline`, or is gone, which closes it too."""
    logs.begin("info")
    door.widen()
    logging.getLogger("aiohttp.server").addFilter(quiet_about_strangers)
    for number in (signal.SIGINT, signal.SIGTERM):  # they may reach the whole group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    asyncio.run(_serve(Site.open(site_root), listener, lifeline))


async def _serve(site: Site, listener: socket.socket, lifeline: Connection) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    logs.calm(loop)
    loop.add_reader(lifeline.fileno(), stop.set)
    runner = web.AppRunner(application(Library(site.store, site.catalogue, site.boot)), access_log=None,
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
