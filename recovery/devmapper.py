"""The kernel's device-mapper, by its ioctls (I/O): a device over runs of others is made, or goes.

Source: include/uapi/linux/dm-ioctl.h, version 4.0.0 of the interface, which every kernel since 2.6 speaks.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from plumbing.errors import DiskError
from plumbing.run import run

CONTROL = Path("/dev/mapper/control")
_HEAD = struct.Struct("=IIIIIIiIIIQ128s129s7x")
_TARGET = struct.Struct("=QQiI16s")
_CREATE, _REMOVE, _RESUME, _LOAD = (0xC138FD00 | number for number in (3, 4, 6, 9))
"""_IOWR(0xfd, number, struct dm_ioctl), whose size is 312; DM_DEV_SUSPEND without a flag resumes."""


@dataclass(frozen=True)
class Target:
    """A run of sectors, and how the kernel makes it of others: `kind` is linear or striped."""

    start: int
    sectors: int
    kind: str
    words: str


def create(name: str, ident: str, targets: Sequence[Target]) -> None:
    """Make a device with this name and uuid; raises DiskError, and leaves no half of one behind."""
    _call(_CREATE, name, ident=ident)
    try:
        _call(_LOAD, name, targets=targets)
        _call(_RESUME, name)
    except DiskError:
        with suppress(DiskError):
            remove(name)
        raise


def remove(name: str) -> None:
    """Take a device away; raises DiskError when it is in use."""
    _call(_REMOVE, name)


def _call(number: int, name: str, *, ident: str = "", targets: Sequence[Target] = ()) -> None:
    table = b""
    for target in targets:
        words = target.words.encode() + b"\0"
        words += bytes(-len(words) % 8)
        table += _TARGET.pack(target.start, target.sectors, 0, _TARGET.size + len(words), target.kind.encode()) + words
    size = max(_HEAD.size + len(table), 16384)
    request = bytearray(size)
    _HEAD.pack_into(request, 0, 4, 0, 0, size, _HEAD.size, len(targets), 0, 0, 0, 0, 0, name.encode(), ident.encode())
    request[_HEAD.size:_HEAD.size + len(table)] = table
    if not CONTROL.exists():
        run(["modprobe", "dm_mod"], check=False)
    try:
        control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(control, number, request)
        finally:
            os.close(control)
    except OSError as error:
        raise DiskError(f"the kernel's device-mapper does not take the volume {name} ({error.strerror}); look at the "
                        "disks that its group lies on") from error
