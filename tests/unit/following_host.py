"""A host that follows a site's catalogue over HTTP, for the tests of what an administrator does to it."""

from __future__ import annotations

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

from control.site import Site
from imaging.catalogue import Catalogue
from imaging.trusted import TrustedCatalogue
from plumbing.errors import NotFoundError


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class FollowingHost:
    """Knows the site's first root, and remembers in `cache` what it saw."""

    def __init__(self, site: Site, cache: Path) -> None:
        self._root = Catalogue(site.catalogue, site.keys).root_json()
        self._cache = cache
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site.catalogue)))

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def sees(self, target: str) -> bytes:
        """Look again; raises what a host would."""
        url = f"http://127.0.0.1:{self._server.server_address[1]}"
        looking = TrustedCatalogue(self._root, f"{url}/metadata/", f"{url}/targets/", self._cache)
        try:
            return looking.fetch(target)
        finally:
            looking.close()

    def sees_no(self, target: str) -> None:
        """Look again; the target must not be listed."""
        try:
            self.sees(target)
        except NotFoundError:
            return
        raise AssertionError(f"{target} is still there")

    def metadata(self, role: str) -> dict[str, object]:
        """Return the metadata of a role as remembered after the last look."""
        value = json.loads((self._cache / f"{role}.json").read_bytes())
        assert isinstance(value, dict)
        return value
