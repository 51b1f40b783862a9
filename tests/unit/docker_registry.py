"""Debian's docker-registry on a free port of the loopback, for the tests of push and pull."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from plumbing import clock
from plumbing.run import spawn

PASSWORDS = "ops:$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n"
"""An htpasswd file: the password of ops is "secret", as bcrypt writes it."""


@contextmanager
def serving(folder: Path, http: Mapping[str, object] | None = None, auth: object = None) -> Iterator[str]:
    """Run a registry that keeps its data below `folder` and yield its host:port."""
    folder.mkdir(exist_ok=True)
    settings = {"version": 0.1, "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
                "http": {"addr": "127.0.0.1:0", "secret": "one secret for every run", **(http or {})},
                **({"auth": auth} if auth else {})}
    (folder / "config.yml").write_text(json.dumps(settings))  # JSON is YAML
    log = folder / "log"
    with log.open("wb") as out:
        process = spawn(["docker-registry", "serve", folder / "config.yml"], errors=out)
    try:
        until, tick = clock.monotonic() + 60, threading.Event()
        while not (found := re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text())):
            assert process.poll() is None and clock.monotonic() < until, log.read_text()
            tick.wait(0.01)
        yield found[1]
    finally:
        process.kill()
        process.wait()
