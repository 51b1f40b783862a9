"""What a merger may ask about the new root. Pure."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field

_MOST_LINKS = 40
"""How many links a path may lead through, as in the kernel (MAXSYMLINKS)."""


def _nothing(_: bytes) -> bool:
    return False


@dataclass(frozen=True)
class World:
    """What a merger may ask about the new root: accounts, and whether a path is there once links are followed."""

    users: frozenset[bytes] = frozenset()
    groups: frozenset[bytes] = frozenset()
    has: Callable[[bytes], bool] = field(default=_nothing)


def paths(there: Container[bytes], links: Mapping[bytes, bytes]) -> Callable[[bytes], bool]:
    """Return a function that tells whether a path below the root is there, through links too.

    `there` are all paths, `links` those of them that are links, with their texts.
    """
    def has(path: bytes) -> bool:
        ahead, found, followed = path.split(b"/"), list[bytes](), 0
        while ahead:
            name = ahead.pop(0)
            if name in {b"", b"."}:
                continue
            if name == b"..":
                del found[-1:]
                continue
            text = links.get(b"/".join([*found, name]))
            if text is None:
                found.append(name)
                continue
            followed += 1
            if followed > _MOST_LINKS:
                return False
            if text.startswith(b"/"):
                found = []
            ahead = [*text.split(b"/"), *ahead]
        return not found or b"/".join(found) in there

    return has
