"""The site's TUF repository as the server uses it: read targets, keep the online roles fresh; I/O."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from control.site import Site
from imaging.catalogue import Catalogue
from plumbing import clock
from plumbing.errors import DiskError, TrustError


class SiteCatalogue:
    """One site's catalogue."""

    def __init__(self, site: Site) -> None:
        self._catalogue = Catalogue(site.catalogue, site.keys)

    def read(self, path: str) -> bytes:
        """Return a published target's bytes; raises NotFoundError."""
        with self._readable():
            return self._catalogue.read(path)

    def paths(self) -> list[str]:
        """Return the paths of everything published."""
        with self._readable():
            return list(self._catalogue.listed())

    def refresh(self) -> None:
        """Sign what is about to expire; raises TrustError when the root expired, ConfigError when a key is missing."""
        with self._readable():
            expires = json.loads(self._catalogue.root_json())["signed"]["expires"]
            if clock.from_iso(expires) <= clock.wall():
                raise TrustError(f"the catalogue's root expired at {expires} and no host accepts it; `reroot trust "
                                 "refresh root` renews it with the root key, or set this machine's clock")
            self._catalogue.refresh()

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DiskError(f"the catalogue {self._catalogue.folder} cannot be read ({error.strerror or error}); "
                            "nothing was changed, try again when that is mended") from error
