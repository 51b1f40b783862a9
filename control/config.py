"""The site's one configuration file, reroot.toml, as values; I/O: reads that file, nothing else.

Every key is documented in docs/config.md, and a test compares the two. A key that does not exist is refused with the
nearest one that does: a misspelt limit must not silently become no limit.
"""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Collection, Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from plumbing.errors import ConfigError
from plumbing.spelling import hint
from plumbing.tomltext import line_of
from throttle import health
from throttle.windows import Windows
from throttle.windows import parse as parse_window


def _listen(text: str) -> str:
    host, _, port = text.rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]"))
        if not 0 < int(port) <= 65535:
            raise ValueError(port)
    except ValueError as error:
        raise ValueError("write it as ADDRESS:PORT, such as 0.0.0.0:8080") from error
    return text


def _url(text: str) -> str:
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment or port == 0:
        raise ValueError("write it as http://name:port")
    return text.rstrip("/")


Listen = Annotated[str, AfterValidator(_listen)]
Url = Annotated[str, AfterValidator(_url)]
MONTH_S = 30 * 86_400
"""Nothing here takes longer, in seconds: what is not finite or centuries long is a slip of the pen."""
Seconds = Annotated[float, Field(gt=0, le=MONTH_S, allow_inf_nan=False)]
Look = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
"""How often something is looked at, in seconds: once a day at least, or signatures expire and hosts wait."""
Count = Annotated[int, Field(ge=1, le=1_000_000)]


def split_listen(listen: str) -> tuple[str, int]:
    """Split "ADDRESS:PORT" (IPv6 in brackets) as the configuration accepted it."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


class Section(BaseModel):
    """One table of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class ServerSection(Section):
    """[server]: where the control server listens and what hosts call it."""

    api: Listen = "0.0.0.0:8080"
    content: Listen = "0.0.0.0:8081"
    public_url: Url
    content_urls: tuple[Url, ...] = ()
    content_processes: int = Field(default=1, ge=1, le=64)
    database: str = ""
    log: Literal["debug", "info", "warning", "error"] = "info"

    def api_here(self) -> str:
        """Return the API's URL for programs on this machine: the listening address, loopback when it is all of them."""
        host, port = split_listen(self.api)
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            address = ipaddress.ip_address("::1" if address.version == 6 else "127.0.0.1")
        return f"http://[{address}]:{port}" if address.version == 6 else f"http://{address}:{port}"


class Gateway(Section):
    """One SMTP server that a host in trouble may reach."""

    host: str = Field(min_length=1)
    port: int = Field(default=25, ge=1, le=65535)


class MailSection(Section):
    """[mail]: whom a host that cannot go on tells, and through which servers."""

    sender: str = ""
    to: tuple[str, ...] = ()
    gateways: tuple[Gateway, ...] = ()


MAX_RANGE = 4096
"""Addresses of one range: a flood of made-up MAC addresses has the server look through all of them."""


def _address(text: str) -> str:
    return str(ipaddress.IPv4Address(text))


def _network(text: str) -> str:
    return str(ipaddress.IPv4Network(text))


Address = Annotated[str, AfterValidator(_address)]
Network = Annotated[str, AfterValidator(_network)]


class Subnet(Section):
    """One [[dhcp.subnet]]: a network this server is on, and what it tells machines there."""

    interface: str = Field(min_length=1, max_length=15)
    network: Network
    server: Address
    router: Address | None = None
    first: Address | None = None
    last: Address | None = None
    dns: tuple[Address, ...] = ()
    domain: str = ""

    @model_validator(mode="after")
    def _bounded(self) -> Subnet:
        if (self.first is None) != (self.last is None):
            raise ValueError("a range needs both first and last")
        if self.first is None or self.last is None:
            return self
        size = int(ipaddress.IPv4Address(self.last)) - int(ipaddress.IPv4Address(self.first)) + 1
        if not 1 <= size <= MAX_RANGE:
            raise ValueError(f"{self.first} to {self.last} must be 1 to {MAX_RANGE} addresses; hosts of hosts.toml "
                             "have their own and need no range")
        return self


class DhcpSection(Section):
    """[dhcp]: answers to network boots, as the network's DHCP server or beside it."""

    enabled: bool = False
    mode: Literal["full", "proxy"] = "full"
    known_only: bool = True
    lease_s: int = Field(default=3600, ge=60, le=MONTH_S)
    subnet: tuple[Subnet, ...] = ()


class BootSection(Section):
    """[boot]: what a machine that boots from the network gets."""

    stray: Literal["local", "rescue"] = "local"
    recovery: str = ""
    arguments: tuple[str, ...] = ("console=tty0", "console=ttyS0,115200")


class TftpSection(Section):
    """[tftp]: the boot files for firmware that has nothing better."""

    enabled: bool = False
    listen: Listen = "0.0.0.0:69"
    max_transfers: int = Field(default=200, ge=1, le=10_000)


class OrdersSection(Section):
    """[orders]: what every order of this site says unless the command says otherwise."""

    lifetime_s: Seconds = 86400.0
    deadline_s: Seconds = 7200.0
    attempts: int = Field(default=10, ge=1, le=20)
    services: tuple[str, ...] = ()


Group = Annotated[str, Field(pattern=r"^[a-zA-Z0-9.-]+\z", max_length=200)]


def _window(text: str) -> str:
    parse_window(text)
    return text


def _zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError("this machine knows no such time zone; write one as Europe/Berlin or UTC, and install "
                         "Debian's tzdata") from error
    return text


def _probe(text: str) -> str:
    if text and not (text.count("{host}") == 1 and health.askable(text.replace("{host}", "host"))):
        raise ValueError("write it as http://{host}:port/path or tcp://{host}:port; {host} is who asks")
    return text


class FleetlockGroup(Section):
    """One group of [fleetlock]: a service, when its hosts may reboot, and how it is seen that one is well again."""

    service: str
    windows: tuple[Annotated[str, AfterValidator(_window)], ...] = ()
    zone: Annotated[str, AfterValidator(_zone)] = "UTC"
    healthy: Annotated[str, AfterValidator(_probe)] = ""
    healthy_within_s: Seconds = 3600.0

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        if not isinstance(value, str | dict | FleetlockGroup):
            raise ValueError('write the name of a service, or a table with service = "…"')
        return {"service": value} if isinstance(value, str) else value

    @cached_property
    def when(self) -> Windows:
        """The windows as values; without any it is always open."""
        return Windows(tuple(span for text in self.windows for span in parse_window(text)), ZoneInfo(self.zone))


class FleetlockSection(Section):
    """[fleetlock]: which groups of FleetLock clients share which service; nobody is served until one is named."""

    groups: dict[Group, FleetlockGroup] = Field(default_factory=dict)
    by_address: bool = False


class RolloutSection(Section):
    """[rollout]: how often the loop looks, and what a rollout assumes unless its start says otherwise."""

    tick_s: Look = 1.0
    update_time_s: Seconds = 1800.0
    servers: Count = 1
    per_server: Count = 5
    blast_budget: Count = 20
    failure_budget: Count = 3


class PreciousSection(Section):
    """[precious]: second copies of what is precious, see protocols/second-copy.md."""

    folder: str = Field(default="state/precious", min_length=1)
    services: tuple[str, ...] | None = None
    keep_days: float = Field(default=30.0, gt=0, le=36_500, allow_inf_nan=False)
    keep_orders: Count = 2
    host_bytes: int = Field(default=4 << 30, ge=0)
    reserve_bytes: int = Field(default=2 << 30, ge=0)


class CatalogueSection(Section):
    """[catalogue]: the upkeep of the TUF repository's short-lived roles."""

    refresh_s: Look = 3600.0


class Config(BaseSettings):
    """The whole of reroot.toml."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    server: ServerSection
    mail: MailSection = MailSection()
    dhcp: DhcpSection = DhcpSection()
    tftp: TftpSection = TftpSection()
    boot: BootSection = BootSection()
    orders: OrdersSection = OrdersSection()
    fleetlock: FleetlockSection = FleetlockSection()
    rollout: RolloutSection = RolloutSection()
    catalogue: CatalogueSection = CatalogueSection()
    precious: PreciousSection = PreciousSection()
    providers: dict[str, Url] = Field(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource, dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from the file alone: what a server does is read in one place."""
        return (init_settings,)

    def content_urls(self) -> list[str]:
        """Return the base URLs hosts fetch content from; by default public_url's name with the content port."""
        if self.server.content_urls:
            return list(self.server.content_urls)
        parts = urlsplit(self.server.public_url)
        name = parts.hostname or ""
        bracketed = f"[{name}]" if ":" in name else name
        return [f"{parts.scheme}://{bracketed}:{split_listen(self.server.content)[1]}"]


    def provider_urls(self) -> dict[str, str]:
        """Return where each ticket provider serves content; "control" is this server unless the file says otherwise."""
        return {"control": self.content_urls()[0], **self.providers}


def check_services(wanted: Iterable[str], tickettab: Collection[str], key: str = "[orders] services") -> None:
    """Raise ConfigError for a service that `key` names and the tickettab lacks: no host could take its ticket."""
    for name in wanted:
        if name not in tickettab:
            raise ConfigError(f"reroot.toml: {key} names {name!r}, which tickettab does not define; "
                              + hint(name, tickettab, "define it there, or take it out"))


def load(path: Path) -> Config:
    """Read reroot.toml; raises ConfigError naming file, line and key."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; `reroot init DIR` makes a site with one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); it must be UTF-8 text this user may read") from error
    return parse(text, path)


def parse(text: str, path: Path) -> Config:
    """Turn the file's text into values; `path` is for the error's sentence only."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    try:
        return Config(**data)
    except ValidationError as error:
        raise ConfigError(_sentence(text, path, error)) from error


def _sentence(text: str, path: Path, error: ValidationError) -> str:
    # A misspelt key explains a missing one, so it comes first.
    first = min(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
    loc = list(first["loc"])
    where = f"{path}, line {line_of(text, loc)}"
    name = ".".join(str(part) for part in loc)
    if first["type"] == "extra_forbidden":
        return f"{where}: there is no key {name!r}; {hint(str(loc[-1]), _valid_words(loc[:-1]))}"
    if first["type"] == "missing":
        return f"{where}: the key {name!r} is missing; docs/config.md describes it"
    message = first["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list in [ ]")
    return f"{where}: {name} = {first['input']!r} will not do: {message}"


def _valid_words(loc: list[int | str]) -> list[str]:
    """Return the keys that the table at `loc` may have, nearest model found by walking the annotations."""
    model: type[BaseModel] = Config
    for part in loc:
        if part in model.model_fields:  # else a position in an array, or a name that the administrator gave
            model = _model_of(model.model_fields[part].annotation)
    return sorted(model.model_fields)


def _model_of(annotation: object) -> type[BaseModel]:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    raise TypeError(f"{annotation!r} holds no table")
