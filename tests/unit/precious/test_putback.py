"""Conflicts, power cuts and bad disks while precious files go back."""

from __future__ import annotations

import json
import os
import stat
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from old_and_new import disk, index_of, rules, write

from imaging import inodes, verify
from imaging.entry import Entry, Progress
from plumbing.errors import CorruptError, DiskError
from precious import keep, mergedfiles, place, putback
from precious.place import PutBackReport, free_name
from precious.policy import Policy, load
from precious.putback import put_back

pytestmark = pytest.mark.root

BESIDE = rules('keep = ["/etc/**"]\nwhen = "beside"')
SRV = rules('keep = ["/srv/**"]')


class PowerCutError(BaseException):
    """Not an Exception: nothing may catch it."""


def roots(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("old", "new"):
        (tmp_path / name / "etc").mkdir(parents=True)
    return tmp_path / "old", tmp_path / "new"


def go(tmp_path: Path, policy: Policy) -> PutBackReport:
    """Keep, put back twice: the second time must end and tell the same."""
    new = tmp_path / "new"
    image = index_of(new)
    keep.collect(tmp_path / "old", policy, tmp_path / "kept")
    report = put_back(tmp_path / "kept", new, policy, image)
    once = picture(new)
    assert put_back(tmp_path / "kept", new, policy, image) == report
    assert picture(new) == once
    return report


def picture(root: Path) -> dict[str, tuple[int, int, int, bytes]]:
    found = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
        found[str(path.relative_to(root))] = (info.st_mode, info.st_uid, info.st_gid, content)
    return found


# -- beside ------------------------------------------------------------------------------------------------------


def test_a_name_too_long_for_the_suffix_is_cut(tmp_path: Path) -> None:
    names = ["x" * 250, "x" * 249 + "y", "é" * 127]
    for root in roots(tmp_path):
        for name in names:
            write(root, f"etc/{name}", root.name.encode())
    report = go(tmp_path, BESIDE)
    assert len(report.beside) == 3
    found = {os.fsencode(path.name): path.read_bytes() for path in (tmp_path / "new/etc").iterdir()}
    assert found[b"x" * 246 + b".precious"] == found[b"x" * 244 + b".precious.1"] == b"old"
    assert len(found) == 6 and max(map(len, found)) <= 255


def test_what_has_the_name_already_is_never_overwritten(tmp_path: Path) -> None:
    old, new = roots(tmp_path)
    for root in (old, new):
        for name in ("file", "folder", "kept"):
            write(root, f"etc/{name}", root.name.encode())
    write(new, "etc/file.precious", b"the image's own")
    (new / "etc/folder.precious").mkdir()
    write(old, "etc/kept.precious", b"left by an earlier upgrade")
    report = go(tmp_path, BESIDE)
    assert report.beside == [f"etc/{name}.precious.1" for name in ("file", "folder", "kept")]
    assert (new / "etc/file.precious").read_bytes() == b"the image's own"
    assert (new / "etc/folder.precious").is_dir()
    assert (new / "etc/kept.precious").read_bytes() == b"left by an earlier upgrade"
    assert (new / "etc/kept.precious.1").read_bytes() == b"old"


def test_names_go_on_until_one_is_free() -> None:
    taken = {b"etc/a.precious", b"etc/a.precious.1"}
    assert free_name(b"etc/a", taken) == b"etc/a.precious.2"
    assert free_name(b"a", set()) == b"a.precious"


# -- power cuts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["host", "image", "beside"])
def test_what_only_the_host_has_is_no_conflict_the_second_time(tmp_path: Path, when: str) -> None:
    write(roots(tmp_path)[0], "etc/mine", b"h")
    report = go(tmp_path, rules(f'keep = ["/etc/**"]\nwhen = "{when}"'))
    assert report.put_back == ["etc/mine"] and not report.beside and not report.image_won


@pytest.mark.parametrize("cut", [(putback, "place"), (putback, "check"), (place, "_own"), (mergedfiles, "_write")])
def test_after_a_cut_the_end_and_the_report_are_those_of_one_go(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: tuple[object, str]) -> None:
    """Each cut comes once before and once after what it is put into."""
    policy = rules('keep = ["/srv/**", "/etc/mine"]', 'keep = ["/etc/both"]\nwhen = "beside"',
                   'keep = ["/etc/passwd", "/etc/group", "/etc/subuid"]\nwhen = "merge"')

    def make(folder: Path) -> tuple[Path, Path]:
        old, new = roots(folder)
        write(old, "etc/passwd", b"root:x:0:0::/:/bin/sh\nada:x:1000:1000::/:/bin/sh\n")
        write(new, "etc/passwd", b"root:x:0:0::/:/bin/sh\nubuntu:x:1000:1000::/:/bin/sh\n")
        write(old, "etc/group", b"root:x:0:\nada:x:1000:\n")
        write(new, "etc/group", b"root:x:0:\nubuntu:x:1000:\n")
        write(old, "etc/subuid", b"ada:100000:65536\n")
        for path in ("etc/both", "etc/mine", "srv/app/data"):
            os.chown(write(old, path, b"host"), 1000, 1000)
        (old / "srv/app").chmod(0o2751)
        write(new, "etc/both", b"image")
        keep.collect(old, policy, folder / "kept")
        return folder / "kept", new

    kept, whole = make(tmp_path / "whole")
    expected = put_back(kept, whole, policy, index_of(whole))
    assert any("ada" in note for note in expected.notes)
    kept, new = make(tmp_path / "cut")
    image = index_of(new)
    module, name = cut
    real = getattr(module, name)
    for early in (True, False):
        def cutting(*args: object, early: bool = early, **more: object) -> object:
            if not early:
                real(*args, **more)
            raise PowerCutError

        with monkeypatch.context() as changed, pytest.raises(PowerCutError):
            changed.setattr(module, name, cutting)
            put_back(kept, new, policy, image)
    assert put_back(kept, new, policy, image) == expected
    assert picture(new) == picture(whole)


def test_a_record_of_another_release_s_accounts_is_not_used(tmp_path: Path) -> None:
    old, new = roots(tmp_path)
    write(old, "etc/passwd", b"root:x:0:0::/:/bin/sh\nada:x:1000:1000::/:/bin/sh\n")
    write(old, "etc/group", b"root:x:0:\n")
    policy = rules('keep = ["/etc/passwd", "/etc/group"]\nwhen = "merge"')
    for root in (new, tmp_path / "newer"):
        write(root, "etc/passwd", f"root:x:0:0::/:/bin/sh\n{root.name}:x:999:999::/:/bin/sh\n".encode())
        write(root, "etc/group", b"root:x:0:\n")
    go(tmp_path, policy)
    assert "image" in json.loads((tmp_path / "kept/merged.json").read_bytes())
    put_back(tmp_path / "kept", tmp_path / "newer", policy, index_of(tmp_path / "newer"))
    passwd = (tmp_path / "newer/etc/passwd").read_bytes()
    assert b"newer:x:999" in passwd and b"ada:x:1000" in passwd and b"new:x" not in passwd


# -- read back ---------------------------------------------------------------------------------------------------


def test_a_file_that_the_disk_lost_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = os.urandom(64)
    write(tmp_path / "old", "srv/file", marker + bytes(20_000))
    keep.collect(tmp_path / "old", SRV, tmp_path / "kept")
    real = place.check
    with disk(tmp_path / "disk") as new:
        def spoilt(placed: Iterable[Entry], new_root: Path, progress: Progress | None) -> None:
            new.spoil(marker)
            real(placed, new_root, progress)

        monkeypatch.setattr(putback, "check", spoilt)
        with pytest.raises(CorruptError, match="srv/file: content"):
            put_back(tmp_path / "kept", new.root, SRV, index_of(new.root))


def test_what_could_not_be_written_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only clean pages leave memory: without the sync it would be memory that is read back."""
    write(tmp_path / "old", "srv/file", b"x")
    keep.collect(tmp_path / "old", SRV, tmp_path / "kept")
    (tmp_path / "new").mkdir()

    def lost(handle: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(verify, "sync_filesystem", lost)
    with pytest.raises(DiskError, match="lost what was written"):
        put_back(tmp_path / "kept", tmp_path / "new", SRV, index_of(tmp_path / "new"))


def remade(path: Path, content: bytes) -> None:
    """Put a file of its own where something else lies."""
    path.unlink()
    path.write_bytes(content)


DAMAGE: list[tuple[str, Callable[[Path], None]]] = [
    ("mode", lambda root: (root / "srv/file").chmod(0o777)),
    ("owner", lambda root: os.chown(root / "srv/file", 5, 5)),
    ("time", lambda root: os.utime(root / "srv/file", (1, 1))),
    ("attribute user.colour", lambda root: os.removexattr(root / "srv/file", b"user.colour")),
    ("attribute user.more", lambda root: os.setxattr(root / "srv/file", b"user.more", b"x")),
    ("presence", lambda root: (root / "srv/link").unlink()),
    ("owner", lambda root: os.lchown(root / "srv/link", 5, 5)),
    ("type", lambda root: remade(root / "srv/fifo", b"")),
    ("link", lambda root: remade(root / "srv/too", b"x")),
    ("mode", lambda root: (root / "srv/folder").chmod(0o777)),
    ("mode", lambda root: (root / "etc/both.precious").chmod(0o777)),
]


@pytest.mark.parametrize(("what", "damage"), DAMAGE)
def test_all_that_was_placed_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str,
                                         damage: Callable[[Path], None]) -> None:
    old, new = roots(tmp_path)
    write(old, "srv/file", b"x")
    os.setxattr(old / "srv/file", b"user.colour", b"blue")
    os.link(old / "srv/file", old / "srv/too")
    (old / "srv/link").symlink_to("file")
    (old / "srv/folder").mkdir()
    os.mkfifo(old / "srv/fifo")
    for root in (old, new):
        write(root, "etc/both", b"x")
    policy = rules('keep = ["/srv/**"]', 'keep = ["/etc/both"]\nwhen = "beside"')
    keep.collect(old, policy, tmp_path / "kept")
    real, image = place.check, index_of(new)
    put_back(tmp_path / "kept", new, policy, image)

    def damaged(placed: Iterable[Entry], new_root: Path, progress: Progress | None) -> None:
        above = (new / "srv").stat()
        damage(new)
        os.utime(new / "srv", ns=(0, above.st_mtime_ns))
        real(placed, new_root, progress)

    monkeypatch.setattr(putback, "check", damaged)
    with pytest.raises(CorruptError, match=f": {what} is"):
        put_back(tmp_path / "kept", new, policy, image)


def test_a_link_to_what_was_not_placed_is_compared_as_the_file_it_is(tmp_path: Path) -> None:
    old, new = roots(tmp_path)
    write(old, "etc/a", b"x")
    for name in ("b", "c"):
        os.link(old / "etc/a", old / "etc" / name)
    write(new, "etc/a", b"image")
    report = go(tmp_path, rules('keep = ["/etc/**"]\nwhen = "image"'))
    assert report.image_won == ["etc/a"] and report.put_back == ["etc/b", "etc/c"]
    assert (new / "etc/b").read_bytes() == b"x" and (new / "etc/b").stat().st_ino == (new / "etc/c").stat().st_ino


# -- folders -----------------------------------------------------------------------------------------------------


def acl(uid: int) -> bytes:
    rows = ((1, 7, 0xFFFFFFFF), (2, 7, uid), (4, 5, 0xFFFFFFFF), (0x10, 7, 0xFFFFFFFF), (0x20, 5, 0xFFFFFFFF))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *row) for row in rows)


def test_folders_get_the_host_s_attributes_and_no_others(tmp_path: Path) -> None:
    old, new = roots(tmp_path)
    for name in ("plain", "shared"):
        write(old, f"srv/{name}/file")
    os.setxattr(old / "srv/shared", b"system.posix_acl_default", acl(1000))
    (new / "srv/plain").mkdir(parents=True)
    os.setxattr(new / "srv", b"system.posix_acl_default", acl(7))
    os.setxattr(new / "srv/plain", b"user.image", b"x")
    assert not go(tmp_path, SRV).notes
    assert os.listxattr(new / "srv/plain") == []
    assert os.listxattr(new / "srv/shared") == ["system.posix_acl_default"]
    assert os.getxattr(new / "srv/shared", b"system.posix_acl_default") == acl(1000)
    assert os.listxattr(new / "srv/shared/file") == []


def test_the_owner_of_an_empty_kept_folder_comes_along(tmp_path: Path) -> None:
    old, new = roots(tmp_path)
    for root, name in ((old, "app"), (new, "other")):
        write(root, "etc/passwd", f"root:x:0:0::/:/bin/sh\n{name}:x:990:990::/:/bin/false\n".encode())
        write(root, "etc/group", f"root:x:0:\n{name}:x:990:\n".encode())
    (old / "srv/drop").mkdir(parents=True)
    os.chown(old / "srv/drop", 990, 990)
    go(tmp_path, rules('keep = ["/srv/**"]', 'keep = ["/etc/passwd", "/etc/group"]\nwhen = "merge"'))
    uid = (new / "srv/drop").stat().st_uid
    assert uid != 990 and f"app:x:{uid}:" in (new / "etc/passwd").read_text()


def test_an_attribute_that_a_folder_cannot_get_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = roots(tmp_path)
    (old / "srv/folder").mkdir(parents=True)
    os.setxattr(old / "srv/folder", b"user.colour", b"blue")
    keep.collect(old, SRV, tmp_path / "kept")
    real = inodes.finish

    def full(handle: int, entry: Entry, us: tuple[int, int]) -> None:
        """The disk is full from when the folder is given its own metadata."""
        def refuse(*_: object) -> None:
            raise OSError(28, "No space left on device")

        real(handle, entry, us)
        monkeypatch.setattr(os, "setxattr", refuse)

    monkeypatch.setattr(place, "finish", full)
    report = put_back(tmp_path / "kept", new, SRV, index_of(new))
    assert report.notes == ["/srv/folder: attribute user.colour of the folder could not be set (No space left on "
                            "device)"]


# -- signs of life -----------------------------------------------------------------------------------------------


def test_every_stretch_of_work_gives_signs_of_life(tmp_path: Path) -> None:
    """A watcher kills what is silent, and an archive may hold terabytes in one file."""
    old, new = roots(tmp_path)
    write(old, "srv/file", os.urandom(9 << 20))
    write(old, "etc/unlisted", b"x" * 5000)
    write(new, "etc/unlisted", b"y" * 5000)
    policy = load([("test", '[[rule]]\nkeep = ["/srv/**"]\n[unlisted]\nlook = ["/etc/**"]')])
    keep.collect(old, policy, tmp_path / "kept")
    told: list[tuple[str, int, int]] = []
    put_back(tmp_path / "kept", new, policy, index_of(new), lambda *said: told.append(said))
    counts = {what: [done for word, done, _ in told if word == what] for what, _, _ in told}
    assert set(counts) == {"read back", "restore", "check", "compare"}
    assert len(counts["read back"]) >= 3 and len(counts["restore"]) >= 3 and len(counts["check"]) >= 9
    assert all(done == sorted(done) for done in counts.values())
    assert all(done <= total for _, done, total in told)
