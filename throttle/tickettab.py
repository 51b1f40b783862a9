"""The tickettab: services, lifetimes, providers and their slots, in the paper's syntax. Pure.

    service hp-ux_patches 14400
    milton 8

Source: the SAS paper, section Getticket; docs/protocols/tickets.md gives the limits. What has no place in this syntax
is written as TOML beside it (`tickettab_toml`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from plumbing.errors import ConfigError
from plumbing.spelling import hint

MAX_LIFETIME_S = 31_536_000
MAX_SLOTS = 1_000_000
MAX_OFFER = 10_000
"""Slots that a provider which registers at run time may have."""


@dataclass(frozen=True)
class Provider:
    """Who serves, and to how many at once; `health` is the URL that says whether it does, empty when none is asked."""

    name: str
    slots: int
    health: str = ""


@dataclass(frozen=True)
class Adaptive:
    """Slots follow measured load between `least` and `most`: one more below `low`, `factor` of them above `high`.

    Loads are shares of what a provider bears, 0 to 1; a step is taken every `every_s` seconds at most.
    """

    least: int
    most: int
    low: float = 0.7
    high: float = 0.9
    factor: float = 0.5
    every_s: float = 10.0


@dataclass(frozen=True)
class Service:
    """Something only so many may use at once; `lifetime_s` is how long an unrenewed ticket lives.

    `bandwidth` is what each ticket allows, in bytes per second, 0 for any. `offer_slots` is how many slots a provider
    that registers at run time may have, 0 when none may.
    """

    name: str
    lifetime_s: int
    providers: tuple[Provider, ...]
    bandwidth: int = 0
    offer_slots: int = 0
    adaptive: Adaptive | None = None


def parse(text: str, where: str = "tickettab") -> dict[str, Service]:
    """Read a tickettab; raises ConfigError naming `where`, the line and the word that is wrong."""
    services: dict[str, Service] = {}
    current: Service | None = None
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        at = f"{where} line {number}"
        if words[0] == "service":
            current = _service(words, at)
            if current.name in services:
                raise ConfigError(f"{at}: service {current.name!r} is already defined; merge the two")
        else:
            provider = _provider(words, at)
            if current is None:
                raise ConfigError(f"{at}: provider {provider.name!r} stands before any `service NAME LIFETIME` line")
            if any(known.name == provider.name for known in current.providers):
                raise ConfigError(f"{at}: {provider.name!r} already provides {current.name!r}; give it one line")
            current = Service(current.name, current.lifetime_s, (*current.providers, provider))
        services[current.name] = current
    return services


def unknown(name: str, services: Mapping[str, Service], where: str) -> str:
    """Return the sentence about a service that `where` does not define: the nearest one, and all there are."""
    if not services:
        return f"there is no service {name[:80]!r}; {where} defines none"
    near = hint(name, services, otherwise=" ").strip()
    return (f"there is no service {name[:80]!r}; {where} defines {', '.join(services)}"
            + (f"; {near}" if near else ""))


def check_name(word: str, what: str, at: str) -> str:
    """Return `word` when it can be a service's or provider's name; raises ConfigError that begins with `at`.

    Underscores are fine in both: a ticket ends in one and digits, and `%_*` cuts at the last one.
    """
    # A ticket is one segment of a URL's path and one word of a shell script.
    if not word or not word.isprintable() or "/" in word or len(word) > 200 or len(word.split()) != 1:
        raise ConfigError(f"{at}: {what} {word[:80]!r} may have 1 to 200 printable characters, no blank and no slash")
    return word


def _service(words: list[str], at: str) -> Service:
    if len(words) != 3:
        raise ConfigError(f"{at}: {' '.join(words)!r} is not `service NAME LIFETIME-IN-SECONDS`")
    return Service(check_name(words[1], "service", at), _count(words[2], "lifetime", 1, MAX_LIFETIME_S, at), ())


def _provider(words: list[str], at: str) -> Provider:
    if len(words) != 2:
        wrong = (f"{words[0]!r} has no slots" if len(words) == 1
                 else f"{words[0]!r} is not `service`, or {words[2]!r} is a word too many")
        raise ConfigError(f"{at}: {wrong}; a line is `service NAME LIFETIME` or `PROVIDER SLOTS`")
    return Provider(check_name(words[0], "provider", at), _count(words[1], "slots", 0, MAX_SLOTS, at))


def _count(word: str, what: str, low: int, high: int, at: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 12 and low <= int(word) <= high):
        raise ConfigError(f"{at}: {what} {word[:80]!r} must be a whole number from {low} to {high}")
    return int(word)
