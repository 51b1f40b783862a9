"""What a merger may ask about the new root. Pure."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field

from precious.links import resolve


def _nothing(_: bytes) -> bool:
    return False


@dataclass(frozen=True)
class World:
    """What a merger may ask about the new root: accounts, and whether a path is there once links are followed."""

    users: frozenset[bytes] = frozenset()
    groups: frozenset[bytes] = frozenset()
    has: Callable[[bytes], bool] = field(default=_nothing)

    def starts(self, program: str) -> bool:
        """Tell whether a program, by its absolute path, is there."""
        return self.has(program.encode("utf-8", "surrogateescape").lstrip(b"/"))


def paths(there: Container[bytes], links: Mapping[bytes, bytes]) -> Callable[[bytes], bool]:
    """Return a function that tells whether a path below the root is there, through links too.

    `there` are all paths, `links` those of them that are links, with their texts.
    """
    def has(path: bytes) -> bool:
        found = resolve(path, links.get)
        return found is not None and (not found or found in there)

    return has
