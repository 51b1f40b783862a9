"""Machines for the tests: one lab for a test, real Debian hosts built once for a session.

Consoles and logs stay in .cache/lab/TEST (or $REROOT_LAB_LOGS), also when the test passed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import host
from lab.control import ControlServer
from lab.demo import Demo, Wish
from lab.host import BuiltHost, HostSpec
from lab.session import Lab

LOGS = Path(os.environ.get("REROOT_LAB_LOGS") or Path(__file__).parents[2] / ".cache" / "lab")

OpenLab = Callable[..., Lab]
BuildHost = Callable[[HostSpec], BuiltHost]
Begin = Callable[[Wish], Demo]
Tell = Callable[[str], None]


@pytest.fixture
def open_lab(request: pytest.FixtureRequest) -> Iterator[OpenLab]:
    """Open labs (keyword arguments as Lab has them) that end with the test."""
    opened: list[Lab] = []
    logs = LOGS / re.sub(r"\W+", "-", request.node.name).strip("-")
    shutil.rmtree(logs, ignore_errors=True)

    def make(**wanted: object) -> Lab:
        wanted.setdefault("logs", logs / str(len(opened)) if opened else logs)
        lab = Lab(**wanted)  # type: ignore[arg-type]
        opened.append(lab)
        return lab.open()

    yield make
    for lab in reversed(opened):
        lab.close()


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """Say what happened: the lines stand at the end of the run, whichever worker ran the test, passed or not."""
    return lambda lines: record_property("told", lines)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    for report in reports:
        told = [str(lines) for name, lines in report.user_properties if name == "told"]
        if told and report.when == "call":
            terminalreporter.section(report.nodeid)
            terminalreporter.write_line("\n".join(told))


@pytest.fixture(scope="session")
def _built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[HostSpec, BuiltHost]]:
    built: dict[HostSpec, BuiltHost] = {}
    yield built
    for each in built.values():
        each.image.unlink(missing_ok=True)


@pytest.fixture
def build_host(_built: dict[HostSpec, BuiltHost], tmp_path_factory: pytest.TempPathFactory,
               tmp_path: Path) -> Iterator[BuildHost]:
    """Build a host's disk, or copy the one that this session built from the same spec; the copy is the test's own."""
    copies: list[Path] = []

    def build(spec: HostSpec) -> BuiltHost:
        if spec not in _built:
            _built[spec] = host.build(spec, tmp_path_factory.mktemp("hosts") / f"{spec.name}.img")
        made = _built[spec]
        image = tmp_path / f"{spec.name}-{len(copies)}.img"
        copies.append(host.copy_image(made.image, image))
        return BuiltHost(made.spec, image, made.plan, made.machine_id, made.host_keys)

    yield build
    for path in copies:
        path.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A site with recovery image and release, built once; tests copy it."""
    folder = tmp_path_factory.mktemp("template") / "site"
    with Lab() as lab:
        template = Demo(lab, Wish(quick=True), print)
        template.control = ControlServer(lab, folder)
        template.control.init()
        template.build()
    yield folder


@pytest.fixture
def begin(open_lab: OpenLab, site: Path) -> Begin:
    """Open a lab with a served site."""
    def make(wish: Wish) -> Demo:
        told = Demo(open_lab(subnets=(1, 2) if wish.hosts > 1 else (1,)), wish, print)
        told.prepare(site)
        return told

    return make
