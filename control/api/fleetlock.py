"""FleetLock, the reboot-slot protocol of Zincati and its kin, over tickets; docs/protocols/fleetlock.md; I/O.

Its clients have no key of ours. Who calls is known by a token in the URL, made for one host, or, where the site allows
it, by the address it calls from; whichever it is, the ticket is held in that host's name.
"""

from __future__ import annotations

import logging
from enum import StrEnum

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from control import auth
from control.api.requests import mark_known, read_body, sentence
from control.parts import Parts, parts_of
from plumbing.errors import BusyError, RefusedError, RerootError, TrustError, UsageError

log = logging.getLogger("reroot.fleetlock")

MAX_BODY_BYTES = 4096
HEADER = "fleet-lock-protocol"

router = APIRouter(prefix="/fleetlock")


class Kind(StrEnum):
    """Every kind of error; clients count them, so the set is fixed."""

    BAD_REQUEST = "bad_request"
    UNAUTHORIZED = "unauthorized"
    UNKNOWN_GROUP = "unknown_group"
    FULL = "failed_lock_semaphore_full"
    FAILED_LOCK = "failed_lock"
    FAILED_UNLOCK = "failed_unlock"


class ClientParams(BaseModel):
    """Who asks, as the client says it: `id` is its own invention, so it is not what holds a ticket."""

    model_config = ConfigDict(frozen=True, strict=True)
    id: str = Field(min_length=1, max_length=255)
    group: str = Field(pattern=r"^[a-zA-Z0-9.-]+\z", max_length=200)


class LockBody(BaseModel):
    """The body of both requests; keys of a later version are let pass."""

    model_config = ConfigDict(frozen=True, strict=True)
    client_params: ClientParams


@router.post("/{path:path}")
async def call(path: str, request: Request) -> Response:
    """Answer …/v1/pre-reboot and …/v1/steady-state below /fleetlock or /fleetlock/HOST/TOKEN."""
    match [word for word in path.split("/") if word]:  # clients differ in whether the base URL ends with a slash
        case [*credentials, "v1", "pre-reboot" | "steady-state" as operation] if len(credentials) in {0, 2}:
            locking = operation == "pre-reboot"
        case _:
            return _error(404, Kind.BAD_REQUEST, "it is /v1/pre-reboot and /v1/steady-state here; check the base URL")
    parts = parts_of(request)
    try:
        host = _caller(parts, credentials, request.client.host if request.client else "")
        mark_known(request)
        group = (await _params(request)).group
        service = parts.config.fleetlock.groups[group].service
    except TrustError as error:
        return _error(403, Kind.UNAUTHORIZED, error.sentence)
    except UsageError as error:
        return _error(400, Kind.BAD_REQUEST, error.sentence)
    except KeyError as error:
        known = ", ".join(parts.config.fleetlock.groups)
        return _error(404, Kind.UNKNOWN_GROUP, f"there is no group {error.args[0]}; [fleetlock] groups has {known}")
    try:
        if locking:
            lease = await parts.reboot_slots.lock(group, host, request.client.host if request.client else "")
            return JSONResponse({"ticket": lease.ticket, "lifetime_s": lease.lifetime_s})
        await parts.reboot_slots.unlock(group, host)
        return JSONResponse({})
    except BusyError as error:
        return _error(409, Kind.FULL if locking else Kind.FAILED_UNLOCK, error.sentence,
                      {"Retry-After": str(max(1, round(error.retry_after_s)))})
    except RerootError as error:
        log.error("%s of %s for %s: %s", operation, service, host, error.sentence)  # the path would tell the token
        status = 403 if isinstance(error, RefusedError) else 500
        return _error(status, Kind.FAILED_LOCK if locking else Kind.FAILED_UNLOCK, error.sentence)


def _caller(parts: Parts, credentials: list[str], address: str) -> str:
    """Return the host that calls; raises TrustError."""
    if not parts.config.fleetlock.groups:
        raise TrustError("FleetLock is not configured here; name groups in [fleetlock] of reroot.toml")
    if credentials:
        host, token = credentials
        auth.authorize_fleetlock(parts.admin_token, host, token, parts.hosts.by_name)
        return host
    if not parts.config.fleetlock.by_address:
        raise TrustError("the base URL names no host; `reroot ticket fleetlock HOST` prints the one to configure there")
    return auth.host_at(address, parts.hosts.by_name.values())


async def _params(request: Request) -> ClientParams:
    """Read header and body, whatever the Content-Type says; raises UsageError."""
    if request.headers.get(HEADER) != "true":
        raise UsageError(f"the header `{HEADER}: true` is missing; this is for FleetLock clients")
    try:
        return LockBody.model_validate_json(await read_body(request, MAX_BODY_BYTES)).client_params
    except ValidationError as error:
        raise UsageError(sentence(error)) from error


def _error(status: int, kind: Kind, value: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"kind": kind.value, "value": value}, status, headers)
