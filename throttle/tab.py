"""The tickettab and tickettab.toml as a running server sees them: read again when they change. I/O: the two files."""

from __future__ import annotations

import logging
from pathlib import Path

from plumbing.errors import ConfigError
from throttle import tickettab, tickettab_toml
from throttle.tickettab import Service

log = logging.getLogger(__name__)
Stamp = tuple[tuple[int, int, int], ...]


class Tab:
    """The services of both files; a broken edit leaves the last good ones in force."""

    def __init__(self, path: Path) -> None:
        """Read the files; raises ConfigError when they are wrong."""
        self.path = path
        self.problem: str | None = None
        self._toml = path.with_name(f"{path.name}.toml")
        self._seen = self._stamp()
        self.services = self._read()

    def current(self) -> dict[str, Service]:
        """Return the services, from memory unless a file was changed."""
        seen = self._stamp()
        if seen != self._seen:
            self._seen = seen
            try:
                self.services, self.problem = self._read(), None
            except ConfigError as error:
                self.problem = f"{error.sentence}; the services stay as they were"
                log.error("%s", self.problem)
        return self.services

    def _stamp(self) -> Stamp:
        found = []
        for path in (self.path, self._toml):
            try:
                there = path.stat()
            except OSError:
                found.append((0, 0, 0))
            else:
                found.append((there.st_ino, there.st_mtime_ns, there.st_size))
        return tuple(found)

    def _read(self) -> dict[str, Service]:
        services = tickettab.parse(_text(self.path), str(self.path))
        if not self._toml.exists():
            return services
        more = tickettab_toml.parse(_text(self._toml), str(self._toml))
        for name in more:
            if name in services:
                raise ConfigError(f"{self._toml}: service {name!r} is in {self.path.name} too; keep one of them")
        return {**services, **more}


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); it must be a UTF-8 text file") from error
