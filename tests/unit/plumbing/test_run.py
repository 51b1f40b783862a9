"""Programs are started with argv lists, and what cannot start or fails is one sentence with a command to replay."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from plumbing.errors import CommandError
from plumbing.run import replayable, run, spawn


def test_both_streams_and_the_status_come_back(tmp_path: Path) -> None:
    done = run(["sh", "-c", "cat; pwd >&2; exit 3"], stdin=b"in\xff", check=False, cwd=tmp_path)
    assert (done.status, done.text, done.stderr) == (3, "in\udcff", os.fsencode(tmp_path) + b"\n")


def test_a_failure_names_the_first_and_last_complaint_and_the_command() -> None:
    with pytest.raises(CommandError, match=r"sh failed with status 4: one … three; try: sh -c 'echo one >&2; echo two"):
        run(["sh", "-c", "echo one >&2; echo two >&2; echo three >&2; exit 4"])
    with pytest.raises(CommandError, match=r"status 1: one; try: "):
        run(["sh", "-c", "echo one >&2; exit 1"])
    with pytest.raises(CommandError, match="it printed no reason"):
        run(["false"])
    with pytest.raises(CommandError, match=r"sleep did not finish in 0 s; try: sleep 60"):
        run(["sleep", "60"], timeout_s=0.01)


def test_what_a_program_started_goes_with_it(tmp_path: Path) -> None:
    """mkfs that a shell started must not go on writing when its time is over."""
    os.mkfifo(tmp_path / "fifo")
    # the grandchild holds the pipe open until it dies; only then does reading it come to an end
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(CommandError, match="did not finish"):
        run(["sh", "-c", f"sh -c 'echo up >&3; exec sleep 600' 3> {tmp_path}/fifo & wait"], timeout_s=1)
    with os.fdopen(reader, "rb", buffering=0) as stream:
        assert stream.read() == b"up\n"
        hung_up = select.poll()
        hung_up.register(stream, 0)
        assert hung_up.poll(20_000), "the program that the shell started still runs"


@pytest.mark.root
def test_a_program_that_not_even_a_kill_ends_is_left_behind(
        tmp_path: Path, frozen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write to a frozen filesystem cannot be interrupted, as one to a disk that does not answer any more."""
    monkeypatch.setattr("plumbing.run.KILL_WAIT_S", 0.3)
    with pytest.raises(CommandError, match="not even a kill ends it"):
        run(["sh", "-c", f"echo > {frozen}/file"], timeout_s=0.5)


def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"")
    with (tmp_path / "log").open("ab") as log:
        with pytest.raises(CommandError, match="no-such-program is not installed on this machine"):
            run(["no-such-program"])
        with pytest.raises(CommandError, match="no-such-program is not installed on this machine"):
            spawn(["no-such-program"], errors=log)
        with pytest.raises(CommandError, match=r"cannot be started \(Permission denied\); try: "):
            run([tmp_path / "program"])
        with pytest.raises(CommandError, match=r"cannot be started \(Permission denied\); try: "):
            spawn([tmp_path / "program"], errors=log)


def test_a_spawned_program_goes_on_in_a_session_of_its_own(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as log:
        program = spawn(["sh", "-c", "echo ready >&2; read word; echo $word $GREETING"], errors=log, pipes=True,
                        env={"GREETING": "there", "PATH": os.environ["PATH"]})
    assert program.stdin and program.stdout and os.getsid(program.pid) == program.pid
    program.stdin.write(b"hello\n")
    assert program.stdout.readline() == b"hello there\n" and program.wait(10) == 0
    assert (tmp_path / "log").read_bytes() == b"ready\n"
    with (tmp_path / "log").open("ab") as log:
        assert spawn(["sh", "-c", "read word; echo $word."], errors=log).wait(10) == 0
    assert (tmp_path / "log").read_bytes() == b"ready\n.\n"


def test_replayable_is_for_a_shell() -> None:
    assert replayable(["a b", Path("/x"), b"\xff'"]) == "'a b' /x '\udcff'\"'\"''"


@pytest.mark.root
def test_a_powerless_program_is_nobody(tmp_path: Path) -> None:
    with (tmp_path / "errors").open("wb") as errors:
        process = spawn(["id"], errors=errors, pipes=True, powerless=True)
        said, _ = process.communicate()
    assert b"uid=65534" in said and b"gid=65534" in said and b"0(root)" not in said
