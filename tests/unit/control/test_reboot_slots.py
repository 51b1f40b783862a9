"""FleetLock's windows, and slots that are kept until their host is well, over real HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from servers import Server, make_site, serving, wait_until
from test_control_fleetlock import LOCK, UNLOCK, call, holders, told

from cli.main import run
from plumbing import clock

HOSTS = '[[host]]\nname = "alpha"\naddress = "127.0.0.1/8"\n[[host]]\nname = "beta"\naddress = "127.0.0.1/8"\n'
LIFETIME_S = 4


class Well(HTTPServer):
    """What is asked whether a host is well."""

    status = 200
    asked = 0


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Well)
        self.server.asked += 1
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def well() -> Iterator[Well]:
    with Well(("127.0.0.1", 0), _Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, well: Well) -> Iterator[Server]:
    begin = datetime.now(UTC) + timedelta(hours=12)
    closed = f"{begin:%a %H:%M}-{begin + timedelta(minutes=1):%a %H:%M}"
    healthy = f'healthy = "http://{{host}}:{well.server_port}/well"'
    site = make_site(tmp_path_factory.mktemp("slots") / "site", "".join(
        f"[fleetlock.groups.{name}]\n{keys}\n" for name, keys in {
            "closed": f'service = "reboots"\nwindows = ["{closed}"]',
            "open": f'service = "reboots"\nwindows = ["{closed}", "00:00-24:00"]\nzone = "Europe/Berlin"',
            "kept": f'service = "kept"\n{healthy}',
            "brief": f'service = "brief"\n{healthy}\nhealthy_within_s = 0.001'}.items()))
    site.hosts.write_text(HOSTS)
    with site.tickettab.open("a") as tab:
        tab.write("".join(f"service {name} {life_s}\nslots 1\n" for name, life_s in (
            ("reboots", 60), ("kept", LIFETIME_S), ("brief", LIFETIME_S))))
    with serving(site) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_held(server: Server, well: Well) -> Iterator[None]:
    yield
    well.status = 200
    for group in ("open", "kept", "brief"):
        assert call(server, UNLOCK, "alpha", group).status == 200


def status(server: Server, capsys: pytest.CaptureFixture[str]) -> str:
    assert run(["ticket", "status", "--site", str(server.site.root)]) == 0
    return capsys.readouterr().out


def test_outside_its_windows_a_group_gets_nothing_and_gives_back(
    server: Server, capsys: pytest.CaptureFixture[str],
) -> None:
    refused = call(server, LOCK, "beta", "closed")
    assert told(refused) == (409, "failed_lock_semaphore_full")
    assert b"group closed may not reboot now: closed until" in refused.body
    assert int(refused.headers["retry-after"]) == 3600
    assert call(server, LOCK, "alpha", "open").status == 200
    assert call(server, LOCK, "alpha", "closed").status == 409  # what it holds lets nobody reboot outside a window
    shown = status(server, capsys)
    assert "  group open: open at any time; nothing is granted: all 1 slots are taken\n" in shown
    assert "; nothing is granted\n" in shown.partition("  group closed: closed until ")[2].splitlines(keepends=True)[0]
    assert call(server, UNLOCK, "alpha", "closed").status == 200
    assert holders(server, "reboots") == []


def test_a_host_keeps_its_slot_until_it_is_well(
    server: Server, well: Well, capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(server, UNLOCK, "alpha", "kept").status == 200
    assert well.asked == 0  # there was nothing to give back
    assert call(server, LOCK, "alpha", "kept").status == 200
    well.status, ends_s = 503, clock.monotonic() + 1.5 * LIFETIME_S
    refused = call(server, UNLOCK, "alpha", "kept")
    assert told(refused) == (409, "failed_unlock")
    assert int(refused.headers["retry-after"]) == 30
    assert b"answered 503" in refused.body
    assert told(call(server, LOCK, "beta", "kept")) == (409, "failed_lock_semaphore_full")
    wait_until(lambda: call(server, UNLOCK, "alpha", "kept").status == 409 and clock.monotonic() > ends_s)
    assert holders(server, "kept") == ["alpha"]
    assert "is kept: alpha is unwell for " in status(server, capsys)
    well.status = 200
    assert call(server, UNLOCK, "alpha", "kept").status == 200
    assert holders(server, "kept") == []
    assert "is kept" not in status(server, capsys)


def test_a_host_that_is_unwell_for_too_long_is_shown_and_its_slot_is_free(
    server: Server, well: Well, capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(server, LOCK, "alpha", "brief").status == 200
    well.status = 503
    assert call(server, UNLOCK, "alpha", "brief").status == 409
    wait_until(lambda: call(server, UNLOCK, "alpha", "brief").status == 200)
    assert holders(server, "brief") == []
    assert "quarantined: alpha" in status(server, capsys)
    assert call(server, LOCK, "beta", "brief").status == 200
    well.status = 200
    assert call(server, UNLOCK, "beta", "brief").status == 200
