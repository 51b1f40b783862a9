from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import Machine, Server, make_site, publish_release, serving

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One running server for all tests that need no server of their own; every test brings its own machines."""
    folder: Path = tmp_path_factory.mktemp("control")
    site = make_site(folder / "site")
    publish_release(site, folder)
    with serving(site) as running:
        yield running


@pytest.fixture
def machine(server: Server) -> Callable[[], Machine]:
    """Make machines with names and MAC addresses of their own."""
    def make() -> Machine:
        number = next(_NUMBERS)
        return Machine(server, f"host{number}", f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}")
    return make
