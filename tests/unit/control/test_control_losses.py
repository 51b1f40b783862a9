"""Losses between a host and its order: asked for, received, answered, and what a rollout makes of it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from servers import Machine, Server, make_site, publish_release, serving, wait_until
from test_control_rollouts import GUIDE, heal, view

from cli.main import run
from control.lossgate import FRESH_S, RETRY_S, Gate, LossStanding, judge
from precious.losses import Finding, Groups, Kind, LossReport, Lost
from precious.policy import Policy, load
from recovery.order import Order

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A site whose rule is what is shipped: ask."""
    folder: Path = tmp_path_factory.mktemp("asking")
    site = make_site(folder / "site", loss="ask")
    publish_release(site, folder)
    with serving(site) as running:
        yield running


@pytest.fixture
def host(asking: Server) -> Machine:
    number = next(_NUMBERS)
    return Machine(asking, f"loss{number}", f"52:54:00:00:09:{number:02x}").join()


def findings(*paths: bytes) -> tuple[Finding, ...]:
    groups = Groups()
    for path in paths:
        groups.add(Lost(path, Kind.ADDED, 7, 1_700_000_000))
    return groups.findings()


def asked(host: Machine) -> str | None:
    answer = host.client().request("GET", f"/api/v1/hosts/{host.name}/order?wait=0&loss=1")
    return answer.headers.get("reroot-asks") if answer.status == 204 else None


def policy_of(host: Machine) -> Policy:
    told = host.client().request("GET", f"/api/v1/hosts/{host.name}/loss").accepted()
    assert isinstance(told, dict)
    return Policy.from_json(told["policy"])


def send(host: Machine, *paths: bytes, baseline: str = "packages") -> int:
    """Do what the host's agent does when it is asked."""
    report = LossReport(1.0, 0.5, baseline, policy_of(host).digest, 100, findings(*paths))
    return host.client().post_json(f"/api/v1/hosts/{host.name}/loss", {"report": report.to_json()}).status


def shown(host: Machine) -> dict[str, object]:
    told = host.server.admin("GET", f"/hosts/{host.name}/loss").json()
    assert isinstance(told, dict)
    return told


def accept(host: Machine, *names: str) -> int:
    answer = host.server.admin("POST", f"/hosts/{host.name}/loss/accept", {"findings": names or None, "who": "ada"})
    return answer.status


def test_an_order_waits_for_the_report_and_for_the_answer(host: Machine) -> None:
    assert asked(host) is None
    answer = host.issue()
    assert answer.status == 403 and "waits for its loss report" in answer.json()["value"]
    assert asked(host) == "loss"
    assert send(host, b"etc/mine", b"var/lib/x") == 204 and asked(host) is None
    answer = host.issue()
    assert answer.status == 403
    assert f"(2 findings): `reroot precious report {host.name}`" in answer.json()["value"]
    first, second = (one.id for one in findings(b"etc/mine", b"var/lib/x"))
    assert accept(host, "0" * 12) == 404 and accept(host, first) == 200
    assert shown(host)["open"] == [second] and host.issue().status == 403
    assert accept(host) == 200 and host.issue().status == 201
    body = json.loads(host.order().body)
    import base64
    order = Order.from_json(base64.b64decode(body["payload"]))
    assert order.precious["accepted"] == {"baseline": "packages", "findings": sorted((first, second))}
    events = host.server.admin("GET", f"/hosts/{host.name}/events").json()["events"]
    accepted = [event["data"] for event in events if event["event"] == "accepted"]
    assert accepted == [{"finding": first, "who": "ada"}, {"finding": second, "who": "ada"}], "each once"


def test_a_host_that_loses_nothing_needs_no_answer_and_an_install_asks_nothing(host: Machine) -> None:
    host.issue()
    assert send(host) == 204
    assert host.issued() and shown(host)["gate"] == "clear"


def test_another_installation_or_policy_asks_anew(host: Machine) -> None:
    send(host, b"etc/mine")
    assert accept(host) == 200 and shown(host)["gate"] == "clear"
    send(host, b"etc/mine", baseline="debian/13/amd64 sha256:1 2026-11-29T12:00:00Z")
    assert shown(host)["gate"] == "asks", "the same file on another root is another file"
    assert accept(host) == 200 and shown(host)["gate"] == "clear"
    folder = host.server.site.precious.with_suffix("") / "host"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{host.name}.toml").write_text('[loss]\nrule = "refuse"\n')
    assert shown(host)["gate"] == "no_report", "it was made under another policy"
    send(host, b"etc/mine")
    assert shown(host)["gate"] == "refused" and "keep or ignore them" in str(shown(host)["why"])
    answer = host.issue()
    assert answer.status == 403 and "which its policy refuses" in answer.json()["value"]
    (folder / f"{host.name}.toml").write_text('[loss]\nrule = "warn"\n')
    assert host.issue().status == 201


def test_a_host_that_can_make_no_report_says_why_and_is_left_alone_for_a_while(host: Machine) -> None:
    host.issue()
    sent = host.client().post_json(f"/api/v1/hosts/{host.name}/loss", {"failed": "no \x1b[2J disk"})
    assert sent.status == 204 and asked(host) is None
    assert host.issue().status == 403 and asked(host) is None
    assert shown(host)["why"] == f"{host.name} could make no loss report: no ?[2J disk"


@pytest.mark.parametrize("body", [
    {}, {"report": {}}, {"report": {"spec": 1}}, {"failed": "x", "report": {"spec": 1}}, {"report": 3}, {"failed": ""},
    {"failed": "x" * 3000}])
def test_what_is_no_report_is_refused(host: Machine, body: object) -> None:
    assert host.client().post_json(f"/api/v1/hosts/{host.name}/loss", body).status == 400
    assert shown(host)["report"] is None


def test_a_host_reports_for_itself_only(host: Machine, asking: Server) -> None:
    other = Machine(asking, f"loss-other{next(_NUMBERS)}", f"52:54:00:00:0a:{next(_NUMBERS):02x}").join()
    assert host.client().post_json(f"/api/v1/hosts/{other.name}/loss", {"failed": "x"}).status == 401
    assert host.client().request("GET", f"/api/v1/hosts/{other.name}/loss").status == 401
    assert asking.get(f"/api/v1/admin/hosts/{host.name}/loss").status == 401


# -- rollouts ----------------------------------------------------------------------------------------------------------


def start(hosts: list[Machine], **more: object) -> str:
    answer = hosts[0].server.admin("POST", "/rollouts", {
        "release": "debian/13.1/amd64", "hosts": [one.name for one in hosts], **GUIDE, "interval_s": 0,
        "start_interval_s": 0, **more})
    assert answer.status == 201, answer.body
    return str(answer.json()["id"])


def reasons(server: Server, rollout: str) -> dict[str, str]:
    held = view(server, rollout)["held"]
    assert isinstance(held, list)
    return {one["host"]: one["reason"] for one in held}


def wait_for(condition: Callable[[], bool]) -> None:
    wait_until(condition, 40.0)


def test_a_rollout_goes_round_a_host_that_waits_and_takes_it_in_the_end(asking: Server, host: Machine) -> None:
    good = Machine(asking, f"loss-good{next(_NUMBERS)}", f"52:54:00:00:0b:{next(_NUMBERS):02x}").join()
    rollout = start([host, good], blast_budget=1, failure_budget=1)
    wait_for(lambda: asked(host) == asked(good) == "loss")
    assert send(host, b"etc/mine") == send(good) == 204
    wait_for(lambda: good.order().status == 200)
    wait_for(lambda: reasons(asking, rollout).get(host.name) ==
             f"{host.name} waits for an answer to its loss report (1 finding): `reroot precious report {host.name}`")
    heal(good)
    wait_for(lambda: view(asking, rollout)["healthy"] == 1)
    seen = view(asking, rollout)
    assert (seen["phase"], seen["failed"], host.order().status) == ("running", [], 204), "no failure, and not over"
    assert accept(host) == 200
    wait_for(lambda: host.order().status == 200)
    # the host looks again before it reboots, and finds what nobody had seen: its order is over, its rollout is not
    order = host.order().headers["reroot-order"]
    send(host, b"etc/mine", b"etc/newer")
    assert host.report("loss", "failed", {"final": True}, order=order, message="a loss").status == 204
    wait_for(lambda: host.name in reasons(asking, rollout) and host.order().status == 204)
    assert view(asking, rollout)["failed"] == [] and view(asking, rollout)["phase"] == "running"
    assert accept(host) == 200
    wait_for(lambda: host.order().status == 200)
    assert host.order().headers["reroot-order"] != order
    heal(host)
    wait_for(lambda: view(asking, rollout)["phase"] == "done")
    assert view(asking, rollout)["healthy"] == 2


# -- the rule ----------------------------------------------------------------------------------------------------------

ASK = load([("test", "")])
MADE = LossReport(1.0, 0.5, "packages", ASK.digest, 100, findings(b"etc/mine"))
STANDING = LossStanding("h", received_s=1000.0, report=MADE, accepted=frozenset({(MADE.findings[0].id, "packages")}))


@pytest.mark.parametrize(("standing", "gate"), [
    (STANDING, Gate.CLEAR),
    (LossStanding("h"), Gate.NO_REPORT),
    (replace(STANDING, accepted=frozenset()), Gate.ASKS),
    (replace(STANDING, accepted=frozenset({(MADE.findings[0].id, "debian/12")})), Gate.ASKS),
    (replace(STANDING, asked_s=1001.0), Gate.NO_REPORT),
    (replace(STANDING, healthy_s=1001.0), Gate.NO_REPORT),
    (replace(STANDING, failed="no disk", received_s=1400.0), Gate.NO_REPORT),
    (replace(STANDING, received_s=1500.0 - FRESH_S), Gate.NO_REPORT),
    (replace(STANDING, report=replace(MADE, policy="sha256:1")), Gate.NO_REPORT)])
def test_what_a_report_is_worth(standing: LossStanding, gate: Gate) -> None:
    verdict = judge(ASK, standing, 1500.0)
    assert (verdict.gate, verdict.wants) == (gate, gate is Gate.NO_REPORT and not standing.failed)
    assert judge(replace(ASK, loss=replace(ASK.loss, rule=load([("w", '[loss]\nrule = "warn"')]).loss.rule)),
                 standing, 1500.0).gate is Gate.CLEAR


def test_a_failed_report_is_tried_again_later() -> None:
    failed = replace(STANDING, failed="no disk")
    assert not judge(ASK, failed, 1000.0 + RETRY_S - 1).wants and judge(ASK, failed, 1000.0 + RETRY_S).wants


# -- commands ----------------------------------------------------------------------------------------------------------


def test_commands_print_what_to_decide_and_end_by_the_verdict(
    host: Machine, capsys: pytest.CaptureFixture[str],
) -> None:
    site = ["--site", str(host.server.site.root)]
    assert run(["precious", "report", host.name, "--wait", "1s", *site]) == 11
    assert "has sent no loss report in 1s" in capsys.readouterr().err
    send(host, b"etc/mine\x1b[31m<b>", b"var/lib/x")
    assert run(["precious", "report", host.name, *site]) == 6
    told = capsys.readouterr()
    first, second = findings(b"etc/mine\x1b[31m<b>", b"var/lib/x")
    assert "\x1b" not in told.out + told.err
    for words in (f"{first.id}  new: /etc  1 file, 7 B", 'keep = ["/etc/mine?[31m<b>"]', "2 findings, 2 to answer",
                  f"reroot precious accept {host.name} {first.id}"):
        assert words in told.out
    assert run(["host", "order", host.name, "--release", "debian/13.1", *site]) == 6
    assert "reroot precious accept" in capsys.readouterr().err
    assert run(["precious", "accept", host.name, *site]) == 2
    assert run(["precious", "accept", host.name, second.id, "--by", "grace", *site]) == 0
    assert "1 findings are left" in capsys.readouterr().out
    assert run(["precious", "accept", host.name, "--all", *site]) == 0
    assert run(["precious", "report", host.name, "--json", *site]) == 0
    capsys.readouterr()
    assert run(["precious", "report", host.name, *site]) == 0
    assert "accepted by grace" in capsys.readouterr().out
    assert run(["host", "order", host.name, "--release", "debian/13.1", *site]) == 0
