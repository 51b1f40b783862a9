"""A real server against strangers and hosts gone wrong: what they send is refused, and harms nobody else."""

from __future__ import annotations

import asyncio
import json
import math
import resource
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import uvicorn
from aiohttp import web
from servers import Machine, Server, make_site, serving

from control.patience import PatientOnce, close_slow
from control.site import Site
from fleet import agent
from plumbing import clock, hostauth
from plumbing.errors import RefusedError, RerootError, TrustError
from recovery import identity

LOOK_S = 0.1
HALF = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


def test_a_time_that_is_no_time_is_401(server: Server) -> None:
    host = Machine(server, "ha", "52:54:02:00:00:00").join()
    path = f"/api/v1/hosts/{host.name}/order"
    for time_s in ("9" * 400, "9" * 13, "-1", "1_0", "nan", ""):
        headers = hostauth.sign(host.key, host.name, clock.wall(), "GET", path, b"") | {"Reroot-Time": time_s}
        assert server.get(path, **headers).status == 401, time_s


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_json_has_not_is_refused_and_hides_nothing(server: Server, value: float) -> None:
    host = Machine(server, f"hb{value}", f"52:54:02:00:01:{value == math.inf:02x}").join()
    assert host.report("stage", "progress", {"done": value}).status == 400
    assert server.admin("GET", f"/hosts/{host.name}/events").status == 200


@pytest.mark.parametrize("wish", [
    {"interval_s": 1e308}, {"update_time_s": 1e308}, {"deadline_s": 1e12}, {"servers": 10**30}])
def test_absurd_rollouts_are_refused_and_the_others_stay_visible(server: Server, wish: dict[str, object]) -> None:
    assert server.admin("POST", "/rollouts", {"release": "debian/13.1/amd64", "hosts": ["x"], **wish}).status == 400
    assert server.admin("GET", "/rollouts").status == 200


def test_a_misspelt_release_or_service_starts_nothing(server: Server) -> None:
    host = Machine(server, "hc", "52:54:02:00:02:00").join()
    def ids() -> list[str]:
        return [one["id"] for one in server.admin("GET", "/rollouts").json()["rollouts"]]

    before = ids()
    wish = {"release": "debian/13.1/amd64", "hosts": [host.name], "per_server": 100}
    for change in ({"release": "debain/13.1/amd64"}, {"recovery": "nope/1/amd64"}, {"minimum": {"pathces": 1}}):
        assert server.admin("POST", "/rollouts", {**wish, **change}).status == 404, change
    assert ids() == before


def test_a_deadline_that_the_servers_miss_is_refused(server: Server) -> None:
    hosts = [Machine(server, f"hd{n}", f"52:54:02:00:03:{n:02x}").join().name for n in range(3)]
    wish = {"release": "debian/13.1/amd64", "hosts": hosts, "update_time_s": 600, "per_server": 1, "deadline_s": 900}
    answer = server.admin("POST", "/rollouts", wish)
    assert answer.status == 403
    assert b"servers" in answer.body


def test_a_full_disk_is_told_as_one_and_harms_nothing(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    with serving(site) as server:
        Machine(server, "hl", "52:54:02:00:07:00").add()
        before = site.hosts.read_text()
        limits = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1, limits[1]))  # every write fails
        for path, body in (("/hosts", {"host": {"name": "hm", "macs": ["52:54:02:00:07:01"]}}),
                           ("/orders", {"host": "hl", "mode": "rescue"})):
            answer = server.admin("POST", path, body)
            assert (answer.status, answer.json()["kind"]) == (500, "disk"), path
        assert site.hosts.read_text() == before
        assert server.admin("GET", "/hosts/hl").json()["orders"] == []
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)
        assert server.admin("POST", "/orders", {"host": "hl", "mode": "rescue"}).status == 201


# -- enrolling a living host, as the command that `reroot host enrol` prints does ---------------------------------


def root_digest(server: Server, capsys: pytest.CaptureFixture[str], name: str) -> tuple[str, str]:
    from cli.main import run

    assert run(["host", "enrol", name, "--site", str(server.site.root), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["token"] in told["command"].split("|")[0]
    assert told["token"] not in told["command"].split("|")[1]  # never among a process's arguments
    return told["token"], told["root_digest"]


def test_a_living_host_enrols(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Machine(server, "he", "52:54:02:00:04:00").add()
    token, digest = root_digest(server, capsys, "he")
    with pytest.raises(TrustError, match="digest"):
        agent.trusted_root(server.api, f"sha256:{'0' * 64}")
    root = agent.trusted_root(server.api, digest)
    with pytest.raises(TrustError):
        agent.enrol("he", server.api, [], "a wrong token", root, tmp_path)
    assert identity.load(tmp_path) is None
    agent.enrol("he", server.api, [], token, root, tmp_path)
    known = identity.load(tmp_path)
    assert known is not None
    assert known.client().request("GET", "/api/v1/hosts/he/order").status == 204
    with pytest.raises(RefusedError, match="enrolled as he"):
        agent.enrol("hf", server.api, [], token, root, tmp_path)


def test_a_strangers_root_sends_no_key(
    server: Server, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str],
) -> None:
    Machine(server, "hg", "52:54:02:00:05:00").add()
    token, _digest = root_digest(server, capsys, "hg")
    other: Site = make_site(tmp_path_factory.mktemp("other") / "site")
    with pytest.raises(RerootError):
        agent.enrol("hg", server.api, [], token, (other.catalogue / "metadata/1.root.json").read_bytes(), tmp_path)
    assert identity.load(tmp_path) is None
    assert server.admin("GET", "/hosts/hg").json()["enrolled"] is None


# -- clients that never come to the point -------------------------------------------------------------------------


async def closed(port: int, first: bytes) -> bool:
    """Tell whether the server closes a connection that sent `first`; a whole answer before it is read away."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(first)
    try:
        async with asyncio.timeout(20):
            with suppress(ConnectionError):
                await reader.read()
    except TimeoutError:
        return False
    finally:
        writer.close()
    return True


async def test_the_api_closes_slow_connections(tmp_path: Path) -> None:
    async def app(scope: object, receive: Callable[[], Awaitable[object]],
                  send: Callable[[dict[str, object]], Awaitable[None]]) -> None:
        await receive()
        await asyncio.sleep(4 * LOOK_S)  # an answer that takes long is not the client's fault
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    class Quick(PatientOnce):
        look_s = LOOK_S

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, http=Quick, lifespan="off", log_config=None))
        task = asyncio.create_task(server._serve([listener]))
        port = listener.getsockname()[1]
        for first in (b"", HALF, HALF + b"Content-Length: 9\r\n\r\nhalf", HALF + b"\r\n" + HALF):
            assert await closed(port, first)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HALF + b"\r\n")
        assert (await reader.readline()).split()[1] == b"200"
        writer.close()
        server.should_exit = True
        await task


async def test_the_content_server_closes_slow_connections() -> None:
    async def handler(_request: web.BaseRequest) -> web.Response:
        await asyncio.sleep(4 * LOOK_S)
        return web.Response(text="ok")

    runner = web.ServerRunner(web.Server(handler))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert runner.server is not None
    watch = asyncio.create_task(close_slow(runner.server, LOOK_S))
    port = runner.addresses[0][1]
    for first in (b"", HALF, HALF + b"\r\n" + HALF):
        assert await closed(port, first)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HALF + b"\r\n")
    assert (await reader.readline()).split()[1] == b"200"
    writer.close()
    watch.cancel()
    await runner.cleanup()


def test_the_server_that_was_killed_serves_again(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    with serving(site) as server:
        token = Machine(server, "hk", "52:54:02:00:06:00").add()
        server.process.kill()
        server.process.wait(20)
    with serving(site) as server:
        assert Machine(server, "hk", "52:54:02:00:06:00").enrol(token=token).status == 201
