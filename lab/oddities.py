"""Whatever a host may hold that is hard to keep: made below a root, and pictured entry by entry (I/O).

Standard library alone and one file, because it runs inside a machine of the lab too, from the host runtime's Python:
`python3 oddities.py flag /` and `python3 oddities.py picture / OUT.json`. A picture names owners, so that a file whose
owner has another number after an upgrade is the same file.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

HOME = "srv/odd"
"""The folder that most of it lies in."""
MANY = 20_000
"""Files in one folder."""
SPARSE_BYTES = (4 << 30) + 12_345
"""The length of a file that is nearly all hole, beyond what 32 bits can say."""
DEEP = 1900
"""Folders within one another."""
LONG_TEXT = 4000
"""Bytes of a symlink's text; a block less its end is the most that ext4 holds."""
PICTURED = ("etc", "home", "opt", "root", "srv", "usr/local", "var/spool/cron", "var/lib/dpkg/alternatives",
            "var/lib/dpkg/statoverride")
"""What `picture` looks at, below the root."""
SUBORDINATE = 100_000
"""Where ids of containers begin."""

_ACCESS, _DEFAULT, _CAPABILITY = "system.posix_acl_access", "system.posix_acl_default", "security.capability"
_CAP_NET_RAW = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
"""vfs_cap_data of revision 2, effective: cap_net_raw is permitted."""
_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602
IMMUTABLE, APPEND = 0x10, 0x20
"""Inode flags (include/uapi/linux/fs.h)."""
NAMES = (b"caf\xe9", b"new\nline", b"tab\there", b"-rf", b"back\\slash", b"\x1b[2J", b" space ", b"'quote\"",
         b"x" * 255, "é".encode() * 127, b"\xff" * 255, b"*", b"...", b"~", b"%s%n", "\u202egnp.exe".encode())
"""Names of files; as bytes, which is what names are."""
TEXTS = {"up": "../" * 40 + "etc/shadow", "top": "/", "self": "self", "round-a": "round-b", "round-b": "round-a",
         "process": "/proc/self/root/etc/passwd", "long": "n/" * (LONG_TEXT // 2), "line": "a\nb",
         "nowhere": "/no/where"}
"""Symlinks by name, and their texts."""


def acl(*rows: tuple[int, int, int]) -> bytes:
    """Return an ACL as its extended attribute has it, of (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *row) for row in rows)


def named_acl(uid: int, gid: int) -> bytes:
    """Return an ACL that gives one user and one group something."""
    anyone = 0xFFFFFFFF
    return acl((1, 7, anyone), (2, 6, uid), (4, 5, anyone), (8, 4, gid), (16, 7, anyone), (32, 0, anyone))


def _put(path: bytes, data: bytes = b"", mode: int = 0o644, ids: tuple[int, int] = (0, 0)) -> bytes:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
        os.fchown(handle, *ids)
        os.fchmod(handle, mode)
    return path


@dataclass(frozen=True)
class Ids:
    """Who owns some of it: a user, a group, and the first of the ids of that user's containers."""

    user: int = 0
    group: int = 0
    containers: int = SUBORDINATE


def make(root: str, ids: Ids, *, many: int = MANY, sparse_bytes: int = SPARSE_BYTES, deep: int = DEEP) -> None:
    """Make everything below `root`; it needs to be root for owners, devices and capabilities."""
    top = os.path.join(os.fsencode(root), os.fsencode(HOME))
    os.makedirs(top, exist_ok=True)
    _links(os.fsencode(root), top, ids)
    _names(top)
    _metadata(top, ids)
    _special(top)
    _deep(top, deep)
    _sparse(top + b"/sparse", sparse_bytes)
    for number in range(many):
        _put(top + b"/many/%05d" % number, b"%d\n" % number)
    _changed_types(os.fsencode(root))


def _links(root: bytes, top: bytes, ids: Ids) -> None:
    first = _put(top + b"/hard/first", b"one file, five names\n" * 9, 0o640, (ids.user, ids.group))
    for name in (b"/hard/second", b"/hard/third", b"/hard/deeper/fourth"):
        os.makedirs(os.path.dirname(top + name), exist_ok=True)
        os.link(first, top + name)
    os.makedirs(root + b"/opt/odd", exist_ok=True)
    os.link(first, root + b"/opt/odd/fifth")
    os.link(root + b"/etc/hostname", top + b"/hard/hostname")
    os.makedirs(top + b"/links")
    for link, text in TEXTS.items():
        os.symlink(text, top + b"/links/" + os.fsencode(link))
        os.chown(top + b"/links/" + os.fsencode(link), ids.user, ids.group, follow_symlinks=False)
    os.link(top + b"/links/up", top + b"/links/up-again", follow_symlinks=False)


def _names(top: bytes) -> None:
    for name in NAMES:
        _put(top + b"/names/" + name, name)
    os.makedirs(top + b"/names/fold\xe9r\n/" + b"y" * 255)


def _metadata(top: bytes, ids: Ids) -> None:
    base = top + b"/meta/"
    for mode in (0o4755, 0o2755, 0o1644, 0o7777, 0o000):
        _put(base + b"mode-%04o" % mode, b"x", mode, (ids.user, ids.group))
    for name, mode in ((b"setgid", 0o2775), (b"sticky", 0o1777), (b"closed", 0o000)):
        os.makedirs(base + name)
        os.chown(base + name, ids.user, ids.group)
        os.chmod(base + name, mode)
    _put(base + b"setgid/inside", b"x", 0o664, (ids.user, ids.group))
    _put(base + b"container", b"of a container", 0o600, (ids.containers + 33, ids.containers + 33))
    _put(base + b"nobody's", b"an id without a name", 0o600, (54_321, 54_322))
    _put(base + b"empty")
    for name, time_ns in ((b"old", -300_000_000_123_456_789), (b"future", 4_200_000_000_987_654_321), (b"odd", 1)):
        os.utime(_put(base + b"time-" + name, b"x"), ns=(0, time_ns))
    for number in range(20):
        os.setxattr(_put(base + b"attributes", b"x"), f"user.n{number}", os.urandom(40))
    os.setxattr(base + b"attributes", "trusted.odd", b"\0\xff")
    os.setxattr(_put(base + b"capability", b"\x7fELF", 0o755), _CAPABILITY, _CAP_NET_RAW)
    os.setxattr(_put(base + b"acl", b"x", 0o640), _ACCESS, named_acl(ids.user, ids.group))
    os.makedirs(base + b"shared")
    os.setxattr(base + b"shared", _DEFAULT, named_acl(ids.user, ids.group))
    _put(base + b"shared/inherited", b"x")


def _special(top: bytes) -> None:
    base = top + b"/special/"
    os.makedirs(base)
    os.mkfifo(base + b"fifo", 0o620)
    with contextlib.chdir(base), socket.socket(socket.AF_UNIX) as server:  # the path of a socket is short
        server.bind("socket")
    os.mknod(base + b"null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(base + b"block", 0o660 | stat.S_IFBLK, os.makedev(259, 77_777))
    os.makedirs(base + b"mount")
    _put(base + b"mount/under", b"under a mount point\n")


def _deep(top: bytes, levels: int) -> None:
    os.makedirs(top + b"/deep")
    handle = os.open(top + b"/deep", os.O_RDONLY)
    for _ in range(levels):  # step by step: a path of that length is none that may be named
        os.mkdir("d", dir_fd=handle)
        below = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    os.close(os.open("bottom", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=handle))
    os.close(handle)


def _sparse(path: bytes, size: int) -> None:
    with open(_put(path), "r+b") as stream:
        stream.truncate(size)
        for place in (0, size // 2, size - 5):
            stream.seek(place)
            stream.write(b"data!")


def _changed_types(root: bytes) -> None:
    """Give some paths another type than any Debian image has there."""
    local = root + b"/usr/local/"
    if os.path.isdir(local + b"games"):
        os.rmdir(local + b"games")
    _put(local + b"games", b"a file, and a folder in the image\n")
    if os.path.islink(local + b"man"):
        os.unlink(local + b"man")
    _put(local + b"man/man1/own.1", b"in a folder that is a link in the image\n")
    if os.path.isdir(local + b"sbin") and not os.listdir(local + b"sbin"):
        os.rmdir(local + b"sbin")
        os.symlink("/srv/odd/names", local + b"sbin")


def set_flags(path: bytes, flags: int) -> None:
    """Add to the inode flags of a file; raises OSError where the filesystem has none."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        (there,) = struct.unpack("=i4x", fcntl.ioctl(handle, _GET_FLAGS, bytes(8)))
        fcntl.ioctl(handle, _SET_FLAGS, struct.pack("=i4x", there | flags))
    finally:
        os.close(handle)


def flag_some(root: str) -> None:
    """Make one file immutable, one append-only, one folder immutable."""
    base = os.path.join(os.fsencode(root), os.fsencode(HOME)) + b"/flags/"
    set_flags(_put(base + b"immutable", b"still\n"), IMMUTABLE)
    set_flags(_put(base + b"append-only", b"log\n"), APPEND)
    _put(base + b"folder/inside", b"x")
    set_flags(base + b"folder", IMMUTABLE)


# -- a picture -----------------------------------------------------------------------------------------------


def picture(root: str, below: tuple[str, ...] = PICTURED) -> dict[str, dict[str, object]]:
    """Return what lies at each path of `root`, on its own filesystem: a mount point is pictured empty."""
    top, device = os.fsencode(root), os.stat(root).st_dev
    names = {table: _ids(top + b"/etc/" + table) for table in (b"passwd", b"group")}
    found: dict[str, dict[str, object]] = {}
    first: dict[int, str] = {}
    ways = [os.fsencode(path) for path in below]
    while ways:
        path = ways.pop()
        try:
            parent, name = _reach(top, path)
        except OSError:
            continue
        with parent:
            try:
                info = os.stat(name, dir_fd=parent.handle, follow_symlinks=False)
            except FileNotFoundError:
                continue
            shown = os.fsdecode(path)
            found[shown] = _look(parent.handle, name, info, names)
            if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
                found[shown]["same as"] = first.setdefault(info.st_ino, shown)
            if stat.S_ISDIR(info.st_mode) and info.st_dev == device:
                with _Folder(os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=parent.handle)) as folder:
                    names_in = map(os.fsencode, os.listdir(folder.handle))
                    ways += sorted((path + b"/" + item for item in names_in), reverse=True)
    return found


class _Folder:
    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __enter__(self) -> _Folder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.handle)


def _reach(top: bytes, path: bytes) -> tuple[_Folder, bytes]:
    """Return the folder that holds `path`, opened step by step: deep trees have no name that may be opened."""
    *way, name = path.split(b"/")
    handle = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for part in way:
        above = handle
        try:
            handle = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
        finally:
            os.close(above)
    return _Folder(handle), name


def _look(folder: int, name: bytes, info: os.stat_result,
          names: Mapping[bytes, Mapping[int, str]]) -> dict[str, object]:
    here = b"/proc/self/fd/%d/%s" % (folder, name)
    seen: dict[str, object] = {
        "type": stat.S_IFMT(info.st_mode), "mode": oct(stat.S_IMODE(info.st_mode)), "time": info.st_mtime_ns,
        "user": names[b"passwd"].get(info.st_uid, str(info.st_uid)),
        "group": names[b"group"].get(info.st_gid, str(info.st_gid)),
        "attributes": {key: _attribute(os.getxattr(here, key, follow_symlinks=False), key, names)
                       for key in sorted(os.listxattr(here, follow_symlinks=False))}}
    if stat.S_ISREG(info.st_mode):
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
        try:
            seen |= {"size": info.st_size, "content": _content(handle, info.st_size), "blocks": info.st_blocks}
        finally:
            os.close(handle)
    elif stat.S_ISLNK(info.st_mode):
        seen["text"] = os.fsdecode(os.readlink(name, dir_fd=folder))
    elif not stat.S_ISDIR(info.st_mode):
        seen["device"] = info.st_rdev
    return seen


def _attribute(value: bytes, key: str, names: Mapping[bytes, Mapping[int, str]]) -> str:
    if key not in {_ACCESS, _DEFAULT}:
        return value.hex()
    tables = {2: names[b"passwd"], 8: names[b"group"]}
    rows = [f"{tag}:{rights}:{tables.get(tag, {}).get(number, str(number))}"
            for tag, rights, number in struct.iter_unpack("<HHI", value[4:])]
    return " ".join(sorted(rows))


def _content(handle: int, size: int) -> str:
    """Return a digest of a file's length and of its runs that are not zeros alone: what is a hole does not matter."""
    made = hashlib.sha256(b"%d" % size)
    for place, length in _runs(handle, size):
        for start in range(place, place + length, 1 << 20):
            piece = os.pread(handle, min(1 << 20, place + length - start), start)
            if piece.strip(b"\0"):
                made.update(b"%d:" % start + piece)
    return made.hexdigest()


def _runs(handle: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of what is no hole, widened to whole MiB so that a run is told alike wherever it lies."""
    place = 0
    while place < size:
        try:
            found = os.lseek(handle, place, os.SEEK_DATA)
        except OSError:
            return
        start, end = found >> 20 << 20, ((os.lseek(handle, found, os.SEEK_HOLE) - 1 >> 20) + 1) << 20
        yield max(start, place), min(size, end) - max(start, place)
        place = end


def _ids(table: bytes) -> dict[int, str]:
    with open(table, "rb") as stream:
        rows = [line.decode("utf-8", "surrogateescape").split(":") for line in stream.read().splitlines()]
    return {int(row[2]): row[0] for row in reversed(rows) if len(row) > 3}


def main(argv: list[str]) -> None:
    """`flag ROOT` or `picture ROOT OUT`."""
    if argv[0] == "flag":
        flag_some(argv[1])
    else:
        Path(argv[2]).write_text(json.dumps(picture(argv[1])))


if __name__ == "__main__":
    main(sys.argv[1:])
