"""The initramfs: items to a cpio archive ("newc") to compressed bytes. Pure; the same items give the same bytes.

The format is the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. It is written here and not
by cpio(1) because that would need root to make the device nodes first, and would carry the builder's times.
"""

from __future__ import annotations

import lzma
import stat
from collections.abc import Iterable, Mapping
from enum import StrEnum

import zstandard

from imaging.recovery_image.contents import Item, in_order
from plumbing.errors import UsageError


class Compression(StrEnum):
    """How the archive is packed; all of these the kernel can unpack when it was configured to."""

    ZSTD = "zstd"
    XZ = "xz"
    NONE = "none"


def _record(number: int, item: Item) -> bytes:
    name = item.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(item.mode) else 1
    fields = (number, item.mode, 0, 0, links, 0, len(item.data), 0, 0, *item.device, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % value for value in fields) + name
    return head + bytes(-len(head) % 4) + item.data + bytes(-len(item.data) % 4)


def archive(items: Iterable[Item]) -> bytes:
    """Return the cpio archive of the items, parents first, inodes numbered from 1, all owned by root at time 0."""
    records = [_record(number, item) for number, item in enumerate(in_order(items), start=1)]
    records.append(_record(0, Item("TRAILER!!!", 0)))
    whole = b"".join(records)
    return whole + bytes(-len(whole) % 512)


def compress(data: bytes, how: Compression, level: int = 19) -> bytes:
    """Pack an archive for the kernel's unpacker; `level` is zstd's."""
    match how:
        case Compression.ZSTD:
            # the kernel's decoder takes windows up to 128 MiB; 32 MiB covers the archive and is what it allocates
            options = zstandard.ZstdCompressionParameters.from_level(level, window_log=25, enable_ldm=True)
            return zstandard.ZstdCompressor(compression_params=options).compress(data)
        case Compression.XZ:
            # the kernel's decoder knows CRC32 only
            filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 32 << 20}]
            return lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=filters)
        case Compression.NONE:
            return data


def choose(config: Mapping[str, str]) -> Compression:
    """Pick the packing for a kernel by its configuration: zstd, else xz; zstd when nothing is known of it.

    docs/adr/0005-host-runtime.md has the measurement: xz is smaller, but takes far longer to unpack.
    """
    if not config or config.get("CONFIG_RD_ZSTD") == "y":
        return Compression.ZSTD
    if config.get("CONFIG_RD_XZ") == "y":
        return Compression.XZ
    raise UsageError("this kernel unpacks neither zstd nor xz initramfs archives; choose another kernel")
