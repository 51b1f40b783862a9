import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console
from typer import Typer
from typer.testing import CliRunner

from cli import plan as plan_command
from cli import rollout as rollout_command
from cli.admin import Admin
from plumbing.errors import ConfigError, NetworkError, RefusedError, RerootError, UsageError
from rollout import record
from rollout.executor import Pace, State

QUESTION = ["--hosts", "1500", "--update-time", "30m", "--download-time", "15m", "--servers", "10", "--per-server", "5"]
PLAN = Typer()
PLAN.command()(plan_command.plan)


def ask(app: Typer, *words: str) -> tuple[str, BaseException | None]:
    done = CliRunner().invoke(app, list(words))
    assert done.exception is None or isinstance(done.exception, RerootError), done.output
    return done.stdout, done.exception


def script(name: str, stdin: bytes, *words: str) -> "subprocess.CompletedProcess[bytes]":
    code = f"import sys; sys.argv[0] = {name!r}; from cli.plan import {name}; {name}()"
    return subprocess.run([sys.executable, "-c", code, *words], input=stdin, capture_output=True,
                          env={"PYTHONPATH": ":".join(sys.path)})


def test_the_papers_question() -> None:
    out, error = ask(PLAN, *QUESTION)
    assert error is None
    assert "a host every 36s" in out
    assert "a host every 18s" in out
    assert "100 hosts" in out


def test_a_refusal_still_shows_its_numbers() -> None:
    out, error = ask(PLAN, *QUESTION, "--blast-budget", "50", "--json")
    assert json.loads(out)["in_flight"] == 100
    assert isinstance(error, RefusedError)
    assert error.sentence == json.loads(out)["refused"]


def test_a_mistyped_duration() -> None:
    assert isinstance(ask(PLAN, "--hosts", "1", "--update-time", "soon")[1], UsageError)


def test_sortaddrs_reads_and_prints() -> None:
    done = script("sortaddrs", b"10.0.0.1\n10.0.0.2 # old\n\n10.0.1.1\n2001:db8::1\nlocalhost\n")
    assert done.stdout.split() == [b"10.0.0.1", b"10.0.1.1", b"2001:db8::1", b"localhost", b"10.0.0.2"]
    assert done.returncode == 0


def test_sortaddrs_with_wider_subnets() -> None:
    assert script("sortaddrs", b"10.0.0.1\n10.0.1.1\n10.1.0.1\n", "--prefix4", "16").stdout.split() == [
        b"10.0.0.1", b"10.1.0.1", b"10.0.1.1"]


@pytest.mark.parametrize(("stdin", "code", "words"), [
    (b"10.0.0.1\nno.such.invalid\n", 4, b"no address is known for no.such.invalid"),
    (b"a" * 300 + b"\n", 4, b"no address is known for aaa"),
    (b"\xff\xfe\n", 4, b"no address is known for"),
])
def test_what_sortaddrs_cannot_place_is_one_sentence(stdin: bytes, code: int, words: bytes) -> None:
    done = script("sortaddrs", stdin)
    assert done.returncode == code
    assert words in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert done.stdout == b""


class AdminServer:
    """The rollouts part of the admin API, just enough of it, on loopback."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, object]] = []
        self.phases = ["running"]
        self.failed = {"beta": "[red]\x1b]0;owned\x07 panic"}
        self.accepted: frozenset[str] = frozenset()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                owner.seen.append((f"{self.command} {self.path}", json.loads(body) if body else None))
                known = self.headers["Authorization"] == "Bearer secret"
                answer = owner.answer() if known else {"kind": "trust", "value": "who are you?"}
                self.send_response(200 if known else 401)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            do_GET = do_POST = do_PUT = serve

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self) -> object:
        pace = Pace(10, 40, 2, 4, 2, 300)
        state = State(pace, (("alpha", "beta"),), in_flight={"alpha": 0.0}, last_trigger=0.0,
                      failed=self.failed, accepted=self.accepted)
        phase = self.phases.pop(0) if len(self.phases) > 1 else self.phases[0]
        view = {"id": "r2", "release": "debian/13/amd64", **record.view(state, 7.0, None), "phase": phase}
        # one shape for every path: what a list needs, and the view itself
        return {**view, "rollouts": [{**view, "created": "2026-11-21T12:00:00Z"}, {"id": "r1"}]}


@pytest.fixture
def admin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AdminServer]:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "admin.token").write_text("secret\n")
    made = AdminServer()
    monkeypatch.setenv("REROOT_SITE", str(tmp_path))
    monkeypatch.setenv("REROOT_CONTROL", f"http://127.0.0.1:{made.http.server_port}")
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_start_sends_what_was_said_and_nothing_else(admin: AdminServer) -> None:
    out, error = ask(rollout_command.app, "start", "debian/13/amd64", "alpha", "beta", "--update-time", "3m",
                     "--interval", "5s", "--failure-budget", "1", "--minimum", "root-dump=2")
    assert (out, error) == ("r2\n", None)
    assert admin.seen == [("POST /api/v1/admin/rollouts", {
        "release": "debian/13/amd64", "hosts": ["alpha", "beta"], "update_time_s": 180.0, "interval_s": 5.0,
        "failure_budget": 1, "minimum": {"root-dump": 2}})]


def test_start_wants_hosts_or_a_class(admin: AdminServer) -> None:
    for words in ([], ["alpha", "--class", "=desks"], ["alpha", "--minimum", "root-dump"]):
        assert isinstance(ask(rollout_command.app, "start", "debian/13/amd64", *words)[1], UsageError)
    assert admin.seen == []


@pytest.mark.parametrize(("words", "line", "body"), [
    (["pause"], "POST /api/v1/admin/rollouts/r2/pause", {}),
    (["resume", "r1"], "POST /api/v1/admin/rollouts/r1/resume", {}),
    (["abort"], "POST /api/v1/admin/rollouts/r2/abort", {}),
    (["knob", "1m30s"], "PUT /api/v1/admin/rollouts/r2/knob", {"interval_s": 90.0}),
    (["knob", "auto", "r1"], "PUT /api/v1/admin/rollouts/r1/knob", {"interval_s": None}),
])
def test_steering(admin: AdminServer, words: list[str], line: str, body: object) -> None:
    assert ask(rollout_command.app, *words)[1] is None
    assert admin.seen[-1] == (line, body)


def test_status_as_json_and_as_a_table_without_the_hosts_escapes(admin: AdminServer) -> None:
    view = json.loads(ask(rollout_command.app, "status", "--json")[0])
    assert view["in_flight"] == [{"host": "alpha", "since_s": 7.0}]
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(rollout_command.table(view))
    text = console.export_text()
    assert "a host every 40s" in text
    assert "[red]\N{REPLACEMENT CHARACTER}]0;owned\N{REPLACEMENT CHARACTER} panic" in text


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_command, "LOOK_S", 0.01)


@pytest.mark.usefixtures("quick")
def test_watch_ends_with_the_rollout(admin: AdminServer) -> None:
    admin.phases = ["halted"]
    assert isinstance(ask(rollout_command.app, "watch", "r2")[1], RefusedError)
    admin.phases, admin.failed = ["running", "running", "done"], {}
    out, error = ask(rollout_command.app, "watch", "r2")
    assert error is None
    assert out.endswith("\n")


@pytest.mark.usefixtures("quick")
def test_watch_counts_and_names_the_hosts_that_failed(admin: AdminServer) -> None:
    admin.phases = ["done"]
    error = ask(rollout_command.app, "watch", "r2")[1]
    assert isinstance(error, RefusedError)
    assert "done, and 1 of 2 hosts failed: beta;" in error.sentence
    admin.failed = {f"host{number}": "" for number in range(12)}
    error = ask(rollout_command.app, "watch", "r2")[1]
    assert isinstance(error, RefusedError)
    assert "12 of 2 hosts failed: host0, " in error.sentence and "host9 and 2 more" in error.sentence
    admin.accepted = frozenset(admin.failed)
    assert ask(rollout_command.app, "watch", "r2")[1] is None


@pytest.mark.usefixtures("quick")
def test_watch_goes_on_while_the_server_is_away(
        admin: AdminServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    looked = iter([False, True, True, False, True, False])

    def view(server: Admin, rollout: str) -> dict[str, object]:
        if next(looked):
            raise NetworkError("http://c:1 cannot be reached")
        return server.get(f"/rollouts/{rollout}")

    monkeypatch.setattr(rollout_command, "_view", view)
    admin.phases, admin.failed = ["running", "running", "done"], {}
    rollout_command.watch("r2", Path(os.environ["REROOT_SITE"]), os.environ["REROOT_CONTROL"])
    assert capsys.readouterr().err.count("cannot be reached; watching on") == 2  # once for each time it was away
    assert next(looked, None) is None


def test_list(admin: AdminServer) -> None:
    head, first, second = ask(rollout_command.app, "list")[0].splitlines()
    assert head.split() == ["ROLLOUT", "STARTED", "RELEASE", "PHASE", "HOSTS", "HEALTHY", "FAILED"]
    assert first.split() == ["r2", "2026-11-21T12:00:00Z", "debian/13/amd64", "running", "2", "0", "1"]
    assert second.split()[0] == "r1"
    assert [one["id"] for one in json.loads(ask(rollout_command.app, "list", "--json")[0])] == ["r2", "r1"]


def test_without_a_site_it_says_which_file_is_missing(tmp_path: Path) -> None:
    error = ask(rollout_command.app, "status", "--site", str(tmp_path / "absent"))[1]
    assert isinstance(error, ConfigError)
    assert "admin.token" in error.sentence
