"""Requests to the control server as its administrator. I/O: reads the site's token, HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plumbing.errors import ConfigError, CorruptError
from plumbing.http import Client

if TYPE_CHECKING:
    from imaging.catalogue import Catalogue
    from imaging.store import Store

SITE = Path("/var/lib/reroot")

SiteOption = Annotated[Path, typer.Option("--site", envvar="REROOT_SITE", help="The site directory.")]
ControlOption = Annotated[
    str, typer.Option("--control", envvar="REROOT_CONTROL",
                      help="The control server (default: where it listens on this machine, by reroot.toml).")]


KeysOption = Annotated[list[Path] | None, typer.Option(
    "--keys", envvar="REROOT_KEYS", help="A folder with keys that are not in the site, such as a stick; may be given "
    "again.", show_default=False)]


def catalogue_of(site: Path, keys: Sequence[Path] | None = None, **options: Mapping[str, int]) -> Catalogue:
    """Return the catalogue of the site at `site`, signed with its own keys and those in the folders `keys`."""
    from control.site import Site
    from imaging.catalogue import Catalogue

    opened = Site.open(site)
    catalogue = Catalogue(opened.catalogue, opened.keys, tuple(keys or ()), **options)
    catalogue.ring.check()
    return catalogue


def store_of(site: Path) -> Store:
    """Return the store of the site at `site`."""
    from control.site import Site
    from imaging.store import Store

    return Store(Site.open(site).store)


class Admin:
    """One control server, asked with keys/admin.token of its site.

    The token goes in clear, so it goes to the server on this machine unless `control` says otherwise: a name such as
    that in public_url leads wherever the network says.
    """

    def __init__(self, site: Path, control: str = "") -> None:
        path = site / "keys" / "admin.token"
        try:
            token = path.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not ASCII"
            raise ConfigError(f"{path} cannot be read ({why}); name the site with --site, or `reroot init` one, "
                              "and be the user it belongs to") from error
        if not control:
            from control import config

            control = config.load(site / "reroot.toml").server.api_here()
        self._client = Client(control, signer=lambda _method, _target, _body: {"Authorization": f"Bearer {token}"})

    def get(self, path: str) -> dict[str, object]:
        """Return the JSON object at /api/v1/admin + `path`; raises the error the server names."""
        return _object(self._client.request("GET", f"/api/v1/admin{path}").accepted())

    def post(self, path: str, value: object) -> dict[str, object]:
        """POST `value` as JSON and return the answer."""
        return _object(self._client.post_json(f"/api/v1/admin{path}", value).accepted())

    def put(self, path: str, value: object) -> dict[str, object]:
        """PUT `value` as JSON and return the answer."""
        return _object(self._client.request("PUT", f"/api/v1/admin{path}", body=json.dumps(value).encode(),
                                            headers={"Content-Type": "application/json"}).accepted())


def _object(answer: object) -> dict[str, object]:
    if answer is None:
        return {}
    if not isinstance(answer, dict):
        raise CorruptError("the control server's answer is not a JSON object; are both of the same version?")
    return answer
