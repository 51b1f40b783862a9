"""The rules that are asked before the wipe: room in blocks and inodes, a kernel to start, and what an fstab names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopdevice import attached

from imaging.entry import Entry, EntryType, Hole
from imaging.footprint import BLOCK_BYTES, Footprint, footprint
from imaging.scan import scan
from plumbing.errors import DiskError, RefusedError
from plumbing.run import run
from recovery import disks, ext4, filesystems, fstab, xfs
from recovery.order import ROOT_FILESYSTEMS
from recovery.startable import is_file, require_startable

MIB = 1 << 20


def _entry(path: str, kind: EntryType = EntryType.FILE, *, size: int = 0, link: str = "",
           holes: tuple[Hole, ...] = ()) -> Entry:
    return Entry(path.encode(), kind, 0o644, 0, 0, 0, size=size, link=link.encode(), holes=holes)


# -- room ----------------------------------------------------------------------------------------------------


def test_whole_blocks_and_inodes_are_counted() -> None:
    top, folder = _entry(".", EntryType.DIRECTORY), _entry("d", EntryType.DIRECTORY)
    base = footprint([top])
    assert base == Footprint(BLOCK_BYTES, 1)
    assert footprint([top, _entry("a", size=1)]) == Footprint(2 * BLOCK_BYTES, 2)
    assert footprint([top, _entry("a")]) == Footprint(BLOCK_BYTES, 2), "an empty file has an inode and no block"
    assert footprint([top, _entry("a"), _entry("b", EntryType.LINK, link="a")]).inodes == 2
    assert footprint([top, folder]) == Footprint(2 * BLOCK_BYTES, 2)
    sparse = _entry("a", size=10 * BLOCK_BYTES, holes=(Hole(1, 3 * BLOCK_BYTES),))
    assert footprint([top, sparse]).size == (1 + 10 - 2) * BLOCK_BYTES, "only blocks that lie in the hole whole"
    long = _entry("l", EntryType.SYMLINK, link="x" * 60)
    assert footprint([top, long]).size == 2 * BLOCK_BYTES
    many = [_entry(f"{number:0200}") for number in range(100)]
    assert footprint([top, *many]).size >= 100 * 208


@pytest.mark.root
@pytest.mark.parametrize("mib", [48, 511, 512, 1500, 5000, 40000])
def test_the_room_is_not_more_than_mke2fs_leaves(tmp_path: Path, mib: int) -> None:
    image = tmp_path / "image"
    for need in (Footprint(0, 1), Footprint(0, (mib * MIB) // 6000)):
        inodes = ext4.inodes_to_make(mib * MIB, need)
        with image.open("wb") as stream:
            stream.truncate(mib * MIB)
        lazy = ["-E", "lazy_journal_init=1,nodiscard"]
        run(["mkfs.ext4", "-q", "-F", *lazy, *(["-N", str(inodes)] if inodes else []), image])
        said = dict(line.split(":", 1) for line in run(["dumpe2fs", "-h", image]).text.splitlines() if ":" in line)
        block = int(said["Block size"])
        room = (int(said["Free blocks"]) - int(said["Reserved block count"])) * block
        assert 0.9 * room < ext4.room_bytes(mib * MIB, need) <= room
        least = ext4.default_inodes(mib * MIB) if inodes is None else inodes
        assert int(said["Inode count"]) >= max(need.inodes, least)
        image.unlink()


@pytest.mark.root
def test_a_tree_takes_no_more_than_its_footprint(tmp_path: Path) -> None:
    """Names, links, attributes and holes on a real ext4."""
    image = tmp_path / "image"
    with image.open("wb") as stream:
        stream.truncate(600 * MIB)
    run(["mkfs.ext4", "-q", "-F", "-b", "4096", image])
    with attached(image) as device, disks.mounted(device, tmp_path / "mnt", "ext4") as root:
        (root / "lost+found").rmdir()
        before = os.statvfs(root)
        for number in range(3000):
            (root / f"{number:0150}").write_bytes(b"x" * (number % 5000))
        (root / "long").symlink_to("y" * 200)
        os.setxattr(root / f"{7:0150}", "user.big", b"z" * 1000)
        with (root / "sparse").open("wb") as stream:
            stream.truncate(50 * MIB)
            stream.seek(20 * MIB)
            stream.write(b"data")
        run(["sync", "-f", root])
        after, counted = os.statvfs(root), footprint(scan(root, one_file_system=True))
        took = (before.f_bfree - after.f_bfree) * before.f_frsize
        assert took <= counted.size < took * 1.3 + 10 * BLOCK_BYTES
        assert before.f_ffree - after.f_ffree == counted.inodes - 1, "the top was there"


@pytest.mark.root
@pytest.mark.parametrize("mib", [300, 511, 2048, 8192, 65536, 2 << 20])
def test_the_room_is_not_more_than_mkfs_xfs_leaves(tmp_path: Path, mib: int) -> None:
    image = tmp_path / "image"
    with image.open("wb") as stream:
        stream.truncate(mib * MIB)
    disks.make_filesystem(image, "xfs")
    with attached(image) as device, disks.mounted(device, tmp_path / "mnt", "xfs") as root:
        figures = os.statvfs(root)
    room = figures.f_bfree * figures.f_frsize
    assert 0.85 * room < xfs.room_bytes(mib * MIB, Footprint(0, 1)) <= room * xfs.RESERVE


@pytest.mark.root
def test_a_tree_that_fits_by_the_numbers_fits_on_xfs(tmp_path: Path) -> None:
    """Small files, long links and attributes, as many as are said to fit."""
    image, size = tmp_path / "image", 300 * MIB
    with image.open("wb") as stream:
        stream.truncate(size)
    disks.make_filesystem(image, "xfs")
    with attached(image) as device, disks.mounted(device, tmp_path / "mnt", "xfs") as root:
        for number in range(20_000):
            (root / f"{number % 50}").mkdir(exist_ok=True)
            (root / f"{number % 50}/{number:0150}").write_bytes(b"x" * (number % 5000))
        (root / "long").symlink_to("y" * 200)
        counted = footprint(scan(root, one_file_system=True))
        filler = xfs.room_bytes(size, counted) - counted.size
        assert filler > 40 * MIB
        with (root / "filler").open("wb") as stream:
            stream.write(bytes(filler))
            os.fsync(stream.fileno())


def test_every_root_that_an_order_may_name_can_be_made() -> None:
    assert tuple(filesystems.ROOTS) == ROOT_FILESYSTEMS
    with pytest.raises(RefusedError, match=r"roots of type ext4 or xfs, not btrfs; nothing was touched"):
        filesystems.require_makeable("btrfs")


def test_what_does_not_fit_is_a_sentence() -> None:
    with pytest.raises(DiskError, match="an xfs filesystem of 200 MiB has room for 0"):
        filesystems.require_room("xfs", 200 * MIB, Footprint(MIB, 10), "release x")
    filesystems.require_room("ext4", 2048 * MIB, Footprint(1500 * MIB, 1000), "release x")
    with pytest.raises(DiskError, match="release x with the precious files takes 1900 MiB in 1000 inodes"):
        filesystems.require_room("ext4", 2048 * MIB, Footprint(1900 * MIB, 1000), "release x with the precious files")
    with pytest.raises(DiskError, match="room for"):
        filesystems.require_room("ext4", 2048 * MIB, Footprint(1500 * MIB, 2_000_000), "their inodes alone take 640 MB")
    assert ext4.inodes_to_make(2048 * MIB, Footprint(0, 100_000)) is None
    assert ext4.inodes_to_make(2048 * MIB, Footprint(0, 140_000)) == 175_000


@given(st.integers(32 * MIB, 1 << 44), st.integers(0, 1 << 24))
def test_more_inodes_leave_less_room(size: int, inodes: int) -> None:
    more = ext4.room_bytes(size, Footprint(0, inodes + 1))
    assert more <= ext4.room_bytes(size, Footprint(0, inodes)) < size


# -- something to start --------------------------------------------------------------------------------------

TOP, BOOT, GRUB = (_entry(name, EntryType.DIRECTORY) for name in (".", "boot", "boot/grub"))


@pytest.mark.parametrize("entries", [
    [_entry("vmlinuz")],
    [BOOT, _entry("boot/vmlinuz-6.1.0-1-amd64")],
    [BOOT, _entry("boot/vmlinuz-6.1"), _entry("vmlinuz", EntryType.SYMLINK, link="boot/vmlinuz-6.1")],
    [BOOT, _entry("boot/kernel"), _entry("vmlinuz", EntryType.SYMLINK, link="/boot/../boot/./kernel")],
    [_entry("usr", EntryType.DIRECTORY), _entry("usr/k"), _entry("b", EntryType.SYMLINK, link="usr"),
     _entry("vmlinuz", EntryType.SYMLINK, link="b/k")],
    [BOOT, GRUB, _entry("boot/grub/grub.cfg")],
])
def test_a_release_that_starts(entries: list[Entry]) -> None:
    require_startable([TOP, *entries], "debian/13/amd64")


def test_a_root_on_a_volume_wants_a_release_with_lvm() -> None:
    entries = [TOP, _entry("vmlinuz"), _entry("sbin", EntryType.SYMLINK, link="usr/sbin"),
               *(_entry(name, EntryType.DIRECTORY) for name in ("usr", "usr/sbin"))]
    with pytest.raises(RefusedError, match=r"has no lvm.*put the package lvm2 into the release"):
        require_startable(entries, "debian/13/amd64", volumes=True)
    require_startable([*entries, _entry("usr/sbin/lvm")], "debian/13/amd64", volumes=True)


@pytest.mark.parametrize("entries", [
    [],
    [BOOT],
    [BOOT, _entry("boot/vmlinuz-6.1-rescue")],
    [BOOT, _entry("boot/vmlinuz-6.1 $x")],
    [BOOT, _entry("boot/vmlinuz-6.1", EntryType.DIRECTORY)],
    [_entry("vmlinuz", EntryType.SYMLINK, link="boot/vmlinuz-6.1")],
    [_entry("vmlinuz", EntryType.SYMLINK, link="vmlinuz")],
    [_entry("vmlinuz", EntryType.SYMLINK, link="../..")],
    [BOOT, _entry("boot/old", EntryType.DIRECTORY), _entry("boot/old/vmlinuz-6.1")],
])
def test_a_release_that_nothing_starts(entries: list[Entry]) -> None:
    with pytest.raises(RefusedError, match="debian/13/amd64 has no kernel"):
        require_startable([TOP, *entries], "debian/13/amd64")


def test_links_lead_nowhere_outside_the_tree() -> None:
    tree = {entry.path: entry for entry in (TOP, _entry("a"), _entry("l", EntryType.SYMLINK, link="../../../a"))}
    assert is_file(tree, b"l")
    assert not is_file(tree, b"a/..")


# -- fstab ---------------------------------------------------------------------------------------------------

OLD = """# the host's own
UUID=1111 / ext4 noatime 0 1
\tUUID=2222   /local/  ext4 defaults 0 2
LABEL=ESP /efi vfat umask=0077 0 1
tmpfs /tmp tmpfs size=1G 0 0
UUID=3333 none swap sw 0 0"""


def test_lines_of_new_partitions_take_the_place_of_the_old_and_others_stay() -> None:
    mounts = [fstab.Mount("PARTUUID=R", ("/",), "ext4", "errors=remount-ro", 1),
              fstab.Mount("PARTUUID=L", ("/local",), "ext4", "defaults", 2),
              fstab.Mount("PARTUUID=E", ("/boot/efi", "/efi"), "vfat", "umask=0077", 2)]
    fresh = fstab.rewritten(OLD, mounts)
    assert fresh.splitlines() == [
        "# the host's own", "PARTUUID=R / ext4 errors=remount-ro 0 1", "PARTUUID=L /local ext4 defaults 0 2",
        "PARTUUID=E /efi vfat umask=0077 0 2", "tmpfs /tmp tmpfs size=1G 0 0", "UUID=3333 none swap sw 0 0"]
    assert fstab.rewritten(fresh, mounts) == fresh
    assert fstab.rewritten("# nothing\n", mounts).splitlines()[-1] == "PARTUUID=E /boot/efi vfat umask=0077 0 2"
    twice = fstab.rewritten("a / ext4 x 0 1\nb / ext4 x 0 1\n", mounts[:1])
    assert twice == "PARTUUID=R / ext4 errors=remount-ro 0 1\n"
    assert fstab.points(OLD) == {"/", "/local", "/efi", "/tmp", "none"}
