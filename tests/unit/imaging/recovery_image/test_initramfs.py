from __future__ import annotations

import lzma
import random
import stat
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from imaging.recovery_image import initramfs
from imaging.recovery_image.contents import Item, as_tar, device, file, folder, in_order, link, write_folder
from imaging.recovery_image.initramfs import Compression, archive, compress
from plumbing.errors import CorruptError
from plumbing.run import run

NAMES = st.text("abcdefgh.-_é", min_size=1, max_size=12).filter(lambda name: name not in {".", ".."})
FILES = st.dictionaries(NAMES, st.binary(max_size=70), max_size=8)


def some() -> list[Item]:
    return [
        file("init", b"#!/bin/sh\n", part="p", why="w", mode=0o755), folder("dev"), device("dev/console", 5, 1),
        device("dev/null", 1, 3, 0o666), link("bin/sh", "busybox"), file("bin/busybox", b"x" * 5, part="p", why="w"),
    ]


def read(data: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """Read an archive back by the kernel's description of the format."""
    found, at = dict[str, tuple[int, bytes, tuple[int, int]]](), 0
    while True:
        assert data[at:at + 6] == b"070701" and at % 4 == 0
        fields = [int(data[at + 6 + 8 * n:at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, major, minor, length = fields[1], fields[6], fields[9], fields[10], fields[11]
        name = data[at + 110:at + 110 + length - 1].decode()
        body = at + 110 + length + -(110 + length) % 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, data[body:body + size], (major, minor))
        at = body + size + -size % 4


def test_cpio_reads_names_modes_and_devices() -> None:
    listing = run(["busybox", "cpio", "-t", "-v"], stdin=archive(some())).text.splitlines()
    shown = {line.split()[-1] if "->" not in line else line.split()[-3]: line for line in listing}
    assert shown["init"].startswith("-rwxr-xr-x")
    assert shown["bin"].startswith("drwxr-xr-x")
    assert shown["bin/sh"].startswith("lrwxrwxrwx") and shown["bin/sh"].endswith("busybox")
    assert shown["dev/null"].startswith("crw-rw-rw-")


def test_the_same_items_in_any_order_give_the_same_bytes() -> None:
    items = some()
    before = archive(items), as_tar([item for item in items if not stat.S_ISCHR(item.mode)])
    random.Random(1).shuffle(items)
    assert (archive(items), as_tar([item for item in items if not stat.S_ISCHR(item.mode)])) == before


@given(FILES, FILES)
def test_every_file_comes_back(top: dict[str, bytes], below: dict[str, bytes]) -> None:
    items = [file(f"t{name}", data, part="p", why="w") for name, data in top.items()]
    items += [file(f"d/{name}", data, part="p", why="w") for name, data in below.items()]
    found = read(archive(items))
    assert {path: body for path, (mode, body, _) in found.items() if stat.S_ISREG(mode)} \
        == {item.path: item.data for item in items}
    order = list(found)
    assert all("/" not in path or order.index(path.rpartition("/")[0]) < order.index(path) for path in order)


def test_devices_keep_their_numbers() -> None:
    mode, _, numbers = read(archive(some()))["dev/console"]
    assert stat.S_ISCHR(mode) and numbers == (5, 1)


@pytest.mark.parametrize("how", [Compression.ZSTD, Compression.XZ, Compression.NONE])
def test_compression_is_undone(how: Compression) -> None:
    data = archive(some()) * 50
    packed = compress(data, how, 3)
    match how:
        case Compression.ZSTD:
            assert zstandard.ZstdDecompressor().decompress(packed) == data
            assert zstandard.get_frame_parameters(packed).window_size <= 128 << 20  # what the kernel takes
        case Compression.XZ:
            assert lzma.decompress(packed) == data
            assert packed[7] == lzma.CHECK_CRC32  # the kernel knows no other
        case Compression.NONE:
            assert packed == data


def test_two_different_things_under_one_path_are_refused() -> None:
    one = file("a", b"1", part="p", why="the first")
    with pytest.raises(CorruptError, match=r"two different things want to be /a .*: the first, and the second"):
        in_order([one, file("a", b"2", part="p", why="the second")])
    assert len(in_order([one, one])) == 1


@pytest.mark.parametrize("path", ["", "/etc", "a/../b", "a//b", "a/."])
def test_paths_that_leave_the_image_are_refused(path: str) -> None:
    with pytest.raises(CorruptError, match="not a path inside an image"):
        in_order([file(path, b"", part="p", why="w")])


def test_a_folder_on_disk_has_the_same_tree(tmp_path: Path) -> None:
    write_folder([item for item in some() if not stat.S_ISCHR(item.mode)], tmp_path)
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "bin/sh").resolve().read_bytes() == b"xxxxx"


def test_an_archive_ends_on_a_block() -> None:
    assert len(initramfs.archive([])) % 512 == 0
