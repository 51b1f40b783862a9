"""Owners and modes of dpkg's statoverride, given to the image's files (I/O)."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from imaging.entry import parent, printable
from imaging.folders import Folders
from precious.mergers import statoverride
from precious.mergers.lines import split
from precious.names import ids


def apply(new_root: Path, host: bytes, result: bytes, accounts: Mapping[bytes, bytes]) -> list[str]:
    """Carry out the host's lines that are in the merged table `result`; returns sentences about those that it cannot.

    The table alone would count for what is unpacked later. `accounts` are etc/passwd and etc/group of the new root.
    Nothing is followed through a link; what is not there is told, for a package may bring it yet. Doing it twice gives
    the same.
    """
    users, groups = ({name.encode("utf-8", "surrogateescape"): number for number, name in ids(accounts[path]).items()}
                     for path in (b"etc/passwd", b"etc/group"))
    lines, told = set(split(result)), []
    with Folders(new_root) as folders:
        for line in split(host):
            row = statoverride.parse(line)
            if row is None or line not in lines:
                continue
            user, group, mode, path = row
            uid, gid = _id(user, users), _id(group, groups)
            if uid is None or gid is None or not _set(folders, path.lstrip(b"/"), uid, gid, int(mode, 8)):
                told.append(f"{printable(path)} has an override of dpkg-statoverride and is no file of the new root: "
                            "it counts once a package brings it")
    return told


def _id(name: bytes, known: Mapping[bytes, int]) -> int | None:
    return int(name[1:]) if name.startswith(b"#") else known.get(name)


def _set(folders: Folders, path: bytes, uid: int, gid: int, mode: int) -> bool:
    for way in (path, b"usr/" + path):  # overrides name paths as they were before / and /usr were merged
        name = way.rpartition(b"/")[2]
        try:
            handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
                             dir_fd=folders.enter(parent(way)))
        except OSError:
            continue
        try:
            kind = os.fstat(handle).st_mode
            if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
                os.fchown(handle, uid, gid)
                os.fchmod(handle, mode & 0o7777)  # last: changing owners takes SUID away
                return True
        finally:
            os.close(handle)
    return False
