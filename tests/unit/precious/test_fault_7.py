"""Fault 7: whatever a tree may hold comes back identical, or the report says what became of it.

The table of outcomes stands in the test's output (pytest -rP).
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
from old_and_new import disk, index_of, write

from imaging import folders, scan
from lab import oddities, reckoning
from plumbing.errors import BusyError, CorruptError
from plumbing.run import run
from precious import keep, putback
from precious.place import PutBackReport
from precious.policy import Policy, load, shipped
from precious.putback import put_back

pytestmark = pytest.mark.root

DEFAULTS = load([shipped()])
PASSWD = b"root:x:0:0::/root:/bin/sh\n%s:x:%d:%d::/:/bin/sh\n"
GROUP = b"root:x:0:\n%s:x:%d:\n"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    root = tmp_path / "old"
    write(root, "etc/passwd", PASSWD % (b"ada", 1000, 1000))
    write(root, "etc/group", GROUP % (b"ada", 1000))
    write(root, "etc/hostname", b"alpha\n")
    return root


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """An image that has given ada's ids to another, and has other types at some paths."""
    root = tmp_path / "new"
    write(root, "etc/passwd", PASSWD % (b"debian", 1000, 1000))
    write(root, "etc/group", GROUP % (b"debian", 1000))
    for folder in ("usr/local/games", "usr/local/sbin", "usr/local/share/man", "srv/odd/links/up", "bin"):
        (root / folder).mkdir(parents=True)
    write(root, "bin/sh")
    (root / "usr/local/man").symlink_to("share/man")
    (root / "srv/odd/names").symlink_to("/etc")
    write(root, "srv/odd/special/fifo", b"a file")
    write(root, "srv/odd/hard", b"a file where the host has a folder")
    return root


def reckoned(old: Path, new: Path, policy: Policy) -> tuple[list[reckoning.Row], PutBackReport]:
    before, image = oddities.picture(str(old)), index_of(new)
    keep.collect(old, policy, old.parent / "kept")
    report = put_back(old.parent / "kept", new, policy, image)
    assert put_back(old.parent / "kept", new, policy, image) == report

    def verdict(path: bytes) -> str | None:
        rule = policy.rule_for(path)
        return None if rule is None else rule.when.value

    told: dict[str, list[str]] = vars(report)
    return reckoning.reckon(before, oddities.picture(str(new)), told, verdict), report


@pytest.mark.parametrize("size", [64 << 20, pytest.param(oddities.SPARSE_BYTES, marks=pytest.mark.nightly)])
def test_fault_7_identical_or_reported(old: Path, new: Path, size: int) -> None:
    oddities.make(str(old), oddities.Ids(1000, 1000), many=500, sparse_bytes=size, deep=300)
    rows, report = reckoned(old, new, DEFAULTS)
    print(reckoning.table(rows))
    assert reckoning.wrong(rows) == []
    fates = {row.path: row.fate for row in rows}
    assert fates["usr/local/games"] == fates["srv/odd/links/up"] == "beside"
    assert fates["usr/local/man/man1/own.1"] == "told" and fates["srv/odd/names/-rf"] == "told"
    assert fates["srv/odd/hard/first"] == "told" and fates["opt/odd/fifth"] == "kept"
    assert fates["srv/odd/special/fifo"] == "kept", "the host's wins"
    assert sum(fate == "kept" for fate in fates.values()) > 800
    assert (new / "etc").is_dir() and not (new / "etc/-rf").exists(), "nothing went through the image's link"
    assert (new / "opt/odd/fifth").read_bytes().startswith(b"one file")
    assert len(report.notes) > 10


def test_the_table_tells_what_was_lost_or_changed(old: Path, new: Path) -> None:
    """The reckoning itself can fail: each kind of damage after the fact is seen."""
    oddities.make(str(old), oddities.Ids(1000, 1000), many=10, sparse_bytes=1 << 20, deep=3)
    before, image = oddities.picture(str(old)), index_of(new)
    keep.collect(old, DEFAULTS, old.parent / "kept")
    report: dict[str, list[str]] = vars(put_back(old.parent / "kept", new, DEFAULTS, image))
    base = new / "srv/odd"
    (base / "many/00003").unlink()
    (base / "many/00004").write_bytes(b"4?")
    (base / "meta/mode-4755").chmod(0o755)
    os.setxattr(base / "meta/acl", "system.posix_acl_access", oddities.named_acl(7, 7))
    os.removexattr(base / "meta/capability", "security.capability")
    os.chown(base / "meta/nobody's", 0, 0)
    (base / "links/top").unlink()
    (base / "links/top").symlink_to("//")
    with (base / "sparse").open("r+b") as stream:
        stream.seek(700_000)
        stream.write(b"x")
    second, first = (new / f"opt/odd/{name}" for name in ("twin", "fifth"))
    assert not second.exists() and first.exists()
    wrong = reckoning.wrong(reckoning.reckon(before, oddities.picture(str(new)), report, lambda _path: "host"))
    assert {(row.path.rpartition("/")[2], row.fate) for row in wrong} >= {
        ("00003", "CHANGED"), ("00004", "CHANGED"), ("mode-4755", "CHANGED"), ("acl", "CHANGED"),
        ("capability", "CHANGED"), ("nobody's", "CHANGED"), ("top", "CHANGED"), ("sparse", "CHANGED")}
    report["put_back"] = [path for path in report["put_back"] if not path.endswith("00003")]
    wrong = reckoning.wrong(reckoning.reckon(before, oddities.picture(str(new)), report, lambda _path: "host"))
    assert [row.fate for row in wrong if row.path.endswith("00003")] == ["LOST"]


@pytest.mark.parametrize(("levels", "descriptors"), [(900, 1000), (oddities.DEEP, 16_384)])
def test_a_tree_of_many_levels_comes_back(tmp_path: Path, levels: int, descriptors: int) -> None:
    """Deeper than a process has descriptors, or Python has stack: found out after the wipe it would be too late.

    `descriptors` are what is left to it: other tests of this process may hold some.
    """
    old, new = tmp_path / "old", tmp_path / "new"
    new.mkdir()
    (old / "srv").mkdir(parents=True)
    oddities._deep(os.fsencode(old / "srv"), levels)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = len(os.listdir("/proc/self/fd")) + descriptors
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        policy = load([("test", '[[rule]]\nkeep = ["/srv/**"]')])
        keep.collect(old, policy, tmp_path / "kept")
        for _ in range(2):
            report = put_back(tmp_path / "kept", new, policy, index_of(tmp_path / "kept"))
            assert f"srv/deep{'/d' * levels}/bottom" in report.put_back
            assert not (new / putback.SCRATCH).exists()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for root in (old, new):  # pytest's own removal ends at a thousand levels
            folders.remove(root)


def test_flags_and_mount_points_are_told_and_what_is_under_them_comes_back(new: Path, tmp_path: Path) -> None:
    """An immutable folder and file, an append-only file, and a filesystem mounted over files of the old root."""
    with disk(tmp_path / "disk") as made:
        write(made.root, "srv/mount/under", b"under\n")
        write(made.root, "etc/hostname", b"alpha\n")
        oddities.flag_some(str(made.root))
        run(["mount", "-t", "tmpfs", "tmpfs", made.root / "srv/mount"])
        try:
            write(made.root, "srv/mount/over", b"over\n")
            kept = keep.collect(made.root, DEFAULTS, tmp_path / "living")
            assert any("/srv/mount is another filesystem" in note for note in kept.notes)
        finally:
            run(["umount", made.root / "srv/mount"])
        kept = keep.collect(made.root, DEFAULTS, tmp_path / "kept")
        run(["chattr", "-R", "-ia", made.root / "srv/odd"])
    report = put_back(tmp_path / "kept", new, DEFAULTS, index_of(new))
    assert (new / "srv/mount/under").read_bytes() == b"under\n"
    assert [note.rpartition("+")[2] for note in kept.notes if "chattr" in note] == ["a", "i", "i"]
    assert {"srv/odd/flags/immutable", "srv/odd/flags/append-only", "srv/odd/flags/folder/inside"} <= {*report.put_back}


@pytest.mark.parametrize("times", [1, None])
def test_a_file_that_grows_while_it_is_read_is_kept_whole_or_ends_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int | None) -> None:
    """On a living host: a log that is written once more, or on and on. Never half of it, and never untold."""
    path = write(tmp_path, "srv/log", b"x" * 300_000)
    policy = load([("test", '[[rule]]\nkeep = ["/srv/**"]')])
    real, written = scan._read, list[int]()

    def while_somebody_writes(handle: int, length: int) -> bytes:
        piece = real(handle, length)
        if times is None or len(written) < times:
            with path.open("ab") as stream:
                written.append(stream.write(b"y"))
        return piece

    monkeypatch.setattr(scan, "_read", while_somebody_writes)
    if times is None:
        with pytest.raises(BusyError, match="/srv/log keeps changing"):
            keep.collect(tmp_path, policy, tmp_path / "kept")
        with pytest.raises(CorruptError):
            keep.load(tmp_path / "kept")
        return
    kept = keep.collect(tmp_path, policy, tmp_path / "kept")
    assert keep.read_files(kept, frozenset({b"srv/log"}))[b"srv/log"] == b"x" * 300_000 + b"y"
