"""What lies where in an initramfs: the members of a cpio archive in the newc format. Pure.

Linux, Documentation/driver-api/early-userspace/buffer-format.rst. Only good for guessing: who relies on it checks
digests.
"""

from __future__ import annotations

from collections.abc import Iterator

_HEADER = 110
_MAGICS = (b"070701", b"070702")


def members(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, offset, length) of every member that has content; ends at the first thing that is no header."""
    at = 0
    while data[at:at + 6] in _MAGICS:
        try:
            size, name_size = int(data[at + 54:at + 62], 16), int(data[at + 94:at + 102], 16)
        except ValueError:
            return
        start = -(-(at + _HEADER + name_size) // 4) * 4
        name = data[at + _HEADER:at + _HEADER + name_size - 1]
        if start + size > len(data):
            return
        if size:
            yield name, start, size
        at = -(-(start + size) // 4) * 4
        if name == b"TRAILER!!!":  # another archive may follow, after zeros
            while at < len(data) and not data[at]:
                at += 1
