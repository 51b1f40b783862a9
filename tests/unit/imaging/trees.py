"""Trees for tests: one with every inode feature, and a description of a tree that owes nothing to imaging.scan."""

import hashlib
import os
import random
import socket
import stat
import struct
from pathlib import Path

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
"""cap_net_bind_service=ep, as the kernel keeps it."""
ACL = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *row) for row in (
    (0x01, 6, 0xFFFFFFFF), (0x02, 4, 1234), (0x04, 4, 0xFFFFFFFF), (0x08, 5, 4321), (0x10, 7, 0xFFFFFFFF),
    (0x20, 0, 0xFFFFFFFF)))


def noise(seed: int, length: int) -> bytes:
    """Bytes that do not compress, the same every time."""
    return random.Random(seed).randbytes(length)


def rich_tree(top: Path) -> Path:
    """Make a tree with everything a release must keep; needs root."""
    top.mkdir()
    (top / "etc").mkdir()
    (top / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (top / "empty").touch()
    (top / "empty folder").mkdir(mode=0o700)
    (top / "large").write_bytes(noise(1, (9 << 20) + 17))
    (top / "medium").write_bytes(noise(2, 700_000))
    (top / "exact").write_bytes(noise(3, 4 << 20))
    for number in range(60):
        (top / "etc" / f"file{number:03}").write_bytes(noise(number, 1000 * number) + b"text " * 8000)
    (top / "setuid").write_bytes(b"#!/bin/sh\n")
    (top / "setuid").chmod(0o6755)
    (top / "sticky").mkdir()
    (top / "sticky").chmod(0o1777)
    (top / "unreadable").write_bytes(b"secret")
    (top / "unreadable").chmod(0)
    _names(top)
    _links(top)
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "char", stat.S_IFCHR | 0o620, os.makedev(4, 64))
    os.mknod(top / "block", stat.S_IFBLK | 0o660, os.makedev(259, 70000))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(top / "socket"))
    with (top / "sparse").open("wb") as stream:
        stream.seek(3 << 20)
        stream.write(b"in the middle")
        stream.truncate(8 << 20)
    _attributes(top)
    for number, path in enumerate(sorted(top.rglob("*"), reverse=True)):
        os.utime(path, ns=(0, 1_700_000_000_123_456_789 + number), follow_symlinks=False)
    os.utime(top / "empty", ns=(0, -1_500_000_001))
    os.utime(top / "medium", ns=(0, 5_000_000_000_000_000_007))
    os.utime(top / "exact", ns=(0, 1_000_000_000_000_000_000))
    os.utime(top, ns=(0, 1_600_000_000_000_000_001))
    return top


def _names(top: Path) -> None:
    base = os.fsencode(top)
    for name in (b"latin-\xe9\xff", "grün-🦊".encode(), b"new\nline", b" -rf", b"back\\slash", b"quote'\"", b"n" * 255):
        Path(os.fsdecode(base + b"/" + name)).write_bytes(name)
    deep = base + b"/deep"
    for _ in range(8):
        deep += b"/" + b"d" * 60
    Path(os.fsdecode(deep)).mkdir(parents=True)
    Path(os.fsdecode(deep + b"/" + b"\xfe" * 90)).write_bytes(b"deep")
    edge = top / ("e" * 97)
    edge.mkdir()
    for length in (1, 2, 99, 100, 101, 155):
        (edge / ("f" * length)).write_bytes(b"%d" % length)


def _links(top: Path) -> None:
    os.link(top / "medium", top / "etc/a hard link")
    os.link(top / "large", top / "zz-link")
    (top / "symlink").symlink_to("etc/passwd")
    (top / "dangling").symlink_to("/nowhere/" + "x" * 300)
    Path(os.fsdecode(os.fsencode(top) + b"/raw-link")).symlink_to(os.fsdecode(b"\xff\xfe"))
    os.link(top / "symlink", top / "symlink-twice", follow_symlinks=False)
    long_link = top / "deep" / ("l" * 120)
    os.link(top / "etc/passwd", long_link)


def _attributes(top: Path) -> None:
    os.setxattr(top / "setuid", "user.binary", bytes(range(256)))
    os.setxattr(top / "setuid", "user.empty", b"")
    os.setxattr(top / "setuid", "user.a=b%c", b"x\ny=z")
    os.setxattr(top / "etc", "user.folder", b"yes")
    os.setxattr(top / "symlink", "trusted.on-a-symlink", b"1", follow_symlinks=False)
    os.lchown(top / "setuid", 3_000_000_000, 4_000_000_000)
    (top / "setuid").chmod(0o6755)
    os.setxattr(top / "medium", "security.capability", CAPABILITY)
    os.setxattr(top / "unreadable", "system.posix_acl_access", ACL)
    os.setxattr(top / "sticky", "system.posix_acl_default", ACL)
    os.lchown(top / "symlink", 1000, 1001)
    os.lchown(top / "fifo", 65534, 65534)


def describe(top: Path, *, skip: frozenset[str] = frozenset()) -> dict[str, tuple[object, ...]]:
    """Everything of a tree that must survive, by path; hard links by the first name of their inode."""
    found: dict[str, tuple[object, ...]] = {}
    first: dict[int, str] = {}
    for folder, folders, files in os.walk(top):
        for path in [Path(folder), *(Path(folder) / name for name in sorted(folders + files))]:
            name = os.path.relpath(path, top)
            status = path.lstat()
            if name in found or name in skip or stat.S_ISSOCK(status.st_mode):
                continue
            joined = name if stat.S_ISDIR(status.st_mode) else first.setdefault(status.st_ino, min(
                other for other in _same_inode(top, status.st_ino)) if status.st_nlink > 1 else name)
            kind, content = stat.S_IFMT(status.st_mode), b""
            if kind == stat.S_IFREG:
                content = hashlib.sha256(path.read_bytes()).digest()
            elif kind == stat.S_IFLNK:
                content = os.fsencode(path.readlink())
            attributes = tuple(sorted((key, os.getxattr(path, key, follow_symlinks=False))
                                      for key in os.listxattr(path, follow_symlinks=False)))
            device = status.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
            found[name] = (kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns,
                           device, content, attributes, joined)
    return found


def _same_inode(top: Path, inode: int) -> list[str]:
    return [os.path.relpath(Path(folder) / name, top) for folder, _, files in os.walk(top) for name in files
            if (Path(folder) / name).lstat().st_ino == inode]
