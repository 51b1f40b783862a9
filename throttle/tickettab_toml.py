"""tickettab.toml: services with what the paper's syntax has no words for. Pure.

    [service.root-dump]
    lifetime_s = 3600
    bandwidth = 12_500_000                       # bytes per second and ticket
    offer_slots = 2                              # a host that has finished may offer its stage
    adaptive = { least = 2, most = 40 }          # slots of each provider follow its load
    provider.milton = { slots = 8, health = "http://milton:8081/healthz" }
    provider.hasbro = 4

docs/protocols/tickets.md gives every key and its limits.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import NoReturn

from plumbing.errors import ConfigError
from plumbing.spelling import hint
from plumbing.tomltext import line_of
from throttle.health import askable
from throttle.tickettab import MAX_LIFETIME_S, MAX_OFFER, MAX_SLOTS, Adaptive, Provider, Service, check_name

MIN_BANDWIDTH = 128 << 10
"""Bytes per second: twice the speed below which a host takes a server for dead (imaging.sources)."""
MAX_BANDWIDTH = 10**12
"""Bytes per second that one ticket may allow."""
_SERVICE = ("lifetime_s", "bandwidth", "offer_slots", "adaptive", "provider")
_PROVIDER = ("slots", "health")
_ADAPTIVE = ("least", "most", "low", "high", "factor", "every_s")

Table = Mapping[str, object]


def parse(text: str, where: str = "tickettab.toml") -> dict[str, Service]:
    """Read the file; raises ConfigError naming `where`, the line and the word that is wrong."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is not TOML: {error}") from error
    reader = _Reader(text, where)
    reader.keys(data, ("service",), ())
    return {name: reader.service(name, table)
            for name, table in reader.table(data.get("service", {}), ("service",)).items()}


class _Reader:
    """Turns tables into values, and complaints into one sentence with file, line and word."""

    def __init__(self, text: str, where: str) -> None:
        self._text, self._where = text, where

    def service(self, name: str, value: object) -> Service:
        path = ("service", name)
        check_name(name, "service", self._at(path))
        table = self.table(value, path)
        self.keys(table, _SERVICE, path)
        if "lifetime_s" not in table:
            self._fail(path, f"service {name!r} has no lifetime_s; write how many seconds an unrenewed ticket lives")
        adaptive = self._adaptive(table["adaptive"], (*path, "adaptive")) if "adaptive" in table else None
        providers = self.table(table.get("provider", {}), (*path, "provider"))
        return Service(
            name, self._whole(table, "lifetime_s", 1, MAX_LIFETIME_S, path),
            tuple(self._provider(one, words, (*path, "provider", one)) for one, words in providers.items()),
            self._bandwidth(table, path), self._whole(table, "offer_slots", 0, MAX_OFFER, path),
            adaptive)

    def table(self, value: object, path: Sequence[str]) -> Table:
        if not isinstance(value, dict):
            self._fail(path, f"{path[-1]} = {_shown(value)} must be a table")
        return value

    def keys(self, table: Table, valid: tuple[str, ...], path: tuple[str, ...]) -> None:
        for key in table:
            if key not in valid:
                self._fail((*path, key), f"there is no key {key[:80]!r} here; {hint(key, valid)}")

    def _provider(self, name: str, value: object, path: tuple[str, ...]) -> Provider:
        check_name(name, "provider", self._at(path))
        table = {"slots": value} if isinstance(value, int) else self.table(value, path)
        self.keys(table, _PROVIDER, path)
        if "slots" not in table:
            self._fail(path, f"provider {name!r} has no slots; write how many may use it at once")
        return Provider(name, self._whole(table, "slots", 0, MAX_SLOTS, path),
                        self._health(table.get("health", ""), (*path, "health")))

    def _health(self, value: object, path: tuple[str, ...]) -> str:
        if not isinstance(value, str) or (value and not askable(value)):
            self._fail(path, f"health = {_shown(value)} must be http://name:port/path or tcp://name:port")
        return value

    def _bandwidth(self, table: Table, path: tuple[str, ...]) -> int:
        least = MIN_BANDWIDTH if table.get("bandwidth", 0) else 0
        return self._whole(table, "bandwidth", least, MAX_BANDWIDTH, path)

    def _adaptive(self, value: object, path: tuple[str, ...]) -> Adaptive:
        table = self.table(value, path)
        self.keys(table, _ADAPTIVE, path)
        for key in ("least", "most"):
            if key not in table:
                self._fail(path, f"adaptive has no {key!r}; write the bounds of a provider's slots")
        least = self._whole(table, "least", 1, MAX_SLOTS, path)
        most = self._whole(table, "most", least, MAX_SLOTS, path)
        low, high, factor = (self._number(table, key, default, 0.01, 0.99, path) for key, default in (
            ("low", Adaptive.low), ("high", Adaptive.high), ("factor", Adaptive.factor)))
        found = Adaptive(least, most, low, high, factor,
                         self._number(table, "every_s", Adaptive.every_s, 1, 86_400, path))
        if found.low >= found.high:
            self._fail((*path, "low"), f"low = {found.low:g} must be less than high = {found.high:g}")
        return found

    def _number(self, table: Table, key: str, default: float, low: float, high: float, path: tuple[str, ...]) -> float:
        value = table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self._fail((*path, key), f"{key} = {_shown(value)} must be a number from {low:g} to {high:g}")
        return float(value)

    def _whole(self, table: Table, key: str, low: int, high: int, path: tuple[str, ...]) -> int:
        value = table.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self._fail((*path, key), f"{key} = {_shown(value)} must be a whole number from {low} to {high}")
        return value

    def _at(self, path: Sequence[str]) -> str:
        return f"{self._where} line {line_of(self._text, path)}"

    def _fail(self, path: Sequence[str], complaint: str) -> NoReturn:
        raise ConfigError(f"{self._at(path)}: {complaint}")


def _shown(value: object) -> str:
    return f"{str(value)[:80]!r}" if isinstance(value, str) else str(value)[:80]
