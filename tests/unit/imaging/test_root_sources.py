"""Directories, tars and disk images as sources: real tables, real filesystems, real mounts."""

import io
import os
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopdevice import attached, taking
from trees import describe, rich_tree

from imaging.capture import capture
from imaging.excludes import Exclude
from imaging.root_sources.architecture import architecture
from imaging.root_sources.choose import HEAD_BYTES, choose, kind_of
from imaging.root_sources.directory import DirectorySource
from imaging.root_sources.disk import DiskSource, check_qcow2
from imaging.root_sources.partitions import MOUNT_OPTIONS, ROOT_TYPES, Area, choose_area, parse_table
from imaging.root_sources.source import RootTree
from imaging.root_sources.tarball import TarSource
from imaging.store import Store
from plumbing.errors import CommandError, CorruptError, UsageError
from plumbing.run import run

LINUX, ESP, ROOT = ("0fc63daf-8483-4772-8e79-3d69d8477de4", "c12a7328-f81f-11d2-ba4b-00a0c93ec93b",
                    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
MIB = 1 << 20


def filesystem(image: Path, tree: Path, offset: int = 0, features: str = "extent") -> None:
    """Put a filesystem with the content of `tree` into the image file."""
    part = image.with_suffix(".part")
    with part.open("wb") as stream:
        stream.truncate(48 * MIB)
    with attached(part) as device:
        run(["mkfs.ext4", "-q", "-O", features, device])
        point = image.with_suffix(".mnt")
        point.mkdir()
        run(["mount", "-t", "ext4", device, point])
        try:
            run(["cp", "-a", f"{tree}/.", point])
        finally:
            run(["umount", point])
        point.rmdir()
    run(["dd", f"if={part}", f"of={image}", "bs=1M", f"seek={offset // MIB}", "conv=notrunc,sparse", "status=none"])
    part.unlink()


def disk(image: Path, tree: Path, table: str) -> Path:
    """Make an image of 64 MiB with a partition table in sfdisk's words, and the tree in the partition at 8 MiB."""
    with image.open("wb") as stream:
        stream.truncate(64 * MIB)
    run(["sfdisk", "-q", image], stdin=table.encode())
    filesystem(image, tree, offset=8 * MIB)
    return image


def gpt(kind: str = LINUX) -> str:
    return f"label: gpt\nstart=1MiB, size=4MiB, type={ESP}\nstart=8MiB, size=48MiB, type={kind}\n"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rich_tree(tmp_path_factory.mktemp("rich") / "tree")


@contextmanager
def opened(source: str, **options: object) -> Iterator[RootTree]:
    """Open what `source` names; a disk image takes a loop device."""
    with ExitStack() as stack:
        with taking():
            root = stack.enter_context(choose(source, arch="amd64", **options).opened())  # type: ignore[arg-type]
        yield root


def manifest_of(source: str, store: Path, **options: object) -> bytes:
    with opened(source, **options) as root:
        return capture(root.path, Store(store), name="d", version="1", arch=root.arch, excludes=())


def described(source: str, **options: object) -> dict[str, tuple[object, ...]]:
    with opened(source, **options) as root:
        return described_tree(root.path)


def described_tree(path: Path) -> dict[str, tuple[object, ...]]:
    """What lies in a tree; its top is compared by test_directory_image_and_tar…, as mkfs makes it another size."""
    return describe(path, skip=frozenset({"lost+found", "."}))


def mounts_and_loops() -> tuple[list[str], str]:
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "reroot-capture" in line]
    return mounts, run(["losetup", "-n", "-O", "BACK-FILE"]).text


@pytest.mark.root
@pytest.mark.parametrize("table", [gpt(), gpt(ROOT), "label: dos\nstart=1MiB, size=4MiB, type=ef\n"
                                   "start=8MiB, size=48MiB, type=83\n"], ids=["gpt-linux", "gpt-root", "mbr"])
def test_a_disk_image_s_partition_is_its_tree(tmp_path: Path, tree: Path, table: str) -> None:
    image = disk(tmp_path / "disk.img", tree, table)
    before = run(["sha256sum", image]).text
    assert described(str(image)) == described_tree(tree)
    assert described(str(image), partition=2) == described_tree(tree)
    assert run(["sha256sum", image]).text == before
    with pytest.raises(UsageError, match=r"has no partition 3; there is 1 \(nothing known, 4 MB\), 2 \(ext4"):
        described(str(image), partition=3)
    with pytest.raises(UsageError, match=r"partition 1 .* holds no filesystem"):
        described(str(image), partition=1)
    mounts, loops = mounts_and_loops()
    assert mounts == [] and str(image) not in loops


@pytest.mark.root
def test_qcow2_is_its_raw_image_and_leaves_nothing(tmp_path: Path, tree: Path) -> None:
    image, scratch = disk(tmp_path / "disk.img", tree, gpt()), tmp_path / "scratch"
    scratch.mkdir()
    run(["qemu-img", "convert", "-O", "qcow2", image, tmp_path / "disk.qcow2"])
    with opened(str(tmp_path / "disk.qcow2"), scratch=scratch) as root:
        assert described_tree(root.path) == described_tree(tree)
        (folder,) = scratch.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "disk.raw").stat().st_blocks * 512 < 48 * MIB
    assert list(scratch.iterdir()) == []


@pytest.mark.root
def test_an_image_without_a_table_is_one_filesystem(tmp_path: Path, tree: Path) -> None:
    image = tmp_path / "root.ext4"
    filesystem(image, tree)
    assert described(str(image)) == described_tree(tree)
    with pytest.raises(UsageError, match="has no partition 1"):
        described(str(image), partition=1)


@pytest.mark.root
def test_a_block_device_is_a_disk(tmp_path: Path, tree: Path) -> None:
    with attached(disk(tmp_path / "disk.img", tree, gpt())) as device:
        assert described(str(device)) == described_tree(tree)


@pytest.mark.root
def test_directory_image_and_tar_make_the_same_release(tmp_path: Path) -> None:
    tree, image, tar = rich_tree(tmp_path / "tree"), tmp_path / "root.img", tmp_path / "root.tar.zst"
    (tree / "sparse").unlink()  # each filesystem and copier finds other holes
    os.utime(tree, ns=(0, 1))
    filesystem(image, tree, features="^has_journal")
    run(["tar", "-C", tree, "-cpf", tar, "-Izstd", "--format=pax", "--xattrs", "--acls", "--exclude=./socket", "."])
    of_tree, of_tar = (manifest_of(str(source), tmp_path / f"store-{number}") for number, source in
                       enumerate((tree, tar)))
    assert of_tree == of_tar
    with opened(str(image)) as root:
        of_image = capture(root.path, Store(tmp_path / "store-i"), name="d", version="1", arch="amd64",
                           excludes=(Exclude("lost+found"),))
    assert of_image == of_tree


@pytest.mark.root
def test_a_filesystem_that_was_not_unmounted_is_noted_and_not_replayed(tmp_path: Path, tree: Path) -> None:
    image = tmp_path / "root.ext4"
    filesystem(image, tree, features="^metadata_csum")
    with image.open("r+b") as stream:  # as a power cut leaves it: the journal is to be replayed
        stream.seek(1024 + 0x60)
        flags = int.from_bytes(stream.read(4), "little")
        stream.seek(1024 + 0x60)
        stream.write((flags | 4).to_bytes(4, "little"))
    before, notes = run(["sha256sum", image]).text, list[str]()
    with opened(str(image), note=notes.append) as root:
        assert (root.path / "etc/passwd").read_text().startswith("root:")
    assert len(notes) == 1 and "not unmounted cleanly" in notes[0]
    assert run(["sha256sum", image]).text == before


@pytest.mark.root
def test_a_killed_reader_leaves_no_mount_and_no_loop_device(tmp_path: Path, tree: Path) -> None:
    image = disk(tmp_path / "disk.img", tree, gpt())
    code = ("import os, sys\nfrom pathlib import Path\nfrom imaging.root_sources.disk import DiskSource\n"
            "with DiskSource(Path(sys.argv[1]), arch='amd64', scratch=Path(sys.argv[2])).opened() as root:\n"
            "    assert (root.path / 'etc/passwd').exists()\n    os.kill(os.getpid(), 9)\n")
    with taking():
        done = subprocess.run([sys.executable, "-c", code, image, tmp_path], check=False, cwd=Path(__file__).parents[3])
    assert done.returncode == -9
    mounts, loops = mounts_and_loops()
    assert mounts == [] and str(image) not in loops


def test_what_a_path_is(tmp_path: Path) -> None:
    assert isinstance(choose(str(tmp_path)), DirectorySource)
    (tmp_path / "t").write_bytes(b"\x1f\x8b" + bytes(508) + b"\x55\xaa")
    assert isinstance(choose(str(tmp_path / "t")), TarSource)
    (tmp_path / "d").write_bytes(bytes(510) + b"\x55\xaa")
    assert isinstance(choose(str(tmp_path / "d"), partition=1), DiskSource)
    for name in ("", "t"):
        with pytest.raises(UsageError, match="leave --partition out"):
            choose(str(tmp_path / name), partition=1)
    with pytest.raises(UsageError, match="is not there"):
        choose(str(tmp_path / "gone"))


@given(st.binary(max_size=2000))
def test_any_bytes_are_something(head: bytes) -> None:
    try:
        assert kind_of(head, "x") in {"tar", "raw", "qcow2"}
    except UsageError as error:
        assert "qemu-img convert" in error.sentence
    assert kind_of((b"." + head + bytes(600))[:257] + b"ustar\0" + bytes(HEAD_BYTES), "x") == "tar"


@pytest.mark.parametrize(("head", "words"), [(b"KDMV", "VMDK"), (b"vhdxfile", "VHDX"), (b"<<< Oracle VM", "VDI")])
def test_images_of_other_formats_say_how(head: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=f"{words}.*qemu-img convert"):
        kind_of(head, "x")


def qcow2(version: int = 3, backing: int = 0, encrypted: int = 0, features: int = 0) -> bytes:
    return struct.pack(">4sIQIIQI", b"QFI\xfb", version, backing, 0, 16, 1 << 20, encrypted).ljust(72, b"\0") + (
        struct.pack(">Q", features).ljust(40, b"\0"))


@pytest.mark.parametrize(("head", "words"), [
    (qcow2(backing=512), "names another file"), (qcow2(features=4), "names another file"),
    (qcow2(version=2, backing=512), "names another file"), (qcow2(encrypted=1), "encrypted"),
    (b"QFI\xfb", "cut short")])
def test_a_qcow2_that_would_read_other_files_is_refused(head: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_qcow2(head, "x")
    check_qcow2(qcow2(), "x")


@pytest.mark.root
def test_a_backing_file_is_never_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(4 * MIB))
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", tmp_path / "secret", "-F", "raw", tmp_path / "x.qcow2"])
    with pytest.raises(UsageError, match="names another file"):
        described(str(tmp_path / "x.qcow2"))


# -- which partition (pure) --------------------------------------------------------------------------------------

areas = st.lists(st.builds(
    Area, st.just(0), st.sampled_from([LINUX, ESP, ROOT, "83", "ef"]), st.just(0), st.just(1),
    st.sampled_from(["ext4", "xfs", "vfat", "swap", "LVM2_member", ""])), max_size=6).map(
    lambda found: [Area(number, a.kind, a.offset, a.size, a.filesystem) for number, a in enumerate(found, 1)])


@given(areas, st.none() | st.integers(1, 7))
def test_the_chosen_partition_is_the_only_one_that_could_be_meant(found: list[Area], wanted: int | None) -> None:
    try:
        chosen = choose_area(found, wanted, "x.img")
    except UsageError as error:
        assert all(f"{area.number} (" in error.sentence for area in found)
        if wanted is None:
            usable = [area for area in found if area.filesystem in MOUNT_OPTIONS]
            roots = [area for area in usable if area.kind in ROOT_TYPES]
            assert len(roots) > 1 or (not roots and len(usable) != 1)
        return
    assert chosen in found and chosen.filesystem in MOUNT_OPTIONS
    if wanted is not None:
        assert chosen.number == wanted
    else:
        same = [area for area in found if area.filesystem in MOUNT_OPTIONS and area.kind == chosen.kind]
        assert same == [chosen] or chosen.kind in {LINUX, "83"}


def test_a_root_type_wins_over_other_linux_partitions() -> None:
    found = [Area(1, LINUX, 0, 1, "ext4"), Area(2, ROOT, 1, 1, "ext4"), Area(3, LINUX, 2, 1, "xfs")]
    assert choose_area(found, None, "x").number == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"partitiontable": 3}', '{"partitiontable": {"partitions": [{}]}}',
                                  '{"partitiontable": {"partitions": [{"node": "a", "type": "83", "start": 1}]}}'])
def test_a_table_that_is_none(text: str) -> None:
    with pytest.raises(CorruptError, match="sfdisk -d"):
        parse_table(text)


# -- architecture, tars ------------------------------------------------------------------------------------------


def test_architecture_is_read_from_the_trees_own_programs(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    with pytest.raises(UsageError, match="--arch"):
        architecture(tmp_path)
    (tmp_path / "usr/bin/env").write_bytes(b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HH", 3, 0xB7))
    assert architecture(tmp_path) == "arm64"
    (tmp_path / "bin").symlink_to("/bin")  # this machine's programs are not the tree's
    (tmp_path / "usr/bin/env").unlink()
    with pytest.raises(UsageError, match="--arch"):
        architecture(tmp_path)


@pytest.mark.root
def test_a_hostile_tar_writes_nothing_outside(tmp_path: Path) -> None:
    scratch = tmp_path / "a/b/scratch"
    scratch.mkdir(parents=True)
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        for name in ("../../../up", str(tmp_path / "absolute")):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("link/through"), io.BytesIO())
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(CommandError), TarSource(tmp_path / "bad.tar", "amd64", scratch).opened():
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert list(scratch.iterdir()) == []
