"""Disk images: the plan adds up, and other people's tools read what was written."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import disks, grub
from lab.qemu import Firmware
from plumbing.errors import CorruptError, NotFoundError, UsageError
from plumbing.run import run


@given(size=st.integers(100, 9000), root=st.integers(1, 9000), esp=st.integers(1, 600), local=st.booleans())
def test_partitions_never_overlap_and_fit(size: int, root: int, esp: int, local: bool) -> None:
    try:
        plan = disks.plan(size_mib=size, root_mib=root, esp_mib=esp, local=local)
    except UsageError:
        assert size < root + esp + 36 or root < 64 or esp < 34
        return
    end = disks.MIB
    for each in plan.partitions:
        assert each.offset == end
        assert each.size % disks.MIB == 0
        assert each.size > 0
        end += each.size
    assert end <= plan.size - disks.MIB
    assert plan.has("local") is local


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root, local = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("local")
    (root / "etc").mkdir()
    (root / "etc/hostname").write_text("alpha\n")
    (local / "thesis").write_bytes(b"x" * 100_000)
    return root, local


@pytest.mark.parametrize("firmware", list(Firmware))
def test_a_written_image_is_what_the_plan_says(firmware: Firmware, trees: tuple[Path, Path], tmp_path: Path) -> None:
    plan = disks.plan(size_mib=300, root_mib=64, esp_mib=40)
    image = tmp_path / "disk.img"
    disks.write(plan, image, firmware, root=trees[0], local=trees[1])
    table = json.loads(run(["sfdisk", "--json", image]).stdout)["partitiontable"]
    assert table["id"].lower() == plan.disk_uuid
    found = [(each["start"] * 512, each["size"] * 512, each["uuid"].lower(), each["name"])
             for each in table["partitions"]]
    assert found == [(each.offset, each.size, each.partuuid, each.name) for each in plan.partitions]
    for name in ("root", "local"):
        where = plan.partition(name)
        run(["e2fsck", "-fn", f"{image}?offset={where.offset}"])
        assert f"UUID:          {where.fs_uuid}" in run(["dumpe2fs", "-h", f"{image}?offset={where.offset}"]).text
    where = plan.partition("root")
    assert run(["debugfs", "-R", "cat /etc/hostname", f"{image}?offset={where.offset}"]).text == "alpha\n"
    assert image.stat().st_blocks * 512 < 60 * disks.MIB, "the image is sparse"
    esp = plan.partition("esp")
    if firmware is Firmware.UEFI:
        assert disks.esp_read(image, esp, "EFI/BOOT/BOOTX64.EFI").startswith(b"MZ")
        assert disks.esp_read(image, esp, "/EFI/debian/grubx64.efi").startswith(b"MZ")
    else:
        with image.open("rb") as stream:
            first = stream.read(512)
            stream.seek(plan.partition("bios").offset)
            core = stream.read(512)
        assert struct.unpack_from("<Q", first, 0x5C) == (2048,)
        assert first[510:] == b"\x55\xaa"
        assert struct.unpack_from("<QH", core, 500)[0] == 2049


def test_esp_files_are_replaced(tmp_path: Path, trees: tuple[Path, Path]) -> None:
    plan = disks.plan(size_mib=200, root_mib=64, esp_mib=40, local=False)
    image = tmp_path / "disk.img"
    disks.write(plan, image, Firmware.UEFI, root=trees[0])
    for text in (b"one", b"two and more"):
        disks.esp_write(image, plan.partition("esp"), "reroot/deep/grub.cfg", text)
        assert disks.esp_read(image, plan.partition("esp"), "reroot/deep/grub.cfg") == text
    with pytest.raises(NotFoundError, match="no partition local; it has bios, esp, root"):
        plan.partition("local")


def test_boot_sector_keeps_the_partition_area() -> None:
    old = bytes(range(256)) * 2
    made = grub.place_bios(old, grub.boot_sector(), 2048)
    assert made[0x1B8:] == old[0x1B8:]
    assert made[:3] == grub.boot_sector()[:3]
    with pytest.raises(CorruptError):
        grub.place_bios(old[:511], grub.boot_sector(), 2048)
    with pytest.raises(CorruptError, match="too short"):
        grub.core_blocks(b"\0" * 600, 2048)
