"""A site's directory: where everything of one installation lies, and how `reroot init` makes it; I/O.

`init` works in a folder beside the wanted one and renames it at the end: a site is there whole or not at all.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from control.config import parse as parse_config
from control.dhcp import BOOT_FILES
from fleet.hosts import parse as parse_hosts
from plumbing import durable
from plumbing.errors import ConfigError, DiskError, RefusedError
from precious import sealkeys

IPXE = Path("/usr/lib/ipxe")
"""Where Debian's package ipxe has the boot programs that `init` copies, if it is installed."""

API_PORT = 8080

CONFIG_EXAMPLE = """\
# The control server of this site. Every key is described in docs/config.md; a key that does not exist is refused.

[server]
api = "0.0.0.0:{api}"            # the API, and everything a machine needs that knows one URL
content = "0.0.0.0:{content}"        # releases, fast
public_url = "{public_url}"     # what hosts call the API

[mail]                          # whom a host that cannot go on tells
sender = ""
to = []
gateways = []                   # such as [{{ host = "mail.example.org", port = 25 }}]

[orders]
services = ["root-dump"]        # tickets (see tickettab) a host takes round its download

[dhcp]
enabled = false

[tftp]
enabled = false
"""

HOSTS_EXAMPLE = """\
# The machines of this site; `reroot host add` writes here too.
#
# [[host]]
# name = "alpha"
# macs = ["52:54:00:00:00:01"]
# address = "10.1.0.11/24"      # or: subnet = "10.1.0.0/24"
# class = ["web"]
# firmware = "bios"             # or "uefi"
# serial = "QX1"                # optional: the machine's, as its firmware tells it
#
# [host.layout]                 # for installs: which disk may be wiped, and what becomes of it
# disk = "the disk's serial"
"""

TICKETTAB_EXAMPLE = """\
# service NAME LIFETIME (seconds), then one PROVIDER SLOTS per line: how many hosts may use it at once
service root-dump 3600
control 10
"""

PRECIOUS_EXAMPLE = """\
# What must survive on this site's hosts, beyond what reroot keeps by itself (`reroot precious check` shows all, and
# docs/precious.md says what a rule can say). precious/class/NAME.toml and precious/host/NAME.toml say more.
#
# [[rule]]
# keep = ["/srv/www/**"]
# when = "host"                 # host, image, beside, merge or stop, when the new image has something there too
"""


@dataclass(frozen=True)
class Site:
    """The paths below one site directory."""

    root: Path

    @classmethod
    def open(cls, root: str | Path) -> Site:
        """Return the site at `root`; raises ConfigError when there is none."""
        site = cls(Path(root).absolute())
        if not site.config.is_file():
            raise ConfigError(f"{site.root} is not a site directory (it has no reroot.toml); name one with --site, or "
                              f"make it with `reroot init {site.root}`")
        return site

    @property
    def config(self) -> Path:
        """The configuration."""
        return self.root / "reroot.toml"

    @property
    def hosts(self) -> Path:
        """The machines."""
        return self.root / "hosts.toml"

    @property
    def tickettab(self) -> Path:
        """The services and their providers."""
        return self.root / "tickettab"

    @property
    def precious(self) -> Path:
        """The site's precious policy."""
        return self.root / "precious.toml"

    @property
    def keys(self) -> Path:
        """The private keys."""
        return self.root / "keys"

    @property
    def orders_key(self) -> Path:
        """The key that signs orders."""
        return self.keys / "orders.pem"

    @property
    def recovery_key(self) -> Path:
        """Where `init` puts the key that opens second copies, until somebody takes it offline."""
        return self.keys / "recovery.pem"

    @property
    def precious_token(self) -> Path:
        """The token of those who may fetch precious files."""
        return self.keys / "precious.token"

    @property
    def store(self) -> Path:
        """The OCI image layout."""
        return self.root / "store"

    @property
    def catalogue(self) -> Path:
        """The TUF repository: metadata/ and targets/."""
        return self.root / "catalogue"

    @property
    def boot(self) -> Path:
        """The files of network boots."""
        return self.root / "boot"

    @property
    def state(self) -> Path:
        """What the server itself writes."""
        return self.root / "state"

    @property
    def database(self) -> Path:
        """The SQLite database."""
        return self.state / "reroot.db"

    def admin_token(self) -> str:
        """Read keys/admin.token; raises ConfigError."""
        path = self.keys / "admin.token"
        try:
            token = path.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read ({error}); it is how administrators are known") from error
        if len(token) < 32:
            raise ConfigError(f"{path} must hold at least 32 characters; put a long random word there")
        return token


def config_example(public_url: str) -> str:
    """Return a new site's reroot.toml: the API listens where `public_url` says that hosts ask for it."""
    try:
        parts = urlsplit(public_url)
        # Behind https is something that ends TLS and asks this server, which has none, elsewhere.
        api = API_PORT if parts.scheme == "https" else parts.port or (80 if parts.scheme == "http" else API_PORT)
    except ValueError:
        api = API_PORT  # no URL at all, which the reader of the file says better
    return CONFIG_EXAMPLE.format(public_url=public_url, api=api, content=8082 if api == 8081 else 8081)


def init(root: Path, public_url: str, recovery_key: Path | None = None) -> Site:
    """Make a new site at `root`, which must not exist or be empty; raises RefusedError, ConfigError, DiskError.

    `recovery_key` is the file of an X25519 key, its public half suffices; without one it is made, in the site.
    """
    root = root.absolute()
    reader = None if recovery_key is None else sealkeys.public(recovery_key)
    if root.is_symlink() or (root.exists() and (not root.is_dir() or any(root.iterdir()))):
        raise RefusedError(f"{root} is not an empty directory; choose another place, nothing was touched")
    config = config_example(public_url)
    parse_config(config, root / "reroot.toml")
    parse_hosts(HOSTS_EXAMPLE, str(root / "hosts.toml"))
    try:
        durable.make_folder(root.parent)
        half = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    except OSError as error:
        raise DiskError(f"{root} cannot be made ({error.strerror}); check who owns {root.parent}") from error
    try:
        _fill(Site(half), config, reader)
        half.chmod(0o755)
        half.replace(root)
        durable.sync_folder(root.parent)
    except OSError as error:
        raise DiskError(f"{root} cannot be made ({error.strerror}); check owner and free space") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return Site(root)


def make_token(path: Path) -> None:
    """Write a new long random word to `path`."""
    durable.write_file(path, secrets.token_urlsafe(32).encode() + b"\n", 0o600)


def _fill(site: Site, config: str, reader: bytes | None) -> None:
    from imaging import catalogue, keys
    from imaging.store import Store

    for folder, mode in ((site.keys, 0o700), (site.boot, 0o755), (site.state, 0o700)):
        durable.make_folder(folder, mode)
    for name in sorted({*BOOT_FILES.values()}):
        if (IPXE / name).is_file():
            durable.write_file(site.boot / name, (IPXE / name).read_bytes())
    Store(site.store).create()
    signed = catalogue.Catalogue(site.catalogue, site.keys)
    signed.create()
    # Not of the TUF roles: whoever breaks into the server can order releases of the catalogue, and publish none.
    key = keys.make_key(site.orders_key)
    reader = reader or sealkeys.make(site.recovery_key).public_key().public_bytes_raw()
    signed.publish_all({"orders/keys.json": keys.order_keys([key.public_key]),
                        sealkeys.TARGET: sealkeys.listing([reader])})
    for token in (site.keys / "admin.token", site.precious_token):
        make_token(token)
    for path, text in ((site.config, config), (site.hosts, HOSTS_EXAMPLE), (site.tickettab, TICKETTAB_EXAMPLE),
                       (site.precious, PRECIOUS_EXAMPLE)):
        durable.write_file(path, text.encode())
