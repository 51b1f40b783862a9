import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ticket_server import TicketServer

from cli import ticket as ticket_command
from plumbing import clock, hostauth
from recovery import identity


@pytest.fixture
def server() -> Iterator[TicketServer]:
    made = TicketServer()
    yield made
    made.stop()


@pytest.fixture
def host(tmp_path: Path, server: TicketServer) -> identity.Identity:
    return identity.create(tmp_path, "alpha", server.client.base_url, [], b"{}", b"{}")


def script(local: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    code = "import sys; sys.argv[0] = '/usr/bin/getticket'; from cli.getticket import getticket; getticket()"
    return subprocess.run([sys.executable, "-c", code, *words, "--local", str(local)], capture_output=True, text=True,
                          env={"PYTHONPATH": ":".join(sys.path)})


def test_prints_a_ticket_and_signs_as_this_host(
    tmp_path: Path, server: TicketServer, host: identity.Identity,
) -> None:
    done = script(tmp_path, "dump")
    assert (done.stdout, done.returncode) == ("milton_080\n", 0)
    (headers, body), = server.sent
    assert json.loads(body) == {"service": "dump"}
    claim = hostauth.read_claim(headers)
    assert claim.host == "alpha"
    hostauth.verify(claim, host.key.public_key(), clock.wall(), "POST", "/api/v1/tickets", body)


def test_gives_back(tmp_path: Path, server: TicketServer, host: identity.Identity) -> None:
    server.answer = lambda _line, _count: (204, {}, None)
    assert script(tmp_path, "-r", "milton_080").returncode == 0
    assert server.seen == ["DELETE /api/v1/tickets/milton_080"]


@pytest.mark.parametrize(("words", "code", "sentence"), [
    ([], 2, "getticket: say either `getticket SERVICE` or `getticket -r TICKET`\n"),
    (["dump", "-r", "milton_080"], 2, "getticket: say either `getticket SERVICE` or `getticket -r TICKET`\n"),
    (["-r", "../admin"], 2, "getticket: '../admin' is not a ticket; a ticket looks like milton_080\n"),
])
def test_a_wrong_call_asks_nobody(
    tmp_path: Path, server: TicketServer, host: identity.Identity, words: list[str], code: int, sentence: str,
) -> None:
    done = script(tmp_path, *words)
    assert (done.returncode, done.stderr, done.stdout) == (code, sentence, "")
    assert server.seen == []


def test_no_free_ticket_in_time(tmp_path: Path, server: TicketServer, host: identity.Identity) -> None:
    server.answer = lambda _line, _count: (429, {"Retry-After": "0"}, {"kind": "busy", "value": "all 28 are taken"})
    done = script(tmp_path, "dump", "--wait", "0")
    assert done.returncode == 11
    assert "all 28 are taken" in done.stderr
    assert done.stdout == ""


def test_status_names_who_holds_what() -> None:
    assert ticket_command.lines([{
        "service": "dump", "lifetime_s": 14400, "providers": [{"name": "milton", "slots": 8, "live": 1}],
        "leases": [{"ticket": "milton_080", "holder": "alpha", "fence": 80, "expires_in_s": 90.5}]}]) == [
        "dump: 1 of 8 tickets taken, lifetime 4h", "  milton: 1 of 8", "    milton_080 held by alpha, 1m30.5s left"]
    assert ticket_command.lines([{
        "service": "xv", "lifetime_s": 60, "providers": [{"name": "xv", "slots": 1, "live": 1}],
        "leases": [{"ticket": "xv_081", "holder": "alpha", "fence": 81, "expires_in_s": 9, "address": "10.1.0.11",
                    "since": "2026-11-21T12:00:00Z"}],
        "quarantined": [{"ticket": "xv_070", "holder": "delta", "since": None, "address": ""}],
        "waiting": 3, "line": [{"host": "beta", "waits_s": 61.5}, {"host": "gamma", "waits_s": 1}]}]) == [
        "xv: 1 of 1 tickets taken, lifetime 1m, 3 waiting", "  xv: 1 of 1",
        "    xv_081 held by alpha (10.1.0.11) since 2026-11-21T12:00:00Z, 9s left",
        "    xv_070 quarantined: delta fell silent", "    1. beta waits for 1m1.5s", "    2. gamma waits for 1s",
        "    … and 1 more"]
    assert ticket_command.lines([]) == ["no services; write some into the site's tickettab"]


def test_a_host_that_never_enrolled(tmp_path: Path) -> None:
    done = script(tmp_path, "dump")
    assert done.returncode == 3
    assert "enrol this host first" in done.stderr
