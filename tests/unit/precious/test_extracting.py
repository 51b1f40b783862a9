"""Single files out of an archive, also one that somebody made to do harm."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from blake3 import blake3
from old_and_new import write

from imaging.entry import ROOT
from plumbing.errors import CorruptError, NotFoundError, RefusedError, UsageError
from precious import keep, sealing, sealkeys
from precious.extracting import chosen, extract, path_of
from precious.keep import ARCHIVE, SUMMARY
from precious.policy import load

pytestmark = pytest.mark.root

POLICY = load([("test", '[[rule]]\nkeep = ["/etc/**", "/srv/**"]')])


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The archive of a tree with everything that is awkward."""
    root = tmp_path / "old"
    write(root, "etc/hostname", b"alpha\n")
    write(root, "etc/ssh/key", os.urandom(400))
    write(root, "srv/first", b"joined")
    write(root, "srv/deep/down/file", b"x" * 300_000)
    os.link(root / "srv/first", root / "srv/second")
    (root / "srv/away").symlink_to("/etc/shadow")
    (root / "srv/up").symlink_to("../../../../../..")
    write(root, os.fsdecode(b"srv/na\xffme"), b"bytes")
    os.mkfifo(root / "srv/fifo")
    os.mknod(root / "srv/device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.chown(root / "etc/ssh/key", 7, 8)
    (root / "etc/ssh/key").chmod(0o4755)
    os.setxattr(root / "etc/ssh/key", "trusted.note", b"attribute")
    keep.collect(root, POLICY, tmp_path / "kept")
    return tmp_path / "kept"


def names(folder: Path) -> set[bytes]:
    return {os.fsencode(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_file_comes_back_with_its_folders_and_nothing_else(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = extract(archive, [path_of("/etc/ssh/key"), path_of("srv/deep")], out)
    assert names(out) == {b"etc", b"etc/ssh", b"etc/ssh/key", b"srv", b"srv/deep", b"srv/deep/down",
                          b"srv/deep/down/file"}
    assert (out / "etc/ssh/key").read_bytes() == (tmp_path / "old/etc/ssh/key").read_bytes()
    status = (out / "etc/ssh/key").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (7, 8, 0o4755)
    assert os.getxattr(out / "etc/ssh/key", "trusted.note") == b"attribute"
    assert stat.S_IMODE(out.stat().st_mode) == 0o700, "a setuid file of somebody's is out of everybody's reach"
    assert done.notes == ()


def test_everything_comes_back_and_links_lead_nowhere(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract(archive, [], out)
    assert names(out) == names(tmp_path / "old")
    assert (out / "srv/first").stat().st_ino == (out / "srv/second").stat().st_ino
    assert str((out / "srv/away").readlink()) == "/etc/shadow"
    second = tmp_path / "second"
    extract(archive, [b"srv/second"], second)
    assert (second / "srv/second").read_bytes() == b"joined", "its first name was not asked for"


def test_what_a_person_types(archive: Path, tmp_path: Path) -> None:
    assert [path_of(text) for text in ("/etc//hostname/", "./etc/hostname", "/", "srv/na\udcffme")] == [
        b"etc/hostname", b"etc/hostname", ROOT, b"srv/na\xffme"]
    with pytest.raises(UsageError, match=r"\.\."):
        path_of("/etc/../root")
    with pytest.raises(NotFoundError, match="/etc/nothing, /x"):
        chosen(keep.load(archive).index.entries, [b"etc/nothing", b"etc/hostname", b"x"])
    (tmp_path / "full/file").parent.mkdir()
    (tmp_path / "full/file").write_text("mine")
    with pytest.raises(RefusedError, match="not an empty directory"):
        extract(archive, [], tmp_path / "full")
    assert names(tmp_path / "full") == {b"file"}


def test_somebody_else_than_root_gets_contents_and_no_privileges(archive: Path, tmp_path: Path) -> None:
    extract(archive, [b"etc"], tmp_path / "first")
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        place = Path(name)
        shutil.copytree(archive, place / "kept")
        for path in (place, *place.rglob("*")):
            os.chown(path, 65534, 65534)
        told = as_nobody(lambda: "\n".join(extract(place / "kept", [], place / "out").notes), place / "told")
        assert "1 devices were left out" in told and "another owner" in told
        status = (place / "out/etc/ssh/key").stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (65534, 0o755)
        assert (place / "out/etc/ssh/key").read_bytes() == (tmp_path / "old/etc/ssh/key").read_bytes()
        assert not (place / "out/srv/device").exists()


def as_nobody(work: Callable[[], str], said: Path) -> str:
    """Return what `work` returns in a process of nobody's, who may not reach what is imported late."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            said.write_text(work())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return said.read_text()


# -- archives that a hostile host sealed: authentic, and made to do harm ------------------------------------------


def remade(archive: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the index of an archive as its maker could, every digest made right again."""
    summary = json.loads((archive / SUMMARY).read_bytes())
    offset, length, _ = summary["index"]
    data = (archive / ARCHIVE).read_bytes()
    index = json.loads(zstandard.ZstdDecompressor().decompress(data[offset:offset + length]))
    change(index)
    payload = zstandard.ZstdCompressor().compress(json.dumps(index).encode())
    (archive / ARCHIVE).write_bytes(data[:offset] + payload)
    summary["index"] = [offset, len(payload), blake3(payload).hexdigest()]
    (archive / SUMMARY).write_text(json.dumps(summary))


def renamed(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(index: dict[str, Any]) -> None:
        index["path"] = [new if path == old else path for path in index["path"]]
    return change


def through_a_link(index: dict[str, Any]) -> None:
    index["path"] = ["srv/up/file" if path == "srv/second" else path for path in index["path"]]


def bomb(index: dict[str, Any]) -> None:
    index["frames"]["raw_length"][0] += 1


@pytest.mark.parametrize("change", [
    renamed("etc/hostname", "../hostname"), renamed("etc/hostname", "/hostname"), renamed("etc/hostname", "etc/../x"),
    renamed("etc/hostname", "etc/ssh"), through_a_link, bomb,
], ids=["up", "absolute", "up inside", "twice", "through a link", "frame of another length"])
def test_a_hostile_index_is_refused_and_nothing_is_written(
        archive: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    remade(archive, change)
    with pytest.raises(CorruptError):
        extract(archive, [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("summary", [
    b"", b"[]", b"[" * 100_000, b'{"index": [0, 1e300, "x"]}', b'{"index": [0, 99999999999999, "x"], "notes": [], '
    b'"unlisted": []}', b'{"index": [-5, 3, "x"], "notes": [], "unlisted": []}'])
def test_a_hostile_summary_is_refused(archive: Path, tmp_path: Path, summary: bytes) -> None:
    (archive / SUMMARY).write_bytes(summary)
    with pytest.raises(CorruptError):
        extract(archive, [], tmp_path / "out")


def test_a_frame_that_says_it_is_endless_takes_no_memory(archive: Path, tmp_path: Path) -> None:
    """The frame's own header announces 1 TB; its digest in the index is right."""
    frame = keep.load(archive).index.frames[0]
    bomb_bytes = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little")
    bomb_bytes += bytes(frame.length - len(bomb_bytes))
    data = bytearray((archive / ARCHIVE).read_bytes())
    data[frame.offset:frame.offset + frame.length] = bomb_bytes
    (archive / ARCHIVE).write_bytes(data)

    def change(index: dict[str, Any]) -> None:
        import base64

        digests = base64.b64decode(index["frames"]["blake3"])
        index["frames"]["blake3"] = base64.b64encode(blake3(bomb_bytes).digest() + digests[32:]).decode()

    remade(archive, change)
    with pytest.raises(CorruptError, match="length"):
        extract(archive, [], tmp_path / "out")


def test_from_the_copy_to_the_file(archive: Path, tmp_path: Path) -> None:
    key = sealkeys.make(tmp_path / "recovery.pem")
    made = sealing.Sealed(archive, "6ba7b810-9dad-41d1-80b4-00c04fd430c8", "alpha",
                          [key.public_key().public_bytes_raw()])
    sealing.unseal(io.BytesIO(made.read(0, made.size)), key, tmp_path / "back")
    made.close()
    extract(tmp_path / "back", [b"etc/hostname"], tmp_path / "out")
    assert (tmp_path / "out/etc/hostname").read_bytes() == b"alpha\n"
