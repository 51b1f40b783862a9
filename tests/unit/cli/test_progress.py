"""What a long command says while it works: a terminal's bar, a script's events, a log's silence."""

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import run
from cli.progress import Report
from control import site
from plumbing import clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_events_are_one_object_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    out, now = io.StringIO(), [100.0]
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    with Report(as_json=True, stream=out) as report:
        report.begin("capture", ref="d/1/amd64")
        for second in range(1, 41):
            now[0] += 0.1
            report.advance("capture", second * 100, 5000)
        report.note("a\nb")
        report.done("capture")
    begin, *told, note, done = map(json.loads, out.getvalue().splitlines())
    assert begin == {"event": "begin", "what": "capture", "ref": "d/1/amd64"}
    assert 3 <= len(told) <= 4  # of 40 calls in four seconds
    assert told[-1]["event"] == "progress" and told[-1]["total_bytes"] == 5000
    assert told[-1]["bytes_per_s"] == pytest.approx(1000, abs=1)
    assert told[-1]["seconds_left"] == pytest.approx((5000 - told[-1]["done_bytes"]) / 1000, abs=0.11)
    assert note == {"event": "note", "value": "a\nb"}
    assert done == {"event": "done", "what": "capture", "seconds": 4.0}


def test_nothing_when_it_is_no_terminal_and_nobody_wants_json() -> None:
    out = io.StringIO()
    with Report(stream=out) as report:
        assert not report.heard
        report.begin("capture")
        report.advance("capture", 1, 2)
        report.note("x")
        report.done("capture")
    assert out.getvalue() == ""


def test_a_terminal_has_a_bar_and_is_left_clean() -> None:
    out = Terminal()
    with Report(stream=out) as report:
        assert report.heard
        report.begin("[red]open")
        report.begin("capture")
        report.advance("capture", 500_000, 1_000_000)
        assert report._bar is not None
        report._bar.refresh()
    assert "capture" in out.getvalue() and "0.5/1.0 MB" in out.getvalue()


def test_a_build_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("cli.progress.EVENT_S", 0.0)
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(30):
        (tree / str(number)).write_bytes(os.urandom(200_000))
    made = site.init(tmp_path / "site", "http://127.0.0.1:8080")
    assert run(["image", "build", str(tree), "--site", str(made.root), "--name", "d", "--version", "1", "--arch",
                "amd64", "--json"]) == 0
    captured = capsys.readouterr()
    built = json.loads(captured.out)
    events = [json.loads(line) for line in captured.err.splitlines()]
    assert [event["event"] for event in events[:3]] == ["begin", "done", "begin"]
    told = [event for event in events if event["event"] == "progress"]
    assert len(told) >= 3
    assert [event["done_bytes"] for event in told] == sorted(event["done_bytes"] for event in told)
    assert all(event["total_bytes"] == pytest.approx(built["raw_bytes"], rel=0.02) for event in told)
    assert told[-1]["done_bytes"] == told[-1]["total_bytes"] == built["raw_bytes"]
    assert events[-1]["event"] == "done" and events[-1]["done_bytes"] == built["raw_bytes"]


def test_a_build_on_a_real_terminal(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "f").write_bytes(os.urandom(3_000_000))
    made = site.init(tmp_path / "site", "http://127.0.0.1:8080")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
            [sys.executable, "-c", "from cli.main import main; main()", "image", "build", tree, "--site", made.root,
             "--name", "d", "--version", "1", "--arch", "amd64"],
            cwd=Path(__file__).parents[3], stderr=theirs, stdout=subprocess.PIPE,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"}) as child:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:  # the other side is closed
            pass
        assert child.stdout is not None
        said = child.stdout.read()
    os.close(ours)
    assert child.returncode == 0 and b"capture" in shown and b"published as" in said
