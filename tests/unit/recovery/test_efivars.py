"""UEFI boot variables: the bytes of the specification, and what is written to a folder that stands for efivarfs."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from plumbing.errors import RefusedError
from recovery import efivars
from recovery.gpt import ESP_TYPE, GptEntry

ESP = GptEntry(2, ESP_TYPE, "00000001-1111-4222-8333-444444444444", 4096, 4096 + 81919, "esp")


def variable(folder: Path, name: str, value: bytes) -> None:
    (folder / f"{name}-{efivars.GLOBAL}").write_bytes(b"\7\0\0\0" + value)


def value(folder: Path, name: str) -> bytes:
    data = (folder / f"{name}-{efivars.GLOBAL}").read_bytes()
    assert data[:4] == b"\7\0\0\0"
    return data[4:]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    variable(tmp_path, "Boot0000", efivars.load_option("debian", ESP, "\\EFI\\debian\\shimx64.efi"))
    variable(tmp_path, "Boot0002", b"\1\0\0\0\4\0" + "PXE\0".encode("utf-16-le") + b"\x7f\xff\4\0")
    variable(tmp_path, "BootOrder", struct.pack("<2H", 0, 2))
    variable(tmp_path, "BootCurrent", b"\0\0")
    return tmp_path


def test_a_load_option_is_what_the_specification_says() -> None:
    option = efivars.load_option("reroot", ESP, "\\EFI\\a.efi")
    attributes, length = struct.unpack_from("<IH", option)
    assert attributes == 1
    assert option[6:20] == "reroot\0".encode("utf-16-le")
    path = option[20:]
    assert len(path) == length
    assert path[:4] == b"\4\1\x2a\0"
    assert struct.unpack_from("<IQQ", path, 4) == (2, 4096, 81920)
    assert path[24:40].hex() == "0100000011112242" + "8333444444444444"
    assert path[40:42] == b"\2\2"
    assert path[42:46] == b"\4\4" + struct.pack("<H", 4 + 2 * len("\\EFI\\a.efi\0"))
    assert path[46:] == "\\EFI\\a.efi\0".encode("utf-16-le") + b"\x7f\xff\4\0"
    assert efivars.read_label(option) == "reroot"


def test_ours_comes_first_and_the_others_stay(folder: Path) -> None:
    before = {name: value(folder, name) for name in ("Boot0000", "Boot0002")}
    assert efivars.make_first(ESP, folder) == 1
    assert efivars.read_order(folder) == (1, 0, 2)
    assert value(folder, "Boot0001") == efivars.load_option("reroot", ESP, efivars.LOADER)
    assert {name: value(folder, name) for name in before} == before
    assert [option.label for option in efivars.read_options(folder)] == ["debian", "reroot", "PXE"]


def test_repeating_it_writes_nothing(folder: Path) -> None:
    efivars.make_first(ESP, folder)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert efivars.make_first(ESP, folder) == 1
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_an_entry_of_ours_for_another_disk_is_replaced(folder: Path) -> None:
    elsewhere = GptEntry(1, ESP_TYPE, ESP.guid, 1, 2, "")
    variable(folder, "Boot0005", efivars.load_option("reroot", elsewhere, efivars.LOADER))
    variable(folder, "BootOrder", struct.pack("<3H", 0, 5, 2))
    assert efivars.make_first(ESP, folder) == 5
    assert efivars.read_order(folder) == (5, 0, 2)
    assert value(folder, "Boot0005") == efivars.load_option("reroot", ESP, efivars.LOADER)


def test_an_empty_board_gets_its_first_entry(tmp_path: Path) -> None:
    variable(tmp_path, "Timeout", b"\0\0")
    assert efivars.make_first(ESP, tmp_path) == 0
    assert efivars.read_order(tmp_path) == (0,)


def test_without_uefi_it_says_so(tmp_path: Path) -> None:
    assert not efivars.available(tmp_path / "none")
    with pytest.raises(RefusedError, match="start this machine by UEFI"):
        efivars.make_first(ESP, tmp_path)
