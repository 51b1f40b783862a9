"""`getticket SERVICE -- command …` as processes: real signals, a real terminal, a real sh."""

import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ticket_server import TICKET, Answer, TicketServer

from recovery import identity

GET, RENEW, RETURN = ("POST /api/v1/tickets", "POST /api/v1/tickets/milton_080/renew",
                      "DELETE /api/v1/tickets/milton_080")
CODE = ("import sys; sys.argv[0] = '/usr/bin/getticket'; from plumbing import foreground; "
        "foreground.STOP_S = {stop_s}; from cli.getticket import getticket; getticket()")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TicketServer]:
    made = TicketServer()
    made.answer = lambda line, _: (204, {}, None) if line == RETURN else (200, {}, TICKET)
    identity.create(tmp_path, "alpha", made.client.base_url, [], b"{}", b"{}")
    yield made
    made.stop()


class Wrapper:
    """`getticket dump -- sh -c SCRIPT`, running."""

    def __init__(self, folder: Path, *command: str, stop_s: float = 10, **more: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE.format(stop_s=stop_s), "dump", "--local", str(folder), "--", *command],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)}, **more)  # type: ignore[call-overload]

    def line(self) -> str:
        assert self.process.stdout is not None
        return str(self.process.stdout.readline()).rstrip("\n")

    def end(self) -> tuple[int, str]:
        _, told = self.process.communicate(timeout=30)
        return self.process.returncode, str(told)


def until(condition: Callable[[], bool]) -> bool:
    turn = threading.Event()
    return any(condition() or turn.wait(0.01) for _ in range(2000))


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_the_command_runs_under_the_ticket_and_its_exit_code_passes(tmp_path: Path, server: TicketServer) -> None:
    wrapper = Wrapper(tmp_path, "sh", "-c", 'echo "$REROOT_TICKET $REROOT_PROVIDER $REROOT_FENCE $REROOT_URL"; exit 7')
    assert wrapper.line() == "milton_080 milton 80 http://milton:8081"
    assert wrapper.end() == (7, "")
    assert server.seen == [GET, RETURN]


@pytest.mark.parametrize(("number", "code"), [(9, 137), (15, 143), (11, 139)])
def test_a_command_that_is_killed_gives_the_ticket_back(
    tmp_path: Path, server: TicketServer, number: int, code: int,
) -> None:
    assert Wrapper(tmp_path, "sh", "-c", f"kill -{number} $$").end()[0] == code
    assert server.seen == [GET, RETURN]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_reach_the_command(tmp_path: Path, server: TicketServer, number: signal.Signals) -> None:
    wrapper = Wrapper(tmp_path, sys.executable, "-c", (
        f"import signal, sys, time; signal.signal({int(number)}, lambda *_: sys.exit(3)); print('up', flush=True)\n"
        "while True: time.sleep(0.1)"))  # signal.pause() would miss one that comes just before it
    assert wrapper.line() == "up"
    wrapper.process.send_signal(number)
    assert wrapper.end() == (3, "")
    assert server.seen == [GET, RETURN]


def test_renewed_for_as_long_as_it_runs(tmp_path: Path, server: TicketServer) -> None:
    server.answer = lambda line, _: (204, {}, None) if line == RETURN else (200, {}, {**TICKET, "lifetime_s": 3})
    wrapper = Wrapper(tmp_path, "sh", "-c", "read line", stdin=subprocess.PIPE)
    server.wait_for(RENEW, 4)  # past the first lifetime
    assert wrapper.process.poll() is None
    assert wrapper.process.communicate("go\n", timeout=30)[1] == ""
    assert wrapper.process.returncode == 0
    assert server.seen[-1] == RETURN


def refusing(line: str, _count: int) -> Answer:
    if line == RENEW:
        return 403, {}, {"kind": "refused", "value": "gone"}
    return 200, {}, {**TICKET, "lifetime_s": 3}


def test_a_lost_ticket_stops_the_command_and_all_it_started(tmp_path: Path, server: TicketServer) -> None:
    server.answer = refusing
    wrapper = Wrapper(tmp_path, "sh", "-c", "sleep 1000 & echo $!; wait")
    grandchild = int(wrapper.line())
    code, told = wrapper.end()
    assert code == 6
    assert told == ("getticket: ticket milton_080 was lost: the server took it back, or it was not renewed in time; "
                    "sh was stopped\n")
    assert until(lambda: gone(grandchild))


def test_a_command_that_will_not_stop_is_killed(tmp_path: Path, server: TicketServer) -> None:
    server.answer = refusing
    wrapper = Wrapper(tmp_path, "sh", "-c", "trap '' TERM; echo $$; while :; do sleep 1000; done", stop_s=0.2)
    pid = int(wrapper.line())
    assert wrapper.end()[0] == 6
    assert until(lambda: gone(pid))


def test_a_server_that_stays_away_stops_the_command_before_the_lease_ends(
    tmp_path: Path, server: TicketServer,
) -> None:
    server.answer = lambda line, _: (500, {}, {"kind": "internal", "value": "on fire"}) if line == RENEW else (
        200, {}, {**TICKET, "lifetime_s": 4})
    code, told = Wrapper(tmp_path, "sleep", "1000").end()
    assert (code, told) == (6, "getticket: ticket milton_080 is about to end, for the ticket server has not answered "
                               "for too long; sleep was stopped\n")


def test_killed_itself_the_command_ends_too_and_the_lease_is_left_to_end(tmp_path: Path, server: TicketServer) -> None:
    wrapper = Wrapper(tmp_path, "sh", "-c", "echo $$; exec sleep 1000")
    pid = int(wrapper.line())
    wrapper.process.kill()
    wrapper.process.wait(30)
    assert until(lambda: gone(pid))
    assert server.seen == [GET]


@pytest.mark.parametrize(("name", "code", "needle"), [
    ("no-such-command", 127, "no such command"), ("./plain", 126, "chmod +x"), ("./dir", 127, "no such command")])
def test_what_cannot_be_run_takes_no_ticket(
    tmp_path: Path, server: TicketServer, name: str, code: int, needle: str,
) -> None:
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    (tmp_path / "dir").mkdir()
    status, told = Wrapper(tmp_path, name).end()
    assert (status, told.count("\n")) == (code, 1)
    assert needle in told
    assert server.seen == []


def test_a_file_the_kernel_will_not_run_gives_the_ticket_back(tmp_path: Path, server: TicketServer) -> None:
    (tmp_path / "empty").write_bytes(b"\0\0")
    (tmp_path / "empty").chmod(0o755)
    code, told = Wrapper(tmp_path, "./empty").end()
    assert (code, told.count("\n")) == (9, 1)
    assert server.seen == [GET, RETURN]


def test_stopped_while_it_waits(tmp_path: Path, server: TicketServer) -> None:
    server.answer = lambda _line, _count: (429, {"Retry-After": "60"}, {"kind": "busy", "value": "all are taken"})
    wrapper = Wrapper(tmp_path, "true")
    server.wait_for(GET)
    assert wrapper.process.stderr is not None
    assert "all are taken" in wrapper.process.stderr.readline()
    wrapper.process.terminate()
    assert wrapper.end()[0] == 143
    assert server.seen == [GET]



def test_at_a_terminal_the_command_is_in_the_foreground(tmp_path: Path, server: TicketServer) -> None:
    """^C ends the command and nobody else; its exit code, and the ticket given back, show who got it."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["PYTHONPATH"] = ":".join(sys.path)
        os.execv(sys.executable, [sys.executable, "-c", CODE.format(stop_s=10), "dump", "--local", str(tmp_path), "--",
                                  "sh", "-c", "trap 'echo caught; exit 5' INT; read name; echo hello $name; read name"])
    os.write(terminal, b"you\n")  # only the foreground may read
    read_until(terminal, b"hello you")
    os.write(terminal, b"\x03")
    read_until(terminal, b"caught")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    assert server.seen == [GET, RETURN]
    os.close(terminal)


def test_ctrl_z_stops_both_and_fg_goes_on(tmp_path: Path, server: TicketServer) -> None:
    wrapped = " ".join(f"'{word}'" for word in (
        sys.executable, "-c", CODE.format(stop_s=10).replace("'", "'\\''"), "dump", "--local", str(tmp_path), "--",
        "sh", "-c", "echo up; read name; echo hello $name; exit 4"))
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["PYTHONPATH"] = ":".join(sys.path)
        os.execv("/bin/sh", ["sh", "-m", "-c", f"{wrapped}; echo job:$?; fg; echo end:$?"])
    read_until(terminal, b"up\r\n")
    os.write(terminal, b"\x1a")
    read_until(terminal, b"job:")  # the shell has its terminal back
    os.write(terminal, b"again\n")
    read_until(terminal, b"end:4")
    os.waitpid(pid, 0)
    assert server.seen == [GET, RETURN]
    os.close(terminal)


def in_a_shell(folder: Path, script: str) -> tuple[int, int]:
    """Begin an interactive shell's way of running `script`, in which `G COMMAND` is the wrapper; pid and terminal."""
    words = [sys.executable, "-c", CODE.format(stop_s=10), "dump", "--local", str(folder), "--"]
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["PYTHONPATH"] = ":".join(sys.path)
        os.execv("/bin/sh", ["sh", "-m", "-c", script.replace("G ", quoted + " ")])
    return pid, terminal


def test_in_a_pipeline_the_command_may_read_and_ctrl_c_reaches_it(tmp_path: Path, server: TicketServer) -> None:
    _, terminal = in_a_shell(tmp_path, "G sh -c \"trap 'echo caught; exit 5' INT; echo up; read a; echo got \\$a; "
                                       "read b\" | cat; echo end")
    read_until(terminal, b"up\r\n")
    os.write(terminal, b"it\n")
    read_until(terminal, b"got it")
    os.write(terminal, b"\x03")
    read_until(terminal, b"caught")
    read_until(terminal, b"end")
    assert server.seen == [GET, RETURN]
    os.close(terminal)


def test_ctrl_z_of_a_pipeline_stops_the_command_too(tmp_path: Path, server: TicketServer) -> None:
    _, terminal = in_a_shell(tmp_path, "G sh -c 'echo up $$; exec sleep 1000' | cat; read word; fg; "
                                       "echo end")
    pid = int(read_until(terminal, b"\r\n").split()[1])
    os.write(terminal, b"\x1a")
    assert until(lambda: state(pid) == "T")
    os.write(terminal, b"go on\n")
    assert until(lambda: state(pid) != "T")
    os.write(terminal, b"\x03")
    read_until(terminal, b"end")
    assert until(lambda: gone(pid))
    assert server.seen == [GET, RETURN]
    os.close(terminal)


def test_bg_does_not_take_the_terminal_away_from_the_shell(tmp_path: Path, server: TicketServer) -> None:
    (tmp_path / "pause.py").write_text("import signal, sys\nsignal.signal(signal.SIGUSR1, lambda *_: sys.exit(3))\n"
                                       "print('up', flush=True)\nsignal.pause()\n")
    _, terminal = in_a_shell(tmp_path, f"G {sys.executable} {tmp_path}/pause.py; bg; read word; echo shell read $word; "
                                       "kill -USR1 %1; wait %1; echo end:$?")
    read_until(terminal, b"up\r\n")
    os.write(terminal, b"\x1a")
    os.write(terminal, b"this\n")
    read_until(terminal, b"shell read this")
    read_until(terminal, b"end:3")
    assert server.seen == [GET, RETURN]
    os.close(terminal)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def read_until(terminal: int, needle: bytes) -> bytes:
    seen = b""
    while needle not in seen:
        assert select.select([terminal], [], [], 60)[0], f"nothing more came after {seen!r}"
        try:
            seen += os.read(terminal, 4096)
        except OSError as error:
            raise AssertionError(f"the terminal closed after {seen!r}") from error
    return seen


def test_in_a_real_shell_the_provider_is_what_the_paper_says(tmp_path: Path, server: TicketServer) -> None:
    command = tmp_path / "bin/getticket"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nimport sys\nsys.path[:] = {sys.path!r}\n"
                       "from cli.getticket import getticket\ngetticket()\n")
    command.chmod(0o755)
    script = f"""set -eu
        ticket=$(getticket dump --local {tmp_path})
        echo "${{ticket%_*}} ${{ticket##*_}}"
        getticket -r "$ticket" --local {tmp_path}"""
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True,
                          env={"PATH": f"{command.parent}:/usr/bin:/bin"})
    assert (done.stdout, done.stderr, done.returncode) == ("milton 080\n", "", 0)
    assert server.seen == [GET, RETURN]
