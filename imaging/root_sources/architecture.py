"""Which processor a root tree's programs are for. I/O: reads the tree."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

from plumbing.errors import UsageError

_MACHINES = {3: "i386", 0x15: "ppc64el", 0x16: "s390x", 0x28: "armhf", 0x3E: "amd64", 0xB7: "arm64", 0xF3: "riscv64"}
"""e_machine of the ELF header (System V gABI, "ELF Header") in Debian's words."""
_PROGRAMS = ("usr/lib/systemd/systemd", "usr/bin/dash", "usr/bin/bash", "usr/bin/env", "bin/bash", "bin/dash",
             "bin/busybox", "sbin/init", "bin/ls")


def architecture(tree: Path) -> str:
    """Return the architecture of the tree's own programs in Debian's words; raises UsageError when none is found."""
    top = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for program in _PROGRAMS:
            head = _head(top, program)
            if len(head) == 20 and head[:4] == b"\x7fELF":
                order = "<" if head[5] == 1 else ">"
                (machine,) = struct.unpack_from(f"{order}H", head, 18)
                if machine in _MACHINES:
                    return _MACHINES[machine]
    finally:
        os.close(top)
    raise UsageError(f"{tree} has no program that tells its architecture; is it a root tree? then say --arch")


def _head(top: int, path: str) -> bytes:
    """Return the first 20 bytes of a regular file; nothing when a link or something else is on the way."""
    *folders, name = path.split("/")
    handle = os.dup(top)
    try:
        for folder in folders:
            above = handle
            try:
                handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
            finally:
                if handle != above:
                    os.close(above)
        if not stat.S_ISREG(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode):
            return b""
        program = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=handle)
        try:
            return os.read(program, 20)
        finally:
            os.close(program)
    except OSError:
        return b""
    finally:
        os.close(handle)
