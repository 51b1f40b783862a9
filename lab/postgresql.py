"""A PostgreSQL server of a test's or a bench's own: made, started, stopped, killed. I/O: a folder, one process.

It listens on loopback and believes whoever connects from there. PostgreSQL will not run as root, so for root it runs as
nobody, on a folder that is given to nobody. Debian keeps its programs off PATH.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from plumbing import clock
from plumbing.errors import CommandError
from plumbing.run import NOBODY, run, spawn

PROGRAMS = Path("/usr/lib/postgresql")
START_S = 60.0
USER = "reroot"


def program(name: str) -> str:
    """Return a program of the newest PostgreSQL installed; raises CommandError when there is none."""
    versions = sorted(PROGRAMS.glob("[0-9]*"), key=lambda path: int(path.name))
    found = str(versions[-1] / "bin" / name) if versions else shutil.which(name)
    if not found:
        raise CommandError(f"{name} is not installed on this machine; install Debian's postgresql")
    return found


class Postgresql:
    """One server on 127.0.0.1:`port`, its data below `folder`, which must not exist; fsync is on."""

    def __init__(self, folder: Path, port: int, settings: Mapping[str, str] | None = None) -> None:
        self.folder, self.port = folder, port
        self._settings = {"port": str(port), "listen_addresses": "127.0.0.1", "unix_socket_directories": "",
                          "fsync": "on", "synchronous_commit": "on", **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        self._wait([program("initdb"), "-D", str(folder / "data"), "-A", "trust", "-U", USER, "-E", "UTF8",
                    "--no-locale", "--no-sync"])

    @property
    def pid(self) -> int:
        """The postmaster's process id; its backends are its children."""
        assert self._process is not None
        return self._process.pid

    def url(self, database: str, driver: str = "") -> str:
        """Return the URL of a database; `driver` as SQLAlchemy names it."""
        return f"postgresql{driver and '+'}{driver}://{USER}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it and wait until it answers; raises CommandError with its log's place."""
        words = [program("postgres"), "-D", str(self.folder / "data")]
        for name, value in self._settings.items():
            words += ["-c", f"{name}={value}"]
        with (self.folder / "log").open("ab") as log:
            self._process = spawn(words, errors=log, powerless=True, cwd=self.folder)
        deadline_s = clock.monotonic() + START_S
        ready = [program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while run(ready, check=False).status != 0:
            if self._process.poll() is not None or clock.monotonic() > deadline_s:
                raise CommandError(f"PostgreSQL did not start; {self.folder / 'log'} says why")

    def create(self, database: str) -> str:
        """Make an empty database and return its name."""
        run([program("createdb"), "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, database])
        return database

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop it, at once and cleanly; with SIGQUIT as in a crash."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None

    def _wait(self, words: list[str]) -> None:
        with (self.folder / "log").open("ab") as log:
            status = spawn(words, errors=log, powerless=True, cwd=self.folder).wait(120)
        if status:
            raise CommandError(f"{words[0]} failed with status {status}; {self.folder / 'log'} says why")
