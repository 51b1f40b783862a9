"""Entries as tar members: pax headers that GNU tar, bsdtar and busybox read alike. Pure.

Written by hand because the standard library's writer marks names that are not UTF-8 in a way GNU tar warns about, keeps
times as floats and takes four times as long per entry; docs/adr/0003-release-format.md. POSIX.1-2017, pax, "pax
Interchange Format" and "ustar Interchange Format"; SCHILY.* are star's keywords, which GNU tar adopted.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence

from imaging.entry import ROOT, Entry, EntryType
from plumbing.errors import UsageError

BLOCK = 512
END = bytes(2 * BLOCK)
"""The end-of-archive: two blocks of zeros."""

_FLAGS = {
    EntryType.FILE: b"0", EntryType.LINK: b"1", EntryType.SYMLINK: b"2", EntryType.CHAR: b"3",
    EntryType.BLOCK: b"4", EntryType.DIRECTORY: b"5", EntryType.FIFO: b"6",
}
_MAX_ID = 0o7777777
_MAX_SIZE = 0o77777777777
_NAME, _PREFIX = 100, 155

_ACLS = {b"system.posix_acl_access": b"SCHILY.acl.access", b"system.posix_acl_default": b"SCHILY.acl.default"}
_ACL_TAGS = {0x01: b"user:", 0x02: b"user:%d", 0x04: b"group:", 0x08: b"group:%d", 0x10: b"mask:", 0x20: b"other:"}


def order(entries: Sequence[Entry]) -> list[int]:
    """Return the rows of `entries`, which are in tree order, as their records follow one another in the tar.

    By time, so that what was made together stays together: the files of a package that has not changed keep their
    neighbours from release to release. Directories and symlinks come last, in tree order: GNU tar sets a directory's
    time when nothing more is put into it, and makes symlinks that lead up or to the root after all else.
    """
    inodes = {entry.path: entry.type for entry in entries if entry.type is not EntryType.LINK}
    return sorted(range(len(entries)), key=lambda row: place(
        entries[row], row, inodes.get(entries[row].link, EntryType.FILE)
        if entries[row].type is EntryType.LINK else entries[row].type))


def place(entry: Entry, row: int, inode: EntryType) -> tuple[bool, int, int]:
    """Return what `order` sorts an entry by, which is the one in `row` of the tree order.

    `inode` is its type, of a hard link that of the entry it joins.
    """
    late = inode in {EntryType.DIRECTORY, EntryType.SYMLINK}
    return late, 0 if late else entry.mtime_ns, row


def padding(size: int) -> bytes:
    """Return the zeros between `size` bytes of content and the next header."""
    return bytes(-size % BLOCK)


def header(entry: Entry) -> bytes:
    """Return all that comes before the entry's content: a pax header when one is needed, and the ustar header."""
    name = member_name(entry.path, directory=entry.is_directory)
    link = member_name(entry.link) if entry.type is EntryType.LINK else entry.link
    records = b"".join(_records(entry, name, link))
    seconds = entry.mtime_ns // 10**9
    block = _ustar(
        name, link, flag=_FLAGS[entry.type], mode=entry.mode,
        uid=entry.uid if entry.uid <= _MAX_ID else 0, gid=entry.gid if entry.gid <= _MAX_ID else 0,
        size=entry.size if entry.size <= _MAX_SIZE else 0, seconds=seconds if 0 <= seconds <= _MAX_SIZE else 0,
        rdev=entry.rdev,
    )
    if not records:
        return block
    extended = _ustar(b"./PaxHeaders/" + name.rstrip(b"/").rpartition(b"/")[2][:80], b"", flag=b"x", mode=0o644,
                      uid=0, gid=0, size=len(records), seconds=0, rdev=0)
    return extended + records + padding(len(records)) + block


def member_name(path: bytes, *, directory: bool = False) -> bytes:
    """Return the name under which the tar knows a path."""
    name = b"." if path == ROOT else b"./" + path
    return name + b"/" if directory else name


def _record(keyword: bytes, value: bytes) -> bytes:
    """Return one pax record, whose leading length counts its own digits."""
    rest = b" " + keyword + b"=" + value + b"\n"
    length = len(rest)
    while len(rest) + len(b"%d" % length) != length:
        length = len(rest) + len(b"%d" % length)
    return b"%d" % length + rest


def _records(entry: Entry, name: bytes, link: bytes) -> Iterator[bytes]:
    if _split(name) is None:
        yield _record(b"path", name)
    if len(link) > _NAME:
        yield _record(b"linkpath", link)
    if entry.size > _MAX_SIZE:
        yield _record(b"size", b"%d" % entry.size)
    if entry.uid > _MAX_ID:
        yield _record(b"uid", b"%d" % entry.uid)
    if entry.gid > _MAX_ID:
        yield _record(b"gid", b"%d" % entry.gid)
    if entry.mtime_ns % 10**9 or not 0 <= entry.mtime_ns // 10**9 <= _MAX_SIZE:
        yield _record(b"mtime", _decimal(entry.mtime_ns))
    for key, value in entry.xattrs:
        if key in _ACLS:
            yield _record(_ACLS[key], acl_text(value))
        yield _record(b"SCHILY.xattr." + key.replace(b"%", b"%25").replace(b"=", b"%3D"), value)


def _decimal(time_ns: int) -> bytes:
    """Return nanoseconds as decimal seconds without a loss."""
    whole, rest = divmod(abs(time_ns), 10**9)
    sign = b"-" if time_ns < 0 else b""
    return sign + b"%d" % whole + (b".%09d" % rest if rest else b"")


def acl_text(value: bytes) -> bytes:
    """Return a posix_acl_* attribute as the text `getfacl --numeric` would print, comma separated.

    The attribute is what Linux keeps (linux/posix_acl_xattr.h): u32 version 2, then u16 tag, u16 rights, u32 id each.
    """
    if len(value) % 8 != 4 or value[:4] != b"\2\0\0\0":
        raise UsageError("an ACL is not in the form that Linux keeps ACLs in; remove it with setfacl -b")
    parts = []
    for tag, rights, number in struct.iter_unpack("<HHI", value[4:]):
        word = _ACL_TAGS.get(tag)
        if word is None or rights > 7:
            raise UsageError("an ACL has an entry of an unknown kind; remove it with setfacl -b")
        who = word % number if b"%" in word else word
        shown = bytes(letter if rights & bit else ord("-") for letter, bit in zip(b"rwx", (4, 2, 1), strict=True))
        parts.append(who + b":" + shown)
    return b",".join(parts)


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """Return (prefix, name) as ustar holds a path, or None when it can't."""
    if len(name) <= _NAME:
        return b"", name
    if len(name) > _PREFIX + 1 + _NAME:
        return None
    # The first slash that leaves a short enough name; a directory's trailing slash belongs to the name.
    cut = name.find(b"/", len(name) - _NAME - 1, len(name) - 1)
    if cut < 1 or cut > _PREFIX:
        return None
    return name[:cut], name[cut + 1:]


def _ustar(
    name: bytes, link: bytes, *, flag: bytes, mode: int, uid: int, gid: int, size: int, seconds: int, rdev: int,
) -> bytes:
    prefix, last = _split(name) or (b"", name[:_NAME])
    block = struct.pack(
        "100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x",
        last, b"%07o" % mode, b"%07o" % uid, b"%07o" % gid, b"%011o" % size, b"%011o" % seconds, b" " * 8, flag,
        link[:_NAME], b"ustar\0", b"00", b"", b"", b"%07o" % os.major(rdev), b"%07o" % os.minor(rdev), prefix,
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
