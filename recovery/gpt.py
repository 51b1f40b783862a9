"""Pure: a GUID partition table read from bytes, every checksum checked (UEFI specification 2.10, chapter 5.3).

The table is read by our own few lines because the answer decides what is wiped: a damaged or doubtful table
has to be an error, never a guess.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from plumbing.errors import CorruptError

BIOS_BOOT_TYPE = "21686148-6449-6e6f-744e-656564454649"
ESP_TYPE = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
LVM_TYPE = "e6d6d379-f507-44c2-a23c-238f2a3df928"
LINUX_TYPE = "0fc63daf-8483-4772-8e79-3d69d8477de4"
ROOT_X86_64_TYPE = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"

_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_SIGNATURE = b"EFI PART"
_MAX_TABLE_BYTES = 1 << 20

ReadAt = Callable[[int, int], bytes]
"""(offset in bytes, length in bytes) -> the bytes, fewer at the end of the disk."""


@dataclass(frozen=True)
class GptEntry:
    """One partition; `number` counts from 1, sectors are logical ones, GUIDs lower-case text."""

    number: int
    type_guid: str
    guid: str
    first_sector: int
    last_sector: int
    name: str

    @property
    def sectors(self) -> int:
        """Length in sectors."""
        return self.last_sector - self.first_sector + 1


@dataclass(frozen=True)
class Gpt:
    """A table whose checksums hold; `from_backup` when the primary one's do not."""

    disk_guid: str
    sector_bytes: int
    first_usable: int
    last_usable: int
    entries: tuple[GptEntry, ...]
    from_backup: bool


def read_gpt(read: ReadAt, size_bytes: int, sector_bytes: int = 512) -> Gpt | None:
    """Return the table of a disk of `size_bytes`, None when it has none.

    Raises CorruptError when there is one and neither copy's checksums hold, or it contradicts itself.
    """
    last = size_bytes // sector_bytes - 1
    if last < 34:
        return None
    seen = False
    for sector, backup in ((1, False), (last, True)):
        header = read(sector * sector_bytes, sector_bytes)
        seen = seen or header.startswith(_SIGNATURE)
        table = _read_copy(read, header, sector, last, sector_bytes, backup)
        if table is not None:
            return table
    if seen:
        raise CorruptError("the partition table is damaged in both copies; repair it with `sgdisk --verify` or gdisk")
    return None


def _read_copy(
    read: ReadAt, header: bytes, at: int, last: int, sector_bytes: int, backup: bool,
) -> Gpt | None:
    if len(header) < _HEADER.size or not header.startswith(_SIGNATURE):
        return None
    (_, revision, header_bytes, crc, _, own, _, first_usable, last_usable, disk_guid, table_sector, count, entry_bytes,
     table_crc) = _HEADER.unpack_from(header)
    if revision >> 16 != 1 or not _HEADER.size <= header_bytes <= sector_bytes:
        return None
    if zlib.crc32(header[:16] + bytes(4) + header[20:header_bytes]) != crc or own != at:
        return None
    length = count * entry_bytes
    if entry_bytes < _ENTRY.size or entry_bytes % 8 or not 0 < length <= _MAX_TABLE_BYTES:
        return None
    table = read(table_sector * sector_bytes, length)
    if len(table) != length or zlib.crc32(table) != table_crc:
        return None
    entries = tuple(_entries(table, entry_bytes))
    _check(entries, first_usable, min(last_usable, last))
    return Gpt(guid_text(disk_guid), sector_bytes, first_usable, last_usable, entries, backup)


def _entries(table: bytes, entry_bytes: int) -> list[GptEntry]:
    found = []
    for index in range(len(table) // entry_bytes):
        kind, guid, first, end, _, name = _ENTRY.unpack_from(table, index * entry_bytes)
        if kind != bytes(16):
            text = name.decode("utf-16-le", "replace").split("\0")[0]
            found.append(GptEntry(index + 1, guid_text(kind), guid_text(guid), first, end, text))
    return found


def _check(entries: tuple[GptEntry, ...], first_usable: int, last_usable: int) -> None:
    end, owner = first_usable - 1, 0
    for entry in sorted(entries, key=lambda e: e.first_sector):
        if entry.first_sector <= end or entry.last_sector < entry.first_sector:
            where = f"overlaps partition {owner}" if owner else "begins inside the table"
            raise CorruptError(f"the partition table's checksums hold but partition {entry.number} {where}; "
                               "repair it with gdisk")
        end, owner = entry.last_sector, entry.number
    if entries and end > last_usable:
        raise CorruptError(f"partition {owner} ends after the disk's last usable sector; repair the table with gdisk")
    if len({entry.guid for entry in entries}) != len(entries):
        raise CorruptError("two partitions of this disk have one GUID; give one a new one with `sgdisk -u`")


def guid_text(raw: bytes) -> str:
    """Write 16 bytes of a GUID (mixed-endian, as on disk) as lower-case text."""
    return str(uuid.UUID(bytes_le=raw))


def guid_bytes(text: str) -> bytes:
    """Return the 16 bytes on disk of a GUID in text."""
    return uuid.UUID(text).bytes_le
