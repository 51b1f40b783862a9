"""Whether this system is well (I/O): what systemd says of it, and what it is.

Well means that systemd finished booting and no unit failed.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path

from plumbing import clock
from plumbing.errors import CommandError
from plumbing.run import run

RELEASE_FILE = Path("/etc/reroot/release.json")
"""Written into the new root by recovery: which release this is and which order brought it."""


@dataclass(frozen=True)
class Health:
    """A verdict with its reasons, as it is reported to the control server."""

    well: bool
    state: str
    failed_units: tuple[str, ...]
    os_release: dict[str, str]
    installed: dict[str, str]

    def to_json(self) -> dict[str, object]:
        """Return the `data` of a health report."""
        return {"well": self.well, "state": self.state, "failed_units": list(self.failed_units),
                "os_release": self.os_release, **self.installed}


def os_release(path: Path = Path("/etc/os-release")) -> dict[str, str]:
    """Read os-release(5) into a dict; {} when there is none."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {name: value.strip().strip("\"'") for name, _, value in pairs}


def installed(path: Path = RELEASE_FILE) -> dict[str, str]:
    """Return what recovery wrote about this root: release, digest, order, level; {} on a root it did not make."""
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in raw.items()} if isinstance(raw, dict) else {}


def check(*, wait_s: float = 300.0) -> Health:
    """Wait until systemd has booted, at most `wait_s` seconds, and say how it went."""
    deadline, pause = clock.monotonic() + wait_s, threading.Event()
    while True:
        state = _systemctl("is-system-running").strip()
        if state not in {"initializing", "starting", ""} or clock.monotonic() > deadline:
            break
        pause.wait(0.5)
    failed: tuple[str, ...] = ()
    if state != "running":
        listing = _systemctl("list-units", "--failed", "--plain", "--no-legend")
        failed = tuple(line.split()[0] for line in listing.splitlines() if line.split())
    return Health(state == "running", state or "silent", failed, os_release(), installed())


def _systemctl(*words: str) -> str:
    """Return what systemctl says; nothing when it is not there or does not answer, which is no health either."""
    try:
        return run(["systemctl", *words], check=False, timeout_s=30).text
    except CommandError:
        return ""
