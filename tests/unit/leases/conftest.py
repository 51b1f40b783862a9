"""A real server needs a site, and how one is made is the control room's tests' to know."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "control"))

Tell = Callable[[str], None]


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """Say what came out: the lines stand in one table at the end of the run, whichever worker ran the test."""
    return lambda line: record_property("outcome", line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)
               if report.when == "call"]
    lines = [str(line) for report in reports for name, line in report.user_properties if name == "outcome"]
    if lines:
        terminalreporter.section("tickets under attack")
        terminalreporter.write_line("| database   | daemons | crashes | falls | stops | jumps | answers lost | "
                                    "requests | ok | refused | busy | unknown | grants | live/slots | statuses | "
                                    "overtook | faults |")
        terminalreporter.write_line("\n".join(sorted(lines)))
