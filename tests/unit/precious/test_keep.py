"""Keeping and putting back on real trees; needs root for owners and capabilities."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from old_and_new import disk, index_of, rules, write

from plumbing.errors import CorruptError, DiskError, RefusedError
from precious import archives, keep, policy
from precious.policy import load
from precious.putback import put_back
from precious.unlisted import find

pytestmark = pytest.mark.root

POLICY = load([("test", """
[[rule]]
keep = ["/etc/hostname", "/home/**", "/etc/both", "/etc/odd"]
[[rule]]
keep = ["/etc/passwd", "/etc/group", "/etc/shadow"]
when = "merge"
[[rule]]
keep = ["/etc/image"]
when = "image"
[[rule]]
keep = ["/etc/beside"]
when = "beside"
[unlisted]
look = ["/etc/**"]
""")])


@pytest.fixture
def old(tmp_path: Path) -> Path:
    root = tmp_path / "old"
    write(root, "etc/hostname", b"alpha\n")
    write(root, "etc/passwd", b"root:x:0:0::/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/sh\n")
    write(root, "etc/group", b"root:x:0:\nada:x:1000:\ncrontab:x:101:\n")
    write(root, "etc/shadow", b"root:$y$r:1::::::\nada:$y$a:1::::::\n", 0o600)
    write(root, "etc/image", b"host's\n")
    write(root, "etc/beside", b"host's\n")
    write(root, "etc/both", b"host's\n", 0o640)
    write(root, "etc/odd", b"a file here, a folder there\n")
    write(root, "etc/forgotten.conf", b"nobody listed me\n")
    write(root, "usr/bin/tool", b"\x7fELF")
    notes = write(root, "home/ada/notes", b"n" * 100_000, 0o600)
    os.link(notes, root / "home/ada/notes-again")
    os.link(root / "usr/bin/tool", root / "home/ada/tool")
    write(root, b"home/ada/caf\xe9", b"not UTF-8\n")
    suid = write(root, "home/ada/suid", b"#!", 0o755)
    os.chown(suid, 1000, 101)
    suid.chmod(0o4755)
    os.setxattr(suid, b"user.colour", b"blue")
    (root / "home/ada/link").symlink_to("../../etc/passwd")
    (root / "home/ada/empty").mkdir(mode=0o711)
    with (root / "home/ada/sparse").open("wb") as stream:
        stream.truncate(50_000_000)
    os.utime(notes, ns=(1, 1234567890_123456789))
    return root


@pytest.fixture
def new(tmp_path: Path) -> Path:
    root = tmp_path / "new"
    write(root, "etc/passwd", b"root:x:0:0::/root:/bin/sh\nsvc:x:999:999::/:/bin/false\n")
    write(root, "etc/group", b"root:x:0:\nsvc:x:999:\ncrontab:x:990:\n")
    write(root, "etc/shadow", b"root:*:1::::::\nsvc:!:1::::::\n", 0o640)
    os.chown(root / "etc/shadow", 0, 42)
    for name in ("image", "beside", "both", "hostname"):
        write(root, f"etc/{name}", b"image's\n")
    (root / "etc/odd").mkdir()
    return root


def test_everything_kept_comes_back_with_all_its_metadata(old: Path, new: Path, tmp_path: Path) -> None:
    keep.collect(old, POLICY, tmp_path / "kept")
    report = put_back(tmp_path / "kept", new, POLICY, index_of(new))
    assert (new / "etc/hostname").read_bytes() == b"alpha\n"
    notes, again = ((new / "home/ada" / name).stat() for name in ("notes", "notes-again"))
    assert (notes.st_ino, notes.st_mtime_ns, notes.st_mode & 0o7777) == (again.st_ino, 1234567890_123456789, 0o600)
    assert (new / "home/ada/tool").read_bytes() == b"\x7fELF"
    assert (new / os.fsdecode(b"home/ada/caf\xe9")).read_bytes() == b"not UTF-8\n"
    suid = (new / "home/ada/suid").stat()
    assert (suid.st_uid, suid.st_gid, suid.st_mode & 0o7777) == (1000, 990, 0o4755), "the group follows its name"
    assert os.getxattr(new / "home/ada/suid", b"user.colour") == b"blue"
    assert (new / "home/ada/link").readlink() == Path("../../etc/passwd")
    assert (new / "home/ada/empty").stat().st_mode & 0o7777 == 0o711
    sparse = (new / "home/ada/sparse").stat()
    assert sparse.st_size == 50_000_000
    assert sparse.st_blocks * 512 < 1_000_000
    assert "home/ada/notes" in report.put_back
    assert not (new / ".reroot-precious").exists()


def test_conflicts_are_decided_by_the_policy_and_told(old: Path, new: Path, tmp_path: Path) -> None:
    keep.collect(old, POLICY, tmp_path / "kept")
    report = put_back(tmp_path / "kept", new, POLICY, index_of(new))
    assert (new / "etc/both").read_bytes() == b"host's\n"
    assert (new / "etc/image").read_bytes() == b"image's\n"
    assert (new / "etc/beside").read_bytes() == b"image's\n"
    assert (new / "etc/beside.precious").read_bytes() == b"host's\n"
    assert (new / "etc/odd").is_dir()
    assert (new / "etc/odd.precious").read_bytes() == b"a file here, a folder there\n"
    assert report.image_won == ["etc/image"]
    assert sorted(report.beside) == ["etc/beside.precious", "etc/odd.precious"]
    assert report.unlisted == ["etc/forgotten.conf"]
    assert not (new / "etc/forgotten.conf").exists()
    assert b"ada:x:1000" in (new / "etc/passwd").read_bytes()
    assert b"root:$y$r" in (new / "etc/shadow").read_bytes()
    shadow = (new / "etc/shadow").stat()
    assert (shadow.st_gid, shadow.st_mode & 0o777) == (42, 0o640)


def test_putting_back_twice_gives_the_same_root(old: Path, new: Path, tmp_path: Path) -> None:
    def picture() -> dict[str, tuple[int, int, int, bytes]]:
        found = {}
        for path in sorted(new.rglob("*")):
            info = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            found[str(path)] = (info.st_mode, info.st_uid, info.st_gid, content)
        return found

    write(old, "etc/image", b"host's\n")
    for name in ("image", "beside"):  # what only the host has is no conflict, the second time either
        (new / "etc" / name).unlink()
    keep.collect(old, POLICY, tmp_path / "kept")
    image = index_of(new)
    first = put_back(tmp_path / "kept", new, POLICY, image)
    once = picture()
    second = put_back(tmp_path / "kept", new, POLICY, image)
    assert picture() == once
    assert second == first
    assert "etc/image" in first.put_back and "etc/beside" in first.put_back


def test_a_link_in_the_image_leads_nothing_outside(old: Path, new: Path, tmp_path: Path) -> None:
    """Fault 7 and 14: the image's /home is a link to somewhere else."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (new / "home").symlink_to(outside)
    keep.collect(old, POLICY, tmp_path / "kept")
    report = put_back(tmp_path / "kept", new, POLICY, index_of(new))
    assert list(outside.iterdir()) == []
    assert any("home/ada/notes" in note for note in report.notes)


def test_a_flipped_bit_in_the_archive_is_found(old: Path, tmp_path: Path) -> None:
    kept = keep.collect(old, POLICY, tmp_path / "kept")
    data = bytearray(kept.archive.read_bytes())
    frame = kept.index.frames[len(kept.index.frames) // 2]
    data[frame.offset + frame.length // 2] ^= 1
    kept.archive.write_bytes(data)
    with pytest.raises(CorruptError, match="not to be trusted"):
        keep.verify(tmp_path / "kept")


@pytest.mark.parametrize("part", ["index", "summary", "frame"])
def test_what_is_read_back_comes_from_the_disk(old: Path, tmp_path: Path, part: str) -> None:
    """The damage is on the disk alone; the page cache holds what was written."""
    with disk(tmp_path / "disk", 96 << 20) as local:
        kept = keep.collect(old, POLICY, local.root / "kept")
        keep.verify(local.root / "kept")
        summary = (local.root / "kept/kept.json").read_bytes()
        offset = json.loads(summary)["index"][0] if part == "index" else kept.index.frames[0].offset
        run_of_bytes = summary if part == "summary" else kept.archive.read_bytes()[offset:][:64]
        local.spoil(run_of_bytes, at=5)
        with pytest.raises(CorruptError):
            keep.verify(local.root / "kept")


def test_small_files_are_read_from_their_own_frames_only(tmp_path: Path) -> None:
    for name in ("a", "c"):
        write(tmp_path / "old", f"srv/{name}", os.urandom(9 << 20))
    write(tmp_path / "old", "srv/b", b"small")
    kept = keep.collect(tmp_path / "old", rules('keep = ["/srv/**"]'), tmp_path / "kept")
    told: list[int] = []
    found = keep.read_files(kept, frozenset({b"srv/b", b"srv/not-there"}), lambda what, done, total: told.append(done))
    assert found == {b"srv/b": b"small"}
    assert len(told) == 1


def test_reading_back_gives_signs_of_life(tmp_path: Path) -> None:
    write(tmp_path / "old", "srv/a", os.urandom(9 << 20))
    kept = keep.collect(tmp_path / "old", rules('keep = ["/srv/**"]'), tmp_path / "kept")
    told: list[int] = []
    keep.verify(tmp_path / "kept", lambda what, done, total: told.append(done))
    assert told[-1] == kept.index.layer_bytes and len(told) == len(kept.index.frames)


def test_a_cut_archive_and_an_unfinished_one_are_refused(old: Path, tmp_path: Path) -> None:
    kept = keep.collect(old, POLICY, tmp_path / "kept")
    os.truncate(kept.archive, kept.archive.stat().st_size // 2)
    with pytest.raises(CorruptError):
        keep.verify(tmp_path / "kept")
    (tmp_path / "kept/kept.json").unlink()
    with pytest.raises(CorruptError, match="no finished archive"):
        keep.verify(tmp_path / "kept")


def test_too_little_room_is_told_before_anything_is_written(old: Path, tmp_path: Path) -> None:
    """Fault 4, on a real full filesystem."""
    from plumbing.run import run

    small = tmp_path / "small"
    small.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small])
    try:
        with pytest.raises(DiskError, match=r"MiB free and keeping .* takes"):
            keep.collect(old, POLICY, small / "kept")
        assert not (small / "kept/precious.tar.zst").exists()
    finally:
        run(["umount", small])


def test_stop_is_refused_when_the_image_has_it(old: Path, tmp_path: Path) -> None:
    policy = load([("site", '[[rule]]\nkeep = ["/etc/both"]\nwhen = "stop"')])
    kept = keep.collect(old, policy, tmp_path / "kept")
    keep.refuse_stops(kept, policy, frozenset({b"etc/other"}))
    with pytest.raises(RefusedError, match="/etc/both is in the new image too"):
        keep.refuse_stops(kept, policy, frozenset({b"etc/both"}))


def test_refuse_refuses_files_that_no_rule_keeps_before_the_wipe(old: Path, tmp_path: Path) -> None:
    kept = keep.collect(old, POLICY, tmp_path / "kept")
    for rule in ("ask", "warn"):
        keep.refuse_losses(kept, load([("test", f'[loss]\nrule = "{rule}"')]))
    with pytest.raises(RefusedError, match=r"files would not come back, the first is /etc/.*nothing was wiped"):
        keep.refuse_losses(kept, load([("test", '[loss]\nrule = "refuse"')]))


def test_files_of_packages_are_not_unlisted_unless_somebody_changed_them(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root, "etc/owned", b"x")
    write(root, "etc/as-shipped", b"shipped\n")
    write(root, "etc/edited", b"edited\n")
    write(root, "etc/mine", b"mine\n")
    write(root, "var/lib/dpkg/info/pkg.list", b"/.\n/etc\n/etc/owned\n/etc/as-shipped\n/etc/edited\n")
    write(root, "var/lib/dpkg/status", b"Package: pkg\nConffiles:\n /etc/as-shipped e8c0ba80e2e8c0ac3e1d3e9bbdb7c9f0\n"
          b" /etc/edited d41d8cd98f00b204e9800998ecf8427e\nDescription: x\n")
    import hashlib

    status = root / "var/lib/dpkg/status"
    status.write_bytes(status.read_bytes().replace(b"e8c0ba80e2e8c0ac3e1d3e9bbdb7c9f0",
                                                   hashlib.md5(b"shipped\n").hexdigest().encode()))
    assert [path for path, _ in find(root, POLICY)] == [b"etc/edited", b"etc/mine"]


def test_a_hard_link_to_a_file_that_stays_in_the_archive_comes_back(old: Path, new: Path, tmp_path: Path) -> None:
    """Its first name is unlisted, so it is not put back; the two others that are kept are one file still."""
    for name in ("linked", "linked-too"):
        os.link(old / "etc/forgotten.conf", old / "home/ada" / name)
    os.link(old / "etc/passwd", old / "home/ada/passwd-too")
    keep.collect(old, POLICY, tmp_path / "kept")
    put_back(tmp_path / "kept", new, POLICY, index_of(new))
    linked, too = (new / "home/ada" / name for name in ("linked", "linked-too"))
    assert linked.read_bytes() == b"nobody listed me\n" and linked.stat().st_ino == too.stat().st_ino
    assert (new / "home/ada/passwd-too").read_bytes() == (old / "etc/passwd").read_bytes()
    assert not (new / "etc/forgotten.conf").exists()


def test_a_link_in_the_image_leads_no_account_file_elsewhere(old: Path, new: Path, tmp_path: Path) -> None:
    outside = write(tmp_path, "outside", b"untouched")
    (new / "etc/.passwd.reroot").symlink_to(outside)
    keep.collect(old, POLICY, tmp_path / "kept")
    put_back(tmp_path / "kept", new, POLICY, index_of(new))
    assert outside.read_bytes() == b"untouched"
    assert b"ada:" in (new / "etc/passwd").read_bytes() and not (new / "etc/passwd").is_symlink()


def test_units_links_and_empty_files_of_ones_own_are_unlisted_files(tmp_path: Path) -> None:
    shipped = load([policy.shipped()])
    root, image = tmp_path / "old", tmp_path / "new"
    write(root, "etc/systemd/system/shop.service", b"[Service]\n")
    write(root, "etc/cron.deny")
    write(root, "etc/nginx/sites-available/shop", b"server {}\n")
    (root / "etc/nginx/sites-enabled").mkdir()
    (root / "etc/nginx/sites-enabled/shop").symlink_to("../sites-available/shop")
    (root / "etc/same").symlink_to("hostname")
    (image / "etc").mkdir(parents=True)
    (image / "etc/same").symlink_to("hostname")
    assert [path for path, _ in find(root, shipped)] == [
        b"etc/cron.deny", b"etc/nginx/sites-available/shop", b"etc/nginx/sites-enabled/shop", b"etc/same",
        b"etc/systemd/system/shop.service"]
    keep.collect(root, shipped, tmp_path / "kept")
    assert b"etc/nginx/sites-enabled/shop" in keep.verify(tmp_path / "kept").unlisted
    assert "etc/same" not in put_back(tmp_path / "kept", image, shipped, index_of(image)).unlisted


def test_old_archives_go_and_the_newest_stay(tmp_path: Path) -> None:
    for number in range(6):
        made = write(tmp_path, f"precious/{number}/kept.json", b"{}").parent
        for path in (*made.iterdir(), made):
            os.utime(path, (number, number))
    assert archives.prune(tmp_path / "precious") == ("0", "1", "2")
    assert archives.prune(tmp_path / "precious") == ()
    assert archives.prune(tmp_path / "precious", keep=0) == ("3", "4"), "never the newest"
    assert archives.prune(tmp_path / "nothing") == ()
