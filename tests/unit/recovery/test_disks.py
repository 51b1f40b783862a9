"""Disks by serial and partition GUID: absent, moved, cloned, damaged; filesystems made for real on image files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from disk_images import Bench, guid, script, table

from plumbing.errors import CorruptError, DiskError, RefusedError
from plumbing.run import run
from recovery.disks import (
    Filesystem,
    check_filesystem,
    describe,
    find_all,
    find_disk,
    find_partition,
    free_bytes,
    identify,
    inventory,
    make_filesystem,
    refuse_mounted,
    require_space,
    serial_of,
)
from recovery.gpt import guid_bytes, guid_text, read_gpt
from recovery.order import Disks, PartitionRef


def ref(n: int, serial: str | None = "alpha-0", fstype: str = "ext4") -> PartitionRef:
    return PartitionRef(guid(n), serial, fstype)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.disk("vda", "alpha-0", table=script())
    made.disk("vdb", "alpha-1", size_mib=8)
    return made


def test_what_is_there_is_found(bench: Bench) -> None:
    vda, vdb = bench.look()
    assert (vda.serial, vda.size_bytes, len(vda.partitions)) == ("alpha-0", 64 << 20, 3)
    assert (vdb.serial, vdb.partitions, vdb.problem) == ("alpha-1", (), None)
    assert find_disk((vda, vdb), "alpha-1") == vdb
    root = find_partition((vda, vdb), ref(2), "root")
    assert (root.device.name, root.number, root.size_bytes, root.start_bytes) == ("vda3", 3, 20 << 20, 42 << 20)
    found = find_all((vda, vdb), Disks(ref(2), None, ref(1, fstype="vfat")))
    assert (found.root, found.local, found.boot.device.name) == (root, None, "vda2")


def test_a_disk_under_another_name_is_the_same_disk(bench: Bench, tmp_path: Path) -> None:
    other = Bench(tmp_path / "later")
    other.disk("vda", "alpha-1", size_mib=8)
    other.disk("sdq", "alpha-0", table=script())
    assert find_partition(other.look(), ref(2)).device.name == "sdq3"


def test_another_serial_is_refused_and_named(bench: Bench) -> None:
    with pytest.raises(DiskError, match=r"serial alpha-0 and the order says beta-0; here are vda \(serial alpha-0"):
        find_partition(bench.look(), ref(2, "beta-0"), "root")
    with pytest.raises(DiskError, match="the order says none"):
        find_partition(bench.look(), ref(2, None), "root")
    with pytest.raises(DiskError, match="no disk has the serial 'beta-0'"):
        find_disk(bench.look(), "beta-0")


def test_an_absent_partition_is_refused(bench: Bench) -> None:
    with pytest.raises(DiskError, match="is not on this machine; here are vda"):
        find_partition(bench.look(), ref(7), "root")
    with pytest.raises(DiskError, match="no disk at all"):
        find_partition((), ref(7), "root")


@pytest.mark.parametrize("serial", ["alpha-0", "clone"])
def test_a_cloned_disk_is_refused(bench: Bench, serial: str) -> None:
    bench.disk("vdc", serial, table=script())
    with pytest.raises(DiskError, match="there twice, as vda3 and vdc3"):
        find_partition(bench.look(), ref(2), "root")
    if serial == "alpha-0":
        with pytest.raises(DiskError, match="2 disks have"):
            find_disk(bench.look(), serial)


def test_the_kernel_must_see_what_the_table_says(bench: Bench) -> None:
    (bench.sysfs / "block/vda/vda3/start").write_text("99\n")
    disk = inventory(bench.sysfs, bench.dev)[0]
    assert disk.partitions == ()
    assert "does not see partition 3" in describe([disk])


def test_only_disks_are_listed(bench: Bench) -> None:
    for name in ("sr0", "loop0", "dm-0"):
        (bench.sysfs / "block" / name / "device").mkdir(parents=True)
    (bench.sysfs / "block/zram0").mkdir()
    (bench.sysfs / "block/nvme0c0n1/device").mkdir(parents=True)
    (bench.sysfs / "block/nvme0c0n1/hidden").write_text("1\n")
    assert [disk.device.name for disk in inventory(bench.sysfs, bench.dev)] == ["vda", "vdb"]
    assert inventory(bench.sysfs / "nowhere") == ()


@pytest.mark.parametrize(("name", "content", "serial"), [
    ("serial", b"virtio-7\n", "virtio-7"), ("device/serial", b"S3X  NVME 1   \n", "S3X  NVME 1"),
    ("device/vpd_pg80", b"\0\x80\0\x08  WD-1\0 ", "WD-1"), ("device/vpd_pg80", b"\0\x83\0\x04ABCD", None),
    ("device/wwid", b"naa.5000c500a1b2c3d4\n", "naa.5000c500a1b2c3d4"), ("wwid", b"eui.01\n", "eui.01"),
    ("serial", b"\n", None), ("serial", b"a\x1b[31m\xff\n", "a[31m"),
])
def test_serials(tmp_path: Path, name: str, content: bytes, serial: str | None) -> None:
    (tmp_path / "device").mkdir()
    (tmp_path / name).write_bytes(content)
    assert serial_of(tmp_path) == serial


def test_guids_are_mixed_endian() -> None:
    text = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
    assert guid_bytes(text).hex() == "28732ac11ff8d211ba4b00a0c93ec93b"
    assert guid_text(guid_bytes(text)) == text


def test_a_damaged_first_copy_is_read_from_the_backup(bench: Bench) -> None:
    image = bench.dev / "vda"
    before = table(image)
    assert before is not None
    with image.open("r+b") as stream:
        stream.seek(1024 + 41)
        stream.write(b"\xff")
    after = table(image)
    assert after is not None
    assert (before.from_backup, after.from_backup) == (False, True)
    assert after.entries == before.entries


def test_both_copies_damaged_is_a_problem_not_a_guess(bench: Bench) -> None:
    image = bench.dev / "vda"
    with image.open("r+b") as stream:
        for at in (512 + 60, image.stat().st_size - 512 + 60):
            stream.seek(at)
            stream.write(b"\xff\xff")
    with pytest.raises(CorruptError, match="damaged in both copies"):
        table(image)
    disk = inventory(bench.sysfs, bench.dev)[0]
    assert disk.problem is not None
    assert "damaged" in disk.problem


def test_every_flipped_bit_of_the_header_is_noticed(bench: Bench) -> None:
    image = bytearray((bench.dev / "vda").read_bytes())
    for at in range(512, 512 + 92):
        image[at] ^= 4
        found = read_gpt(lambda offset, length: bytes(image[offset:offset + length]), len(image))
        image[at] ^= 4
        assert found is not None
        assert found.from_backup


def test_no_table_is_no_table(bench: Bench) -> None:
    assert table(bench.dev / "vdb") is None
    assert read_gpt(lambda _at, _length: b"", 512) is None


def test_filesystems_say_who_they_are(bench: Bench, tmp_path: Path) -> None:
    uuid = "6f1d5f0e-5b0b-4d53-9f0b-8f1d6a2c7e11"
    root, esp = bench.dev / "vda3", bench.dev / "vda2"
    assert identify(root) is None
    make_filesystem(root, "ext4", label="root", uuid=uuid)
    make_filesystem(esp, "vfat", label="ESP", uuid="6F1D-5F0E")
    assert identify(root) == Filesystem("ext4", uuid, "root")
    assert identify(esp) == Filesystem("vfat", "6F1D-5F0E", "ESP")
    assert run(["blkid", "-p", "-s", "UUID", "-o", "value", esp]).text.strip() == "6F1D-5F0E"
    disks = bench.look()
    assert check_filesystem(find_partition(disks, ref(2)), ref(2), "root").uuid == uuid
    with pytest.raises(DiskError, match="holds ext4 and the order says xfs"):
        check_filesystem(find_partition(disks, ref(2)), ref(2, fstype="xfs"), "root")
    with pytest.raises(DiskError, match="holds no filesystem known here"):
        check_filesystem(find_partition(disks, ref(0)), ref(0), "root")


def test_an_xfs_root_keeps_its_names(tmp_path: Path) -> None:
    uuid = "6f1d5f0e-5b0b-4d53-9f0b-8f1d6a2c7e11"
    image = tmp_path / "image"
    image.write_bytes(b"")
    os.truncate(image, 320 << 20)
    make_filesystem(image, "xfs", label="reroot-root", uuid=uuid)
    assert identify(image) == Filesystem("xfs", uuid, "reroot-root")


def test_other_ext_versions_and_fat32_are_told_apart(tmp_path: Path) -> None:
    image = tmp_path / "image"
    for kind in ("ext2", "ext3", "ext4"):
        image.write_bytes(b"")
        os.truncate(image, 16 << 20)
        run([f"mkfs.{kind}", "-q", "-F", image])
        found = identify(image)
        assert found is not None
        assert found.fstype == kind
    os.truncate(image, 0)
    os.truncate(image, 64 << 20)
    run(["mkfs.vfat", "-F", "32", "-i", "00c0ffee", "-n", "BIG", image])
    assert identify(image) == Filesystem("vfat", "00C0-FFEE", "BIG")


def test_a_filesystem_in_use_is_not_made_anew(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("proc /proc proc rw 0 0\n/dev/vda3 /mnt\\040x ext4 rw 0 0\n/dev/vda10 / ext4 rw 0 0\n")
    for device in ("/dev/vda3", "/dev/vda"):
        with pytest.raises(RefusedError, match="is in use"):
            refuse_mounted(Path(device), mounts)
    refuse_mounted(Path("/dev/vda1"), mounts)
    refuse_mounted(Path("/dev/vdb"), mounts)
    with pytest.raises(RefusedError, match="not btrfs"):
        make_filesystem(tmp_path / "x", "btrfs")


def test_space_is_asked_for_before(tmp_path: Path) -> None:
    require_space(tmp_path, 0, "nothing")
    with pytest.raises(DiskError, match="the stage needs"):
        require_space(tmp_path, free_bytes(tmp_path) * 2, "the stage")
