"""UEFI boot variables: encoding is pure, `make_first` writes through efivarfs.

Load options and device paths: UEFI specification 2.10, 3.1.3 and 10.3.5.1. A file of efivarfs holds four bytes of
attributes, then the value; the kernel lets Boot#### , BootOrder and BootNext be written without further ado.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plumbing.errors import DiskError, RefusedError
from recovery.gpt import GptEntry, guid_bytes

EFIVARS = Path("/sys/firmware/efi/efivars")
GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
LABEL = "reroot"
LOADER = "\\EFI\\reroot\\grubx64.efi"
_ATTRIBUTES = struct.pack("<I", 7)  # non-volatile, boot services, run time
_ACTIVE = 1
_END = bytes.fromhex("7fff0400")


@dataclass(frozen=True)
class LoadOption:
    """What a Boot#### variable says, as far as reroot cares."""

    number: int
    label: str
    value: bytes


def load_option(label: str, esp: GptEntry, loader: str) -> bytes:
    """Return the value of a Boot#### variable that starts the file `loader` (backslashes) on the partition `esp`."""
    name = (label + "\0").encode("utf-16-le")
    drive = struct.pack("<BBHIQQ16sBB", 4, 1, 42, esp.number, esp.first_sector, esp.sectors, guid_bytes(esp.guid), 2, 2)
    file = (loader + "\0").encode("utf-16-le")
    path = drive + struct.pack("<BBH", 4, 4, 4 + len(file)) + file + _END
    return struct.pack("<IH", _ACTIVE, len(path)) + name + path


def read_label(value: bytes) -> str:
    """Return the description in a Boot#### variable's value."""
    text = value[6:]
    end = next((at for at in range(0, len(text) - 1, 2) if text[at:at + 2] == b"\0\0"), len(text))
    return text[:end].decode("utf-16-le", "replace")


def put_first(order: Sequence[int], number: int) -> tuple[int, ...]:
    """Return the boot order with `number` first and the others as they were."""
    return (number, *(other for other in order if other != number))


def choose_number(options: Sequence[LoadOption], value: bytes) -> int:
    """Return the number for our entry: its own if there is one, else the lowest free one."""
    mine = [option for option in options if option.label == LABEL]
    same = [option for option in mine if option.value == value]
    if mine:
        return (same or mine)[0].number
    taken = {option.number for option in options}
    return next(number for number in range(0x10000) if number not in taken)


def available(folder: Path = EFIVARS) -> bool:
    """Whether this machine was started by UEFI and efivarfs is mounted."""
    return folder.is_dir() and any(folder.iterdir())


def read_options(folder: Path = EFIVARS) -> tuple[LoadOption, ...]:
    """Return the boot entries that exist, by number."""
    found = []
    for path in sorted(folder.glob(f"Boot*-{GLOBAL}")):
        if match := re.fullmatch(r"Boot([0-9A-F]{4})-.*", path.name):
            value = _read(path)
            found.append(LoadOption(int(match[1], 16), read_label(value), value))
    return tuple(found)


def read_order(folder: Path = EFIVARS) -> tuple[int, ...]:
    """Return BootOrder, empty when there is none."""
    path = folder / f"BootOrder-{GLOBAL}"
    raw = _read(path) if path.exists() else b""
    return struct.unpack(f"<{len(raw) // 2}H", raw[:len(raw) // 2 * 2])


def make_first(esp: GptEntry, folder: Path = EFIVARS) -> int:
    """Have the firmware start reroot's GRUB on `esp` first; returns the entry's number. Repeating it writes nothing.

    Raises RefusedError when the machine was not started by UEFI, DiskError when the firmware refuses.
    """
    if not available(folder):
        raise RefusedError(f"there are no UEFI variables in {folder}; start this machine by UEFI, or mount efivarfs "
                           "there")
    value = load_option(LABEL, esp, LOADER)
    options = read_options(folder)
    number = choose_number(options, value)
    if not any(option.number == number and option.value == value for option in options):
        _write(folder / f"Boot{number:04X}-{GLOBAL}", value)
    order = read_order(folder)
    if order[:1] != (number,):
        wanted = put_first(order, number)
        _write(folder / f"BootOrder-{GLOBAL}", struct.pack(f"<{len(wanted)}H", *wanted))
    return number


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()[4:]
    except OSError as error:
        raise DiskError(f"the firmware does not give {path.name} ({error.strerror}); look at its boot "
                        "settings") from error


def _write(path: Path, value: bytes) -> None:
    try:  # one write call: efivarfs takes the attributes and the whole value at once
        with path.open("wb", buffering=0) as stream:
            stream.write(_ATTRIBUTES + value)
    except OSError as error:
        raise DiskError(f"the firmware does not take {path.name} ({error.strerror}); remove boot entries in its "
                        "settings, or set the boot order there by hand") from error
