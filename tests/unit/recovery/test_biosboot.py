"""The BIOS first stage on real partition tables: what changes, what must not, and what a cut leaves."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from disk_images import Bench, script, table

from plumbing.errors import CorruptError, DiskError, RefusedError
from recovery import biosboot

BOOT = bytes(range(256)) + bytes(254) + b"\x55\xaa"
CORE = b"first sector".ljust(512, b"\1") + b"the rest" * 1000


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return Bench(tmp_path).disk("vda", "alpha-0", table=script())


def kernel_sector(disk: Path) -> int:
    with disk.open("rb") as stream:
        return int(struct.unpack_from("<Q", stream.read(512), 0x5C)[0])


def core_at(disk: Path, sector: int) -> bytes:
    with disk.open("rb") as stream:
        stream.seek(sector * 512)
        return stream.read(-(-len(CORE) // 512) * 512)


def test_tables_stay_and_the_stages_are_chained(disk: Path) -> None:
    before, entries = disk.read_bytes(), table(disk)
    assert biosboot.install(disk, BOOT, CORE)
    after = disk.read_bytes()
    assert after[0x1B8:0x1FE] == before[0x1B8:0x1FE]
    assert after[0x3:0x5A] == before[0x3:0x5A]
    assert after[0x66:0x68] == b"\x90\x90"
    assert after[510:512] == b"\x55\xaa"
    assert table(disk) == entries
    start = kernel_sector(disk)
    assert start == 2048
    rest, sectors, segment = struct.unpack("<QHH", core_at(disk, start)[500:512])
    assert (rest, sectors, segment) == (start + 1, -(-len(CORE) // 512) - 1, 0x820)
    assert core_at(disk, start)[512:].startswith(CORE[512:])
    assert after[2 << 20:] == before[2 << 20:]


def test_repeating_it_writes_nothing(disk: Path) -> None:
    biosboot.install(disk, BOOT, CORE)
    before = disk.read_bytes()
    assert not biosboot.install(disk, BOOT, CORE)
    assert disk.read_bytes() == before


def test_a_new_version_leaves_the_old_one_whole(disk: Path) -> None:
    biosboot.install(disk, BOOT, CORE)
    old = core_at(disk, 2048)
    assert biosboot.install(disk, BOOT, CORE.replace(b"rest", b"REST"))
    assert kernel_sector(disk) == 2048 + 1024
    assert core_at(disk, 2048) == old
    assert struct.unpack_from("<Q", core_at(disk, 3072), 500)[0] == 3073
    assert biosboot.install(disk, BOOT, CORE)
    assert kernel_sector(disk) == 2048


def test_a_large_core_still_fits(disk: Path) -> None:
    large = CORE.ljust(600_000, b"x")
    for core in (large, large + b"y"):
        assert biosboot.install(disk, BOOT, core)
        assert kernel_sector(disk) == 2048


@pytest.mark.parametrize("text", [
    None, "label: dos\nsize=10MiB\n", "label: gpt\nsize=10MiB\n",
    "label: gpt\n" + "size=1MiB, type=21686148-6449-6E6F-744E-656564454649\n" * 2,
])
def test_no_place_is_refused_and_nothing_written(tmp_path: Path, text: str | None) -> None:
    disk = Bench(tmp_path).disk("vda", "alpha-0", table=text)
    before = disk.read_bytes()
    with pytest.raises(RefusedError):
        biosboot.install(disk, BOOT, CORE)
    assert disk.read_bytes() == before


def test_wrong_images_are_refused(disk: Path, tmp_path: Path) -> None:
    before = disk.read_bytes()
    with pytest.raises(CorruptError):
        biosboot.install(disk, BOOT, b"")
    with pytest.raises(RefusedError, match="make it larger"):
        biosboot.install(disk, BOOT, bytes((1 << 20) + 1))
    with pytest.raises(CorruptError):
        biosboot.install(disk, BOOT[:511], CORE)
    assert disk.read_bytes()[:512] == before[:512]
    with pytest.raises(DiskError, match="cannot be opened"):
        biosboot.install(tmp_path / "none", BOOT, CORE)
