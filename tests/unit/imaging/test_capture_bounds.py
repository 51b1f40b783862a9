"""How large a tree may be: memory, files beyond 2 and 4 GiB, names and links beyond tar's old limits."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import zstandard
from trees import noise

from imaging.capture import capture
from imaging.fetch import FrameFetcher
from imaging.index import Index
from imaging.release import Release
from imaging.restore import restore
from imaging.scan import scan
from imaging.sources import FileSource
from imaging.store import Store
from plumbing.run import run

TOP = Path(__file__).parents[3]
MIB = 1 << 20


def built(tree: Path, store: Store) -> tuple[Release, Path, Index]:
    release = Release.parse(capture(tree, store, name="p", version="1", arch="amd64", excludes=()))
    layer = store.blob_path(release.layer_digest)
    with layer.open("rb") as stream:
        stream.seek(release.index_offset)
        return release, layer, release.read_index(stream.read(release.index_length))


def highest_memory(code: str, *arguments: object) -> int:
    """Run Python code in a process of its own and return the most memory it had resident, in bytes."""
    ending = "\nfrom pathlib import Path\nprint(Path('/proc/self/status').read_text())"
    done = run([sys.executable, "-c", code + ending, *map(str, arguments)], cwd=TOP, timeout_s=None)
    (found,) = re.findall(r"VmHWM:\s+(\d+) kB", done.text)  # getrusage's would begin with our own
    return int(found) * 1024


BUILD = """
import sys
from contextlib import nullcontext
from pathlib import Path
from imaging.capture import capture
from imaging.frames import compression
from imaging.reuse import newest_base, opened_base
from imaging.store import Store
store = Store(Path(sys.argv[2]))
known = newest_base(store, 'p', 'amd64', compression(3)) if store.path.exists() else None
with opened_base(store, known) if known else nullcontext() as base:
    reused = []
    capture(Path(sys.argv[1]), store, name='p', version=sys.argv[3], arch='amd64', base=base,
            progress=lambda what, done, total: None, on_reuse=lambda count, _: reused.append(count))
    assert (reused[0] > 0) is (known is not None)
"""


def test_fifty_thousand_files_and_a_gibibyte_fit_256_mib(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in range(50_000):
        if number % 500 == 0:
            folder = tree / f"folder{number:05}"
            folder.mkdir(parents=True)
            handle = os.open(folder, os.O_RDONLY)
        file = os.open(f"a name of the usual length {number:05}", os.O_WRONLY | os.O_CREAT, dir_fd=handle)
        os.write(file, b"%d" % number * 20)
        os.close(file)
        if number % 500 == 499:
            os.close(handle)
    assert highest_memory(BUILD, tree, tmp_path / "store", "1") < 256 * MIB
    with (tree / "large").open("wb") as stream:
        stream.write(noise(1, 40 * MIB))
        stream.truncate(1 << 30)
    assert highest_memory(BUILD, tree, tmp_path / "store", "2") < 256 * MIB
    run(["rm", "-rf", tree])  # or later sessions of pytest do it, more slowly


def test_level_19_fits_too(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/large").write_bytes(noise(1, 3 * MIB) + bytes(range(256)) * (53 * 4096))
    code = ("import sys\nfrom pathlib import Path\nfrom imaging.capture import capture\n"
            "from imaging.store import Store\nfrom imaging.frames import workers_for\n"
            "capture(Path(sys.argv[1]), Store(Path(sys.argv[2])), name='p', version='1', arch='amd64', level=19,\n"
            "        workers=workers_for(19, 64))\n")
    assert highest_memory(code, tmp_path / "tree", tmp_path / "store") < 256 * MIB


@pytest.mark.parametrize("size", [(1 << 31) + 11, pytest.param((1 << 32) + 11, marks=pytest.mark.nightly)])
def test_sparse_files_beyond_2_and_4_gib(tmp_path: Path, size: int) -> None:
    tree, store = tmp_path / "tree", Store(tmp_path / "store")
    tree.mkdir()
    found = dict.fromkeys((0, (1 << 31) - 2, size - 5), b"")
    with (tree / "file").open("wb") as stream:
        for place in found:
            stream.seek(place)
            stream.write(b"marks")
    release, layer, index = built(tree, store)
    assert release.raw_bytes > size and release.layer_size < 4 * MIB
    entry = index.entries[1]
    assert (entry.size, sum(extent.length for extent in entry.extents)) == (size, size)
    assert sum(hole.length for hole in entry.holes) >= size - 64 * 1024
    at = 0
    for extent in entry.extents:
        for place in found:
            start, end = max(place, at), min(place + 5, at + extent.length)
            if start < end:
                frame = index.frames[extent.frame]
                with layer.open("rb") as packed:
                    packed.seek(frame.offset)
                    raw = zstandard.ZstdDecompressor().decompress(packed.read(frame.length))
                found[place] += raw[extent.offset + start - at:extent.offset + end - at]
        at += extent.length
    assert set(found.values()) == {b"marks"}
    with subprocess.Popen(["zstd", "-dc", layer], stdout=subprocess.PIPE) as unpacker:
        listing = subprocess.run(["tar", "-tvf", "-"], stdin=unpacker.stdout, capture_output=True, check=True).stdout
    assert [int(line.split()[2]) for line in listing.decode().splitlines()] == [size, 0]


def test_names_and_links_beyond_what_tar_was_made_for(tmp_path: Path) -> None:
    tree, store = tmp_path / "tree", Store(tmp_path / "store")
    tree.mkdir()
    handle, above = os.open(tree, os.O_RDONLY), b""
    for number in range(15):  # 15 × 256 bytes, near the 4095 that a path may have
        name = b"%02d" % number + b"\xc3\xa9" * 126 + b"\xff"
        os.mkdir(name, dir_fd=handle)
        below = os.open(name, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle, above = below, above + name + b"/"
    file = os.open(b"f" * 200, os.O_WRONLY | os.O_CREAT, dir_fd=handle)
    os.write(file, b"deep")
    os.close(file)
    os.link(b"f" * 200, tree / "zz hard link", src_dir_fd=handle)
    os.symlink(b"t" * 4095, b"symlink", dir_fd=handle)
    os.close(handle)
    _, layer, index = built(tree, store)
    assert max(len(entry.path) for entry in index.entries) == len(above) + 200 > 4000
    raw = tmp_path / "raw.tar"
    raw.write_bytes(run(["zstd", "-dc", layer]).stdout)
    with tarfile.open(raw, errors="surrogateescape") as tar:
        members = {os.fsencode(member.name): member for member in tar}
    assert os.fsencode(members[b"./zz hard link"].linkname) == b"./" + above + b"f" * 200
    assert members[b"./" + above + b"symlink"].linkname == "t" * 4095
    gnu = tmp_path / "gnu"
    gnu.mkdir()
    assert run(["tar", "-C", gnu, "-xpf", raw]).stderr == b""
    ours = tmp_path / "ours"
    ours.mkdir()
    source = FileSource(layer)
    restore(index, FrameFetcher([source]), ours)
    source.close()
    assert list(scan(gnu)) == list(scan(ours)) == list(scan(tree))
    run(["rm", "-rf", tree, gnu, ours])
