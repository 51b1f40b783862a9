"""`reroot ticket` and `getticket` of enrolled hosts against a real server, from the first word to the last."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import ROOT, Machine, Server, make_site, serving, wait_until

from cli.main import run
from recovery import identity


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    site = make_site(tmp_path_factory.mktemp("commands") / "site")
    site.tickettab.write_text("service licence 60\nxv 1\nservice short 5\npool 1\n")
    site.tickettab.with_name("tickettab.toml").write_text(
        "[service.stage]\nlifetime_s = 60\noffer_slots = 4\nprovider.xv = 0\n")
    site.config.write_text(site.config.read_text().replace('services = ["root-dump"]', "services = []"))
    with serving(site) as running:
        yield running


@pytest.fixture(scope="module")
def hosts(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two enrolled hosts, each by its /local."""
    found = {}
    for number, name in enumerate(("alpha", "beta")):
        found[name] = tmp_path_factory.mktemp(name)
        machine = Machine(server, name, f"52:54:05:00:00:{number:02x}")
        token = machine.add()
        who = identity.create(found[name], name, server.api, [], b"{}", b"{}")
        machine.key = who.key
        assert machine.enrol(token=token).status == 201
    return found


def reroot(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = run(["ticket", *words])
    told = capsys.readouterr()
    return code, told.out, told.err


def getticket(local: Path, *words: str) -> list[str]:
    code = "import sys; sys.argv[0] = 'getticket'; from cli.getticket import getticket; getticket()"
    return [sys.executable, "-c", code, "--local", str(local), *words]


ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


def test_get_renew_status_return(
    server: Server, hosts: dict[str, Path], capsys: pytest.CaptureFixture[str],
) -> None:
    alpha, beta = (["--local", str(hosts[name])] for name in ("alpha", "beta"))
    code, out, _ = reroot(capsys, "get", "licence", "--json", *alpha)
    ticket = json.loads(out)
    assert (code, ticket["provider"], ticket["lifetime_s"], ticket["url"]) == (0, "xv", 60, "")
    name = ticket["ticket"]
    assert reroot(capsys, "get", "licence", *alpha) == (0, f"{name}\n", "")  # asked again, the same
    assert reroot(capsys, "renew", name, *alpha)[:2] == (0, f"{name} for another 1m\n")
    code, out, _ = reroot(capsys, "status", "--site", str(server.site.root))
    assert code == 0
    assert "licence: 1 of 1 tickets taken, lifetime 1m" in out
    assert f"{name} held by alpha" in out
    code, out, said = reroot(capsys, "renew", name, *beta)
    assert (code, out, said.count("\n")) == (6, "", 1)
    assert name in said
    code, out, said = reroot(capsys, "return", name, *beta)
    assert (code, out, said.count("\n")) == (6, "", 1)
    assert reroot(capsys, "return", name, *alpha) == (0, "", "")
    assert reroot(capsys, "return", name, "--json", *alpha) == (0, f'{{"ticket": "{name}", "returned": true}}\n', "")
    assert reroot(capsys, "renew", name, *alpha)[0] == 6


def test_a_host_offers_itself_and_withdraws(
    server: Server, hosts: dict[str, Path], capsys: pytest.CaptureFixture[str],
) -> None:
    alpha, beta = (["--local", str(hosts[name])] for name in ("alpha", "beta"))
    offered = ["offer", "stage", "--slots", "2", "--url", "http://alpha:8081", "--lifetime", "10m", *alpha]
    assert reroot(capsys, *offered) == (0, "2 slots of stage for 10m\n", "")
    assert "  alpha: 0 of 2, offered for another " in reroot(capsys, "status", "--site", str(server.site.root))[1]
    assert reroot(capsys, "get", "stage", *beta)[1].startswith("alpha_")
    for _ in range(2):
        assert reroot(capsys, "withdraw", "stage", *alpha) == (0, "", "")
    shown = reroot(capsys, "status", "--site", str(server.site.root))[1]
    assert "  alpha: 1 of 0, more than its slots by 1\n" in shown  # what was granted goes on until it ends
    assert reroot(capsys, "get", "stage", "--wait", "0", *alpha)[0] == 11


OFFER = ["--slots", "1", "--url", "http://alpha:8081"]


@pytest.mark.parametrize(("words", "code", "needles"), [
    (["get", "licenze"], 4, ("licenze", "licence, short")),
    (["withdraw", "stag"], 4, ("stag", "licence, short, stage")), (["offer", "stag", *OFFER], 4, ("stag", "stage")),
    (["offer", "licence", *OFFER], 6, ("offer_slots",)), (["offer", "a/b", *OFFER], 4, ("spelling",)),
    *((["offer", "stage", "--slots", many, *OFFER[2:]], 2, ("slots", many)) for many in (
        "5", "0", "-1", "99999999999999999999")),
    *((["offer", "stage", *OFFER, "--lifetime", life], 2, (life,)) for life in ("0", "-1", "99999d", "ten")),
    (["offer", "stage", *OFFER[:2], "--url", "ftp://alpha"], 2, ("url",)),
    (["get", "licence", "--wait", "soon"], 2, ("'soon'", "30m")),
    (["renew", "xv"], 2, ("'xv'", "milton_080")), (["return", "../../status"], 2, ("milton_080",)),
    (["renew", "xv_999"], 6, ("xv_999",)), (["return", "xv_99999999999999999999"], 0, ()),
])
def test_what_is_wrong_is_one_sentence(
    hosts: dict[str, Path], capsys: pytest.CaptureFixture[str], words: list[str], code: int, needles: tuple[str, ...],
) -> None:
    found, out, said = reroot(capsys, *words, "--local", str(hosts["alpha"]))
    assert (found, out) == (code, "")
    assert said.count("\n") == bool(needles)
    assert all(needle in said for needle in needles), said


def test_the_wrapper_holds_the_licence_while_its_command_runs_and_no_longer(hosts: dict[str, Path]) -> None:
    with subprocess.Popen(
        getticket(hosts["alpha"], "licence", "--", "sh", "-c", 'echo "$REROOT_PROVIDER"; read word; kill -9 $$'),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENV,
    ) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == "xv\n"
        full = subprocess.run(getticket(hosts["beta"], "licence", "--wait", "0"), capture_output=True, text=True,
                              env=ENV)
        assert (full.returncode, full.stdout) == (11, "")
        holder.stdin.write("go\n")
        holder.stdin.flush()
        assert holder.wait(30) == 137
    script = 'set -e; t=$("$@"); echo "${t%_*}"'
    free = subprocess.run(["sh", "-c", script, "sh", *getticket(hosts["beta"], "licence", "--wait", "0")],
                          capture_output=True, text=True, env=ENV)
    assert (free.stdout, free.stderr) == ("xv\n", "")
    # The next in line waits for it; what was killed by its user gives it back too.
    with subprocess.Popen(getticket(hosts["alpha"], "licence", "--", "echo", "mine"), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, env=ENV) as waiting:
        again = subprocess.run(getticket(hosts["beta"], "licence"), capture_output=True, text=True, env=ENV)
        subprocess.run(getticket(hosts["beta"], "-r", again.stdout.strip()), check=True, env=ENV)
        assert waiting.communicate(timeout=60)[0] == "mine\n"


def test_a_wrapper_killed_by_sigkill_leaves_a_lease_that_ends_by_itself(
    server: Server, hosts: dict[str, Path],
) -> None:
    def held() -> list[str]:
        services = server.admin("GET", "/status").json()["tickets"]
        return [lease["holder"] for one in services if one["service"] == "short" for lease in one["leases"]]

    with subprocess.Popen(getticket(hosts["alpha"], "short", "--", "sh", "-c", "echo up; exec sleep 1000"),
                          stdout=subprocess.PIPE, text=True, env=ENV) as wrapper:
        assert wrapper.stdout is not None
        assert wrapper.stdout.readline() == "up\n"
        wrapper.kill()
        assert wrapper.stdout.read() == ""  # the command went too, or its output would still be open
    assert held() == ["alpha"]
    wait_until(lambda: held() == [])
