"""Files of lines, as bytes: whatever is in them. Pure."""

from __future__ import annotations

from collections.abc import Iterable


def split(data: bytes) -> list[bytes]:
    """Return the lines without their ends; a last line that does not end counts too."""
    found = data.split(b"\n")
    return found[:-1] if found[-1] == b"" else found


def join(lines: Iterable[bytes]) -> bytes:
    """Return a file of lines, each of which ends."""
    return b"".join(line + b"\n" for line in lines)


def plain(line: bytes) -> bytes:
    """Return a line with single spaces and none around it: how lines are compared."""
    return b" ".join(line.split())


def words(line: bytes) -> list[bytes]:
    """Return the words of a line; none of a comment or an empty line."""
    found = line.split()
    return [] if found and found[0].startswith(b"#") else found
