"""The tickettab: services, lifetimes, providers and their slots, in the paper's syntax. Pure.

    service hp-ux_patches 14400
    milton 8

Source: the SAS paper, section Getticket; docs/protocols/tickets.md gives the limits.
"""

from __future__ import annotations

from dataclasses import dataclass

from plumbing.errors import ConfigError

MAX_LIFETIME_S = 31_536_000
MAX_SLOTS = 1_000_000


@dataclass(frozen=True)
class Provider:
    """Who serves, and to how many at once."""

    name: str
    slots: int


@dataclass(frozen=True)
class Service:
    """Something only so many may use at once; `lifetime_s` is how long an unrenewed ticket lives."""

    name: str
    lifetime_s: int
    providers: tuple[Provider, ...]


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


def _service(words: list[str], at: str) -> Service:
    if len(words) != 3:
        raise ConfigError(f"{at}: {' '.join(words)!r} is not `service NAME LIFETIME-IN-SECONDS`")
    return Service(_name(words[1], "service", at), _count(words[2], "lifetime", 1, MAX_LIFETIME_S, at), ())


def _provider(words: list[str], at: str) -> Provider:
    if len(words) != 2:
        raise ConfigError(f"{at}: {' '.join(words)!r} is neither `service NAME LIFETIME` nor `PROVIDER SLOTS`")
    if "_" in words[0]:
        raise ConfigError(f"{at}: provider {words[0]!r} has an underscore, so ${{ticket%_*}} could not find it; "
                          "use its name without one")
    return Provider(_name(words[0], "provider", at), _count(words[1], "slots", 0, MAX_SLOTS, at))


def _name(word: str, what: str, at: str) -> str:
    # A ticket is one segment of a URL's path and one word of a shell script.
    if not word.isprintable() or "/" in word or len(word) > 200:
        raise ConfigError(f"{at}: {what} {word[:80]!r} may have at most 200 printable characters and no slash")
    return word


def _count(word: str, what: str, low: int, high: int, at: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 12 and low <= int(word) <= high):
        raise ConfigError(f"{at}: {what} {word[:80]!r} must be a whole number from {low} to {high}")
    return int(word)
