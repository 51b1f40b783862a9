"""Process 1 and its worker, with real processes: crashes, stalls, limits, grandchildren, and a dead disk."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from plumbing.run import run
from recovery import machine
from recovery.limits import LIMITS, Limit, Watched, mark
from recovery.supervise import Start, alive, supervise


def NONE(_: int) -> float:
    return 0.0


def _limits(stall_s: float, total_s: float = math.inf) -> dict[str, Limit]:
    return dict.fromkeys(LIMITS, Limit(stall_s, total_s))


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    yield lines
    # nothing of supervise may outlive it: neither handler nor child
    assert signal.getsignal(signal.SIGCHLD) in (signal.SIG_DFL, None)
    assert signal.set_wakeup_fd(-1) == -1


def _starts(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_child_that_ends_well_is_the_end(said: list[str], tmp_path: Path) -> None:
    def worker(start: Start, _: int) -> None:
        (tmp_path / "starts").open("a").write(f"{start}\n")

    supervise(worker, pause=NONE, say=said.append)
    assert _starts(tmp_path / "starts") == 1 and said == []


def test_a_defect_costs_an_attempt_and_is_shown(
        said: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def worker(start: Start, _: int) -> None:
        (tmp_path / "starts").open("a").write(f"{start.spent}\n")
        if start.spent == 0:
            raise KeyError("a defect")
        if start.spent == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    supervise(worker, pause=NONE, say=said.append)
    assert (tmp_path / "starts").read_text().split() == ["0", "1", "2"]
    assert [line.split("(")[1].split(")")[0] for line in said] == ["70", "-9"]
    assert "KeyError: 'a defect'" in capfd.readouterr().err


def test_after_too_many_starts_it_is_for_the_rescue_menu_alone(said: list[str], tmp_path: Path) -> None:
    def worker(start: Start, _: int) -> None:
        (tmp_path / "starts").open("a").write(f"{start.broken}\n")
        if not start.broken:
            os._exit(9)

    supervise(worker, pause=NONE, say=said.append, starts=2)
    assert (tmp_path / "starts").read_text().split() == ["False", "False", "True"]


def test_a_child_that_stands_still_is_killed(said: list[str]) -> None:
    def worker(start: Start, _: int) -> None:
        if start.spent == 0:
            threading.Event().wait()

    began = time.monotonic()
    supervise(worker, pause=NONE, say=said.append, limits=_limits(0.5))
    assert 0.4 < time.monotonic() - began < 10
    assert "stood still" in said[0] and "(-9)" in said[1]


def test_a_child_that_works_is_left_alone(said: list[str]) -> None:
    def worker(_: Start, heartbeat: int) -> None:
        for _beat in range(10):
            os.write(heartbeat, b".")
            threading.Event().wait(0.4)

    supervise(worker, pause=NONE, say=said.append, limits=_limits(3))
    assert said == []


def test_a_heartbeat_nobody_reads_does_not_block(said: list[str]) -> None:
    def worker(_: Start, heartbeat: int) -> None:
        sent = 0
        try:
            for _beat in range(200_000):
                os.write(heartbeat, b"." * 64)
                sent += 1
        except BlockingIOError:
            pass
        os._exit(0 if sent else 1)

    supervise(worker, pause=NONE, say=said.append)
    assert said == []


def test_programs_the_child_starts_are_its_own_to_wait_for(said: list[str]) -> None:
    def worker(_: Start, __: int) -> None:
        for _program in range(20):
            assert run(["sh", "-c", "exit 3"], check=False).status == 3

    supervise(worker, pause=NONE, say=said.append)
    assert said == []


@pytest.mark.root
def test_as_process_1_it_reaps_orphans(tmp_path: Path) -> None:
    """In a PID namespace of its own, where orphans come to it as they do in the initramfs."""
    script = f"""
import os, subprocess, time
from pathlib import Path
from recovery.supervise import supervise

def worker(start, heartbeat):
    subprocess.run(["sh", "-c", "(sleep 0.05; :) & (sleep 0.05; :) & exit 0"], check=True)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        states = [line.split()[2] for line in (p.read_text() for p in Path("/proc").glob("[0-9]*/stat"))]
        if len(states) == 2:
            os._exit(0)
        time.sleep(0.02)
    os._exit(1)

assert os.getpid() == 1
said = []
supervise(worker, pause=lambda _: 0.0, say=said.append, starts=1)
Path({str(tmp_path / "said")!r}).write_text(repr(said))
"""
    subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", script], check=True, timeout=60,
                   env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])})
    assert (tmp_path / "said").read_text() == "[]"


# -- limits --------------------------------------------------------------------------------------------------


def test_every_step_has_limits() -> None:
    assert set(LIMITS) == {"start", *machine.State}
    for step, limit in LIMITS.items():
        assert 0 < limit.stall_s <= limit.total_s, step
        assert math.isfinite(limit.total_s) or step == "rescue", step


def test_a_byte_is_a_step_or_progress() -> None:
    watched = Watched(0.0, 0.0, limits={**LIMITS, "wipe": Limit(10, 100), "order": Limit(5, 7)})
    assert watched.step == "start"
    watched = watched.hear(b"..." + mark("order") + b"..", 50)
    assert (watched.step, watched.due_s) == ("order", 55)
    watched = watched.hear(b".", 54)
    assert watched.due_s == 57 and watched.overdue(56.9) is None
    assert watched.overdue(57) == "order took more than 7 s"
    watched = watched.hear(mark("network") + mark("wipe"), 60)
    assert (watched.step, watched.due_s) == ("wipe", 70)
    assert watched.hear(b"", 69).overdue(70) == "wipe stood still for 10 s"


def test_a_step_that_goes_on_and_on_is_killed(said: list[str]) -> None:
    """A server that drips bytes is progress for ever; the step as a whole has a limit too."""
    def worker(start: Start, heartbeat: int) -> None:
        if start.spent == 0:
            os.write(heartbeat, mark("restore"))
            while True:
                os.write(heartbeat, b".")
                threading.Event().wait(0.02)
        assert start == Start(1, False, "restore", "restore took more than 1 s"), start

    supervise(worker, pause=NONE, say=said.append, limits={**_limits(60), "restore": Limit(30, 1)}, starts=5)
    assert said == ["restore took more than 1 s; killing it", "recovery ended in restore (-9); starting it again (1)"]


def test_programs_go_with_the_worker_that_is_killed(said: list[str], tmp_path: Path) -> None:
    """mkfs must not go on writing beside the next worker."""
    def worker(start: Start, _: int) -> None:
        if start.spent == 0:
            run(["sh", "-c", f"sh -c 'echo $$ > {tmp_path}/pid; exec sleep 600'; :"], timeout_s=None)
        survives = int((tmp_path / "pid").read_text()) in alive()
        (tmp_path / "survives").write_text(str(survives))

    supervise(worker, pause=NONE, say=said.append, limits=_limits(1.5))
    assert len(said) == 2 and (tmp_path / "survives").read_text() == "False"


@pytest.mark.root
def test_a_worker_in_an_uninterruptible_write_is_left_behind_and_counted(
        said: list[str], frozen: Path, tmp_path: Path) -> None:
    """A disk that answers no more: no signal ends the process that waits for it, and the next attempt must not wait."""
    def worker(start: Start, heartbeat: int) -> None:
        with (tmp_path / "starts").open("a") as stream:
            stream.write(f"{start.spent} {os.getpid()}\n")
        if start.spent == 0:
            os.write(heartbeat, mark("preserve"))
            (frozen / "file").write_bytes(b"x")

    began = time.monotonic()
    supervise(worker, pause=NONE, say=said.append, limits=_limits(0.5), grace_s=0.5)
    assert time.monotonic() - began < 20
    (_, stuck), (second, _) = (line.split() for line in (tmp_path / "starts").read_text().splitlines())
    assert second == "1" and "left behind" in said[2] and "preserve" in said[0]
    assert Path(f"/proc/{stuck}/stat").read_text().rpartition(")")[2].split()[0] == "D", "it is stuck indeed"


@pytest.mark.root
def test_as_process_1_it_leaves_no_program_of_a_dead_worker(tmp_path: Path) -> None:
    """In a PID namespace of its own: the worker crashes, and what it had started is orphaned to process 1."""
    script = f"""
import os, subprocess
from pathlib import Path
from recovery.supervise import below, supervise

def worker(start, heartbeat):
    if start.spent == 0:
        subprocess.Popen(["setsid", "sleep", "600"], start_new_session=True)
        os._exit(9)
    os._exit(0 if below(1) == [os.getpid()] else 1)

said = []
supervise(worker, pause=lambda _: 0.0, say=said.append, starts=1)
Path({str(tmp_path / "said")!r}).write_text(chr(10).join(said))
"""
    subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", script], check=True, timeout=60,
                   env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])})
    assert (tmp_path / "said").read_text() == "recovery ended in start (9); starting it again (1)"


def test_the_watchdog_is_fed_while_the_step_is_within_its_limits_and_not_after(said: list[str]) -> None:
    fed: list[float] = []

    def worker(start: Start, _: int) -> None:
        if start.spent == 0:
            threading.Event().wait()

    supervise(worker, pause=NONE, say=said.append, limits=_limits(0.5), feed=lambda: fed.append(time.monotonic()))
    assert len(fed) >= 2, "once as each worker begins"
