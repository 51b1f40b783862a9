"""`reroot host …` against the running server."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

import pytest
from servers import Machine, Server

from cli.main import run

Make = Callable[[], Machine]


def test_the_token_goes_to_this_machine_unless_told_otherwise(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    before = server.site.config.read_text()
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(0)
        url = f"http://127.0.0.1:{elsewhere.getsockname()[1]}"
        server.site.config.write_text(before.replace(f'public_url = "{server.api}"', f'public_url = "{url}"'))
        try:
            assert url in server.site.config.read_text()
            assert run(["host", "list", "--site", str(server.site.root)]) == 0
            with pytest.raises(BlockingIOError):
                elsewhere.accept()
        finally:
            server.site.config.write_text(before)
    monkeypatch.setenv("REROOT_CONTROL", "http://127.0.0.1:1")
    assert run(["host", "list", "--site", str(server.site.root)]) == 7
    assert "127.0.0.1:1" in capsys.readouterr().err


def test_host_commands(machine: Make, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    host, site = machine(), ["--site", str(server.site.root)]
    assert run(["host", "add", host.name, "--mac", host.mac, "--subnet", "10.1.0.0/24", "--disk", "D1", *site]) == 0
    token = capsys.readouterr().out.strip()
    assert host.enrol(token=token).status == 201
    host.inventory()
    assert run(["host", "order", host.name, "--release", "debian/13.1", "--deadline", "2h", *site]) == 0
    assert f"{host.name} has the order" in capsys.readouterr().out
    assert run(["host", "order", host.name, "--release", "debian/13.1", *site]) == 11
    assert "--replace" in capsys.readouterr().err
    assert run(["host", "rescue", host.name, "--replace", "--json", *site]) == 0
    assert json.loads(capsys.readouterr().out)["order"]["mode"] == "rescue"
    host.report("stage", "failed", message="\x1b[31mred\r\n")
    assert run(["host", "show", host.name, "--events", *site]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert host.mac in shown
    assert run(["host", "list", *site]) == 0
    assert host.name in capsys.readouterr().out
    assert run(["host", "show", "nobody", *site]) == 4
    assert run(["host", "add", "nobody", *site]) == 4


def test_precious_show_says_where_each_rule_comes_from(
    machine: Make, server: Server, capsys: pytest.CaptureFixture[str],
) -> None:
    host, site = machine().join(), ["--site", str(server.site.root)]
    own = server.site.root / f"precious/host/{host.name}.toml"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text('# hers\n\n[[rule]]\nkeep = ["/data/**"]\nowner = ["ada"]\n')
    assert run(["precious", "show", host.name, *site]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert f'{own}, line 3: (host): /data/**  owner = ["ada"]' in shown
    assert any(line.startswith("default debian.toml, line ") and line.endswith("(merge fstab): /etc/fstab")
               for line in shown)
    assert any(line.startswith("default debian.toml, line ") and "files that no rule names" in line for line in shown)
    assert "second copy: same-disk, not required" in shown
    assert any(line.startswith("losses: warn; nobody would miss /") for line in shown)
    assert run(["precious", "show", host.name, "--json", *site]) == 0
    assert json.loads(capsys.readouterr().out)["policy"]["rules"][-1]["line"] == 3
    own.write_text('[[rule]]\nkeep = ["/data/**"]\nowmer = ["ada"]\n')
    assert run(["precious", "show", host.name, *site]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{own}, line 3" in said and "did you mean 'owner'?" in said
    own.unlink()
    assert run(["precious", "show", "nobody", *site]) == 4


def test_what_is_taken_or_misspelt_is_said(machine: Make, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    host, site = machine(), ["--site", str(server.site.root)]
    assert run(["host", "add", host.name, "--mac", host.mac, *site]) == 0
    line = server.site.hosts.read_text().splitlines().index(f'name = "{host.name}"') + 1
    for words, needle in (
        (["add", host.name, "--mac", host.mac],
         f"{host.name} is in hosts.toml already (line {line}); edit it there, or leave out --mac to get a new token"),
        (["add", "an-other", "--mac", host.mac.replace(":", "-")],
         f"{host.mac} belongs to {host.name} in hosts.toml already (line {line});"),
        (["add", "an-other", "--mac", "00:00:00:00:00:00"], "no machine's MAC address"),
        (["add", "an-other", "--mac", "01:00:5e:00:00:01"], "no machine's MAC address"),
    ):
        capsys.readouterr()
        assert run(["host", *words, *site]) == 2
        said = capsys.readouterr().err
        assert needle in said and said.count("\n") == 1, said
    assert run(["host", "enrol", f"{host.name}x", *site]) == 4
    assert f"did you mean '{host.name}'?" in (said := capsys.readouterr().err) and "--mac" not in said
    assert run(["host", "enrol", "zzzzzzzz", *site]) == 4
    assert "`reroot host add zzzzzzzz --mac" in capsys.readouterr().err


def test_an_order_is_withdrawn_once(machine: Make, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    host, site = machine().join(), ["--site", str(server.site.root)]
    order = ["host", "order", host.name, *site]
    assert run([*order, "--release", "debian/13.1", "--recovery", "nosuch/1/amd64"]) == 4
    assert "`reroot recovery list`" in capsys.readouterr().err
    assert run([*order, "--release", "debian/13.1"]) == 0
    assert run([*order, "--cancel"]) == 0
    assert run([*order, "--cancel"]) == 6
    assert "is cancelled already" in capsys.readouterr().err
