"""The application: every router, and one shape for every error; I/O through its routers."""

from __future__ import annotations

import logging

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from control.api import admin, boot, fleetlock, hosts, losses, precious, rollouts, tickets
from control.api.refusals import refusal
from control.database import unwritable
from control.parts import Parts
from plumbing.errors import DiskError, Kind, RerootError

log = logging.getLogger("reroot.api")

_KINDS = {400: Kind.USAGE, 401: Kind.TRUST, 403: Kind.REFUSED, 404: Kind.NOT_FOUND, 405: Kind.USAGE, 413: Kind.USAGE,
          422: Kind.USAGE}


def application(parts: Parts) -> FastAPI:
    """Return the API over `parts`."""
    app = FastAPI(title="reroot", docs_url=None, redoc_url=None, openapi_url="/api/v1/openapi.json",
                  redirect_slashes=False)
    app.state.parts = parts
    for router in (hosts.router, losses.router, tickets.router, fleetlock.router, boot.router, rollouts.router,
                   admin.router, precious.of_hosts, precious.of_people):
        app.include_router(router)
    app.add_exception_handler(RerootError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(OperationalError, _database)
    app.add_exception_handler(Exception, _unknown)
    return app


def _answer(status: int, kind: Kind, sentence: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"kind": kind.value, "value": sentence}, status, headers)


async def _known(request: Request, error: Exception) -> Response:
    assert isinstance(error, RerootError)
    told = refusal(error)
    if told.status >= 500:
        log.error("%s %s: %s", request.method, request.url.path, error.sentence)
    return JSONResponse(told.body, told.status, told.headers)


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return _answer(400, Kind.USAGE, f"the request's {where} will not do: {first['msg']}")


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = _KINDS.get(error.status_code, Kind.INTERNAL)
    words = "there is nothing here" if error.status_code == 404 else str(error.detail)
    sentence = f"{words} ({request.method} request); check names and spelling"
    return _answer(error.status_code, kind, sentence, dict(error.headers or {}))


async def _database(request: Request, error: Exception) -> Response:
    assert isinstance(error, OperationalError)
    return await _known(request, DiskError(unwritable(error)))


async def _unknown(request: Request, error: Exception) -> Response:
    # Starlette logs the traceback of what ends here; the caller learns only where to look.
    return _answer(500, Kind.INTERNAL, "the server failed at this; its log says where")
