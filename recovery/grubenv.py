"""GRUB's environment block: `encode` and `decode` are pure, `read` and `write` do the I/O, in place.

The block is 1024 bytes of text (grub-2.06 include/grub/lib/envblk.h); see docs/protocols/boot-area.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from plumbing import durable
from plumbing.errors import CorruptError, DiskError, UsageError

BLOCK_BYTES = 1024
SECTOR_BYTES = 512
SIGNATURE = b"# GRUB Environment Block\n"
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def encode(values: Mapping[str, str]) -> bytes:
    """Return the block; saved_entry and next_entry come first, so that they lie in its first sector."""
    ordered = sorted(values, key=lambda key: (key not in {"saved_entry", "next_entry"}, key != "saved_entry", key))
    text = SIGNATURE
    for key in ordered:
        value = values[key].replace("\\", "\\\\").replace("\n", "\\\n")
        if not _KEY.fullmatch(key) or "\0" in value:
            raise UsageError(f"{key!r} cannot be a variable of GRUB's environment block; use letters and underscores")
        text += f"{key}={value}\n".encode()
    if len(text) > BLOCK_BYTES:
        raise UsageError(f"GRUB's environment block holds {BLOCK_BYTES} bytes and {len(text)} are wanted; remove "
                         "variables from it with grub-editenv")
    return text.ljust(BLOCK_BYTES, b"#")


def decode(block: bytes) -> dict[str, str]:
    """Return the variables; raises CorruptError when it is not a block."""
    if len(block) != BLOCK_BYTES or not block.startswith(SIGNATURE):
        raise CorruptError("reroot/grubenv is not a GRUB environment block of 1024 bytes; it will be written anew")
    values: dict[str, str] = {}
    for line in re.findall(rb"((?:[^\\\n]|\\.)*)\n", block[len(SIGNATURE):], re.DOTALL):
        key, equals, value = line.partition(b"=")
        if equals and not line.startswith(b"#"):
            plain = re.sub(rb"\\(.)", rb"\1", value, flags=re.DOTALL)
            values[key.decode("utf-8", "replace")] = plain.decode("utf-8", "replace")
    return values


def read(path: Path) -> dict[str, str]:
    """Return the variables of the block at `path`; an absent or damaged one has none."""
    try:
        return decode(path.read_bytes())
    except (FileNotFoundError, CorruptError):
        return {}
    except OSError as error:
        raise DiskError(f"{path} cannot be read ({error.strerror}); check the boot partition") from error


def write(path: Path, changes: Mapping[str, str]) -> None:
    """Change variables and make that durable when it returns; other variables stay.

    FAT's rename is not atomic, so an existing block is overwritten in place, and only the sectors that differ.
    """
    new = encode({**read(path), **changes})
    try:
        old = path.read_bytes() if path.exists() else b""
        if len(old) != BLOCK_BYTES:
            durable.write_file(path, new)
            return
        handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for offset in range(0, BLOCK_BYTES, SECTOR_BYTES):
                piece = new[offset:offset + SECTOR_BYTES]
                if piece != old[offset:offset + SECTOR_BYTES]:
                    os.pwrite(handle, piece, offset)
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise DiskError(f"{path} cannot be written ({error.strerror}); the machine would start the wrong thing: check "
                        "the boot partition") from error
