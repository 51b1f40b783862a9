"""A whole release, against the tools a person has on a rescue disk."""

import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3
from trees import describe, noise, rich_tree

from imaging.audit import audit
from imaging.capture import capture, write_layer
from imaging.entry import Entry, EntryType, Hole
from imaging.excludes import Exclude
from imaging.frames import TABLE_END
from imaging.index import Index
from imaging.release import Release
from imaging.scan import FileChangedError, TreeReader, scan
from imaging.store import Store
from plumbing.errors import DiskError, RefusedError, UsageError
from plumbing.run import run


def built(store: Store, manifest: bytes) -> tuple[Release, Path, Index]:
    release = Release.parse(manifest)
    layer = store.blob_path(release.layer_digest)
    with layer.open("rb") as stream:
        stream.seek(release.index_offset)
        return release, layer, release.read_index(stream.read(release.index_length))


def contents(index: Index, layer: Path) -> dict[bytes, bytes]:
    """Unpack every file by frames and extents alone, without the tar."""
    data = layer.read_bytes()
    raw = []
    for frame in index.frames:
        packed = data[frame.offset:frame.offset + frame.length]
        assert blake3(packed).digest() == frame.digest
        raw.append(zstandard.ZstdDecompressor().decompress(packed, max_output_size=frame.raw_length))
        assert len(raw[-1]) == frame.raw_length
    return {entry.path: b"".join(raw[number][start:start + length] for number, start, length in entry.extents)
            for entry in index.entries if entry.is_file}


@pytest.mark.root
def test_rich_tree_comes_back_through_gnu_tar(tmp_path: Path) -> None:
    tree, store = rich_tree(tmp_path / "tree"), Store(tmp_path / "store")
    notes: list[str] = []
    manifest = capture(tree, store, name="rich", version="1", arch="amd64", excludes=(), note=notes.append)
    _, layer, index = built(store, manifest)
    out = tmp_path / "out"
    out.mkdir()
    done = run(["tar", "-I", "zstd", "-xpf", layer, "--xattrs", "--xattrs-include=*", "--acls",
                "--warning=no-timestamp", "-C", out])
    assert done.stderr == b""
    assert describe(out) == describe(tree)
    assert notes == ["/socket is a socket; it is left out"]
    assert len(index.entries) == len(describe(tree))


@pytest.mark.root
def test_index_alone_holds_what_the_tar_holds(tmp_path: Path) -> None:
    tree, store = rich_tree(tmp_path / "tree"), Store(tmp_path / "store")
    _, layer, index = built(store, capture(tree, store, name="rich", version="1", arch="amd64", excludes=()))
    by_path = {entry.path: entry for entry in index.entries}
    for path, content in contents(index, layer).items():
        assert content == Path(os.fsdecode(os.fsencode(tree) + b"/" + path)).read_bytes()
        assert blake3(content).digest() == by_path[path].digest
    assert by_path[b"sparse"].holes == (Hole(0, 3 << 20), Hole((3 << 20) + 4096, (5 << 20) - 4096))
    assert by_path[b"medium"].type is EntryType.LINK and by_path[b"medium"].link == b"etc/a hard link"
    assert by_path[b"symlink-twice"].type is EntryType.LINK
    assert by_path[b"block"].rdev == os.makedev(259, 70000)
    assert by_path[b"empty"].mtime_ns == -1_500_000_001
    assert len(by_path[b"large"].extents) == 3
    assert len(by_path[b"exact"].extents) == 1


@pytest.mark.root
def test_same_tree_same_bytes_whatever_the_workers_and_the_copy(tmp_path: Path) -> None:
    tree = rich_tree(tmp_path / "tree")
    other = tmp_path / "other"
    run(["cp", "-a", "--sparse=always", tree, other])
    (other / "sparse").unlink()  # cp finds more holes than there were
    (tree / "sparse").unlink()
    for top in (tree, other):
        os.utime(top, ns=(0, 1))
    manifests = {
        capture(top, Store(tmp_path / f"store-{top.name}-{workers}"), name="rich", version="1", arch="amd64",
                excludes=(), workers=workers)
        for top, workers in ((tree, 1), (tree, 2), (tree, 7), (other, 3))
    }
    assert len(manifests) == 1


def plain_tree(top: Path) -> Path:
    top.mkdir()
    for number in range(40):
        (top / f"{number:02}").write_bytes(noise(number, 120_000))
    return top


def test_layer_is_one_tar_zst_with_a_seek_table(tmp_path: Path) -> None:
    tree, store = plain_tree(tmp_path / "tree"), Store(tmp_path / "store")
    release, layer, index = built(store, capture(tree, store, name="p", version="1", arch="amd64"))
    data = layer.read_bytes()
    frames, descriptor, magic = struct.unpack("<IBI", data[-9:])
    assert (descriptor, magic) == (0, TABLE_END)
    table = list(struct.iter_unpack("<II", data[-9 - 8 * frames:-9]))
    assert table == [(f.length, f.raw_length) for f in index.frames] + [(release.index_length + 8, 0)]
    assert sum(length for length, _ in table) + 8 + 8 * frames + 9 == len(data) == release.layer_size
    raw = run(["zstd", "-dc", layer]).stdout
    assert len(raw) == release.raw_bytes
    config = json.loads(store.read_json_blob(release.config_digest))
    assert config["rootfs"]["diff_ids"] == ["sha256:" + run(["sha256sum"], stdin=raw).text.split()[0]]
    unpacked = tmp_path / "root.tar"
    unpacked.write_bytes(raw)
    with tarfile.open(unpacked) as tar:
        assert [member.name for member in tar] == [*(f"./{number:02}" for number in range(40)), "."]


def test_the_tar_is_in_the_order_of_times_and_links_come_after_their_file(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, store = tmp_path / "tree", Store(tmp_path / "store")
    (tree / "d/e").mkdir(parents=True)
    for name, when in (("d/e/late", 9), ("d/early", 1), ("a", 5), ("b", 5), ("moved", 2)):
        (tree / name).write_text(name)
        os.utime(tree / name, (when, when))
    (tree / "z-link").hardlink_to(tree / "moved")
    (tree / "d/up").symlink_to("../a")
    (tree / "d/e/root").symlink_to("/a")
    os.link(tree / "d/up", tree / "z-other", follow_symlinks=False)
    for folder in ("d/e", "d", "."):
        os.utime(tree / folder, (3, 3))
    real, calm = TreeReader.pieces, [False]

    def disturbed(self: TreeReader, entry: Entry, piece_bytes: int = 4 << 20) -> object:
        yield from real(self, entry, piece_bytes)
        if entry.path == b"moved" and not calm[0]:
            calm[0] = True
            os.utime(tree / "moved", (7, 7))
            raise FileChangedError(entry.path)

    monkeypatch.setattr(TreeReader, "pieces", disturbed)
    manifest = capture(tree, store, name="p", version="1", arch="amd64")
    _, layer, index = built(store, manifest)
    names = run(["tar", "-I", "zstd", "-tf", layer]).text.split()
    assert names == ["./d/early", "./a", "./b", "./moved", "./z-link", "./d/e/late", "./", "./d/", "./d/e/",
                     "./d/e/root", "./d/up", "./z-other"]
    assert [entry.mtime_ns for entry in index.entries if entry.path in {b"moved", b"z-link"}] == [7 * 10**9] * 2
    assert audit(store, "p/1/amd64").files == 5
    (tmp_path / "out").mkdir()
    run(["tar", "-I", "zstd", "-xpf", layer, "-C", tmp_path / "out"])
    assert describe(tmp_path / "out") == describe(tree)


def test_a_file_that_vanishes_before_it_is_read_is_left_out_and_told(tmp_path: Path) -> None:
    """The whole tree is scanned first, and a living one loses files meanwhile."""
    tree, told = plain_tree(tmp_path / "tree"), list[str]()
    (tree / "folder").mkdir()
    (tree / "folder/short-lived").write_bytes(b"1")
    entries = list(scan(tree))
    (tree / "07").unlink()
    shutil.rmtree(tree / "folder")
    with (tmp_path / "layer").open("wb") as stream:
        index, _, _ = write_layer(tree, iter(entries), stream, note=told.append)
    lost = {b"07", b"folder/short-lived"}
    assert {entry.path for entry in entries} - {entry.path for entry in index.entries} == lost
    assert {sentence.split()[0] for sentence in told} == {"/07", "/folder/short-lived"}
    with (tmp_path / "kept").open("wb") as stream, pytest.raises(FileChangedError):
        write_layer(tree, iter(entries), stream)


def test_a_file_that_goes_back_in_time_while_it_is_read_is_named(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, store = plain_tree(tmp_path / "tree"), Store(tmp_path / "store")
    real = TreeReader.pieces

    def replaced(self: TreeReader, entry: Entry, piece_bytes: int = 4 << 20) -> object:
        if entry.path == b"07":
            os.utime(tree / "07", (1, 1))
        return real(self, entry, piece_bytes)

    monkeypatch.setattr(TreeReader, "pieces", replaced)
    with pytest.raises(FileChangedError, match="/07 keeps changing"):
        capture(tree, store, name="p", version="1", arch="amd64")


def test_a_changed_file_changes_the_frames_around_it_only(tmp_path: Path) -> None:
    tree, store = tmp_path / "tree", Store(tmp_path / "store")
    tree.mkdir()
    for number in range(300):
        (tree / f"{number:03}").write_bytes(noise(number, 60_000))
    (tree / "150-large").write_bytes(noise(999, 10 << 20))
    _, _, before = built(store, capture(tree, store, name="p", version="1", arch="amd64"))
    (tree / "150-large").write_bytes(noise(998, 11 << 20))
    _, _, after = built(store, capture(tree, store, name="p", version="2", arch="amd64"))
    old, new = {f.digest for f in before.frames}, {f.digest for f in after.frames}
    assert len(new - old) == 4  # its own pieces, and the frame that its header ends
    (tree / "020").write_bytes(noise(997, 61_000))
    _, _, last = built(store, capture(tree, store, name="p", version="3", arch="amd64"))
    assert len({f.digest for f in last.frames} - new) <= 3


def test_excludes_leave_mount_points_and_an_empty_machine_id(tmp_path: Path) -> None:
    tree, store = tmp_path / "tree", Store(tmp_path / "store")
    for folder in ("proc/1", "etc/ssh", "var/log/journal", "local/home", "usr/bin", "usr/lost+found"):
        (tree / folder).mkdir(parents=True)
    for file in ("proc/1/stat", "etc/machine-id", "etc/ssh/ssh_host_rsa_key", "etc/ssh/ssh_config", "var/log/syslog",
                 "var/log/journal/x", "local/home/y", "swapfile", "usr/bin/swapfile"):
        (tree / file).write_text(file)
    _, _, index = built(store, capture(tree, store, name="p", version="1", arch="amd64"))
    sizes = {entry.path.decode(): entry.size for entry in index.entries}
    assert sizes == {".": 0, "etc": 0, "etc/machine-id": 0, "etc/ssh": 0, "etc/ssh/ssh_config": 18, "local": 0,
                     "proc": 0, "usr": 0, "usr/bin": 0, "usr/bin/swapfile": 16, "var": 0, "var/log": 0,
                     "var/log/journal": 0}


def test_a_file_that_changes_is_read_again_then_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = plain_tree(tmp_path / "tree")
    big = tree / "10-big"
    big.write_bytes(noise(1, 9 << 20))
    real, rounds = TreeReader.pieces, [0]

    def disturbed(self: TreeReader, entry: Entry, piece_bytes: int = 4 << 20) -> object:
        for piece in real(self, entry, piece_bytes):
            yield piece
            if entry.path == b"10-big" and rounds[0] > 0:
                rounds[0] -= 1
                big.write_bytes(noise(rounds[0], (9 << 20) + rounds[0]))

    monkeypatch.setattr(TreeReader, "pieces", disturbed)
    rounds[0] = 2
    store = Store(tmp_path / "store")
    _, layer, index = built(store, capture(tree, store, name="p", version="1", arch="amd64", workers=3))
    assert contents(index, layer)[b"10-big"] == big.read_bytes() == noise(0, 9 << 20)
    assert run(["tar", "-I", "zstd", "-tf", layer]).status == 0
    rounds[0] = 1000
    with pytest.raises(FileChangedError, match=r"/10-big keeps changing"):
        capture(tree, store, name="p", version="2", arch="amd64")
    assert list(store.refs()) == ["p/1/amd64"]


def test_a_released_name_is_never_reused_for_other_content(tmp_path: Path) -> None:
    tree, store = plain_tree(tmp_path / "tree"), Store(tmp_path / "store")
    first = capture(tree, store, name="p", version="1", arch="amd64")
    assert capture(tree, store, name="p", version="1", arch="amd64") == first
    (tree / "new").touch()
    with pytest.raises(RefusedError, match="choose a new version"):
        capture(tree, store, name="p", version="1", arch="amd64")
    assert store.manifest("p/1/amd64") == first


def test_full_disk_while_building_publishes_nothing(tmp_path: Path) -> None:
    tree, store = plain_tree(tmp_path / "tree"), Store(tmp_path / "store")
    first = capture(tree, store, name="p", version="1", arch="amd64")
    (tree / "more").write_bytes(noise(5, 9 << 20))
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom imaging.capture import capture\n"
        "from imaging.store import Store\nfrom plumbing.errors import RerootError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))\n"
        "try:\n    capture(Path(sys.argv[1]), Store(Path(sys.argv[2])), name='p', version='2', arch='amd64')\n"
        "except RerootError as error:\n    print(error.sentence)\n    sys.exit(error.exit_code)\n")
    done = run([sys.executable, "-c", code, tree, store.path], check=False, cwd=Path(__file__).parents[3])
    assert done.status == DiskError("").exit_code
    assert "nothing was published" in done.text
    assert store.manifest("p/1/amd64") == first
    assert list(store.refs()) == ["p/1/amd64"]
    assert not list((store.path / ".incoming").iterdir())


def test_a_killed_build_leaves_the_old_store_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    tree, store = plain_tree(tmp_path / "tree"), Store(tmp_path / "store")
    first = capture(tree, store, name="p", version="1", arch="amd64")
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom imaging.capture import capture\n"
        "from imaging.store import Store\n"
        "def die(what, done, total):\n    if done > 2 << 20: os.kill(os.getpid(), signal.SIGKILL)\n"
        "capture(Path(sys.argv[1]), Store(Path(sys.argv[2])), name='p', version='2', arch='amd64', progress=die)\n")
    done = subprocess.run([sys.executable, "-c", code, tree, store.path], cwd=Path(__file__).parents[3], check=False)
    assert done.returncode == -9
    assert len(list((store.path / ".incoming").iterdir())) == 1
    assert store.manifest("p/1/amd64") == first
    capture(tree, store, name="p", version="2", arch="amd64")
    assert not list((store.path / ".incoming").iterdir())
    assert list(store.refs()) == ["p/1/amd64", "p/2/amd64"]


@pytest.mark.parametrize(("field", "value"), [
    ("name", "../up"), ("name", ""), ("version", "1 2"), ("arch", "amd64/x"), ("level", 0), ("level", 23)])
def test_bad_names_are_refused_before_anything_is_made(tmp_path: Path, field: str, value: object) -> None:
    arguments: dict[str, object] = {"name": "p", "version": "1", "arch": "amd64", field: value}
    with pytest.raises(UsageError):
        capture(tmp_path, Store(tmp_path / "store"), **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "store").exists()


def test_a_missing_tree_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="name a directory"):
        capture(tmp_path / "gone", Store(tmp_path / "store"), name="p", version="1", arch="amd64")


def test_extra_excludes_are_the_callers(tmp_path: Path) -> None:
    tree, store = plain_tree(tmp_path / "tree"), Store(tmp_path / "store")
    _, _, index = built(store, capture(tree, store, name="p", version="1", arch="amd64",
                                       excludes=(Exclude("[1-3]?"),)))
    assert [entry.path for entry in index.entries] == [b".", *(b"%02d" % number for number in range(10))]
