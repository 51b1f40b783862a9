"""Where a path below a root leads through links; path_resolution(7). Pure: what a link says is asked."""

from __future__ import annotations

from collections.abc import Callable

MOST_LINKS = 40
"""How many links a path may lead through, as in the kernel (MAXSYMLINKS)."""


def resolve(path: bytes, text_of: Callable[[bytes], bytes | None]) -> bytes | None:
    """Return the path without links that `path` leads to, empty for the root itself; None for a loop.

    `text_of` returns the text of a link at a path without links, None for whatever else is or is not there.
    """
    ahead, found, links = path.split(b"/"), list[bytes](), 0
    while ahead:
        name = ahead.pop(0)
        if name in {b"", b"."}:
            continue
        if name == b"..":
            del found[-1:]
            continue
        text = text_of(b"/".join([*found, name]))
        if text is None:
            found.append(name)
            continue
        links += 1
        if links > MOST_LINKS:
            return None
        if text.startswith(b"/"):
            found = []
        ahead = [*text.split(b"/"), *ahead]
    return b"/".join(found)
