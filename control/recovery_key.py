"""Whose key opens second copies, in the catalogue; I/O: reads and writes key files, publishes.

The private half is wanted by nobody here: it is made, if it is not brought, in a folder of the administrator's choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from control.site import Site, make_token
from imaging.catalogue import Catalogue
from plumbing.errors import DiskError, NotFoundError, RefusedError
from precious import sealed, sealkeys


@dataclass(frozen=True)
class Placed:
    """The ids of the recovery keys in force, and the file that a new private half is in."""

    ids: tuple[str, ...]
    file: Path | None


def current(catalogue: Catalogue) -> tuple[bytes, ...]:
    """Return the public keys that the catalogue lists; none for a site that never had one."""
    try:
        return sealkeys.listed(catalogue.read(sealkeys.TARGET))
    except NotFoundError:
        return ()


def place(site: Site, catalogue: Catalogue, given: Path | None, into: Path | None, *, replace: bool, also: bool,
          ) -> Placed:
    """Publish a recovery key: that in the file `given`, or a new one made in the folder `into` (the site's keys).

    A site that has one keeps it unless `replace` or `also` says what becomes of it. Needs the targets key. Also makes
    the token with which copies are fetched, if there is none. Raises RefusedError, ConfigError, DiskError.
    """
    had = current(catalogue)
    if had and not (replace or also):
        raise RefusedError(f"this site has the recovery key {sealed.key_id(had[0])[:16]}; --replace puts another in "
                           "its place for copies to come, --also adds one")
    if not site.precious_token.exists():
        make_token(site.precious_token)
    file = None
    if given is not None:
        public = sealkeys.public(given)
    else:
        file = (into or site.keys) / site.recovery_key.name
        try:
            public = sealkeys.make(file).public_key().public_bytes_raw()
        except FileExistsError as error:
            raise RefusedError(f"{file} exists, and copies may need it; move it away first, or name it with "
                               "--recovery-key") from error
        except OSError as error:
            raise DiskError(f"{file} cannot be written ({error.strerror}); name a folder with --into") from error
    keys = (*had, public) if also else (public,)
    catalogue.publish(sealkeys.TARGET, sealkeys.listing(keys))
    return Placed(tuple(sealed.key_id(key) for key in dict.fromkeys(keys)), file)
