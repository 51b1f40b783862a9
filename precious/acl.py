"""POSIX ACLs as extended attributes, their owners renumbered (pure: bytes in and out).

The value of system.posix_acl_access and system.posix_acl_default is a little-endian u32 version, 2, and entries of
u16 tag, u16 permissions, u32 id, ascending by tag (include/uapi/linux/posix_acl_xattr.h).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

NAMES = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})
"""The attributes that hold ACLs."""

USER, GROUP = 0x02, 0x08
"""Tags of the entries that name a user or a group by its id; the others' ids mean nothing."""

_VERSION = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")


def named(value: bytes, tag: int) -> frozenset[int]:
    """Return the ids that entries with `tag`, USER or GROUP, name; none for what is no ACL."""
    return frozenset(number for kind, _, number in _entries(value) if kind == tag)


def renumbered(value: bytes, users: Mapping[int, int], groups: Mapping[int, int]) -> bytes:
    """Return the ACL with the ids it names replaced, old -> new; what is no ACL stays as it is."""
    rows = list(_entries(value))
    moves = {USER: users, GROUP: groups}
    moved = [(tag, rights, moves.get(tag, {}).get(number, number)) for tag, rights, number in rows]
    if moved == rows:
        return value
    # libacl wants the ids of one tag ascending
    moved.sort(key=lambda row: (row[0], row[2]))
    return _VERSION.pack(2) + b"".join(_ENTRY.pack(*row) for row in moved)


def _entries(value: bytes) -> Iterator[tuple[int, int, int]]:
    body = value[_VERSION.size:]
    if value[:_VERSION.size] == _VERSION.pack(2) and len(body) % _ENTRY.size == 0:
        yield from _ENTRY.iter_unpack(body)
