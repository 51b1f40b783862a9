"""What is kept of an old root, and what a person is told of the rest."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from old_and_new import disk, index_of, rules, write

from plumbing.errors import RefusedError
from precious import detours, keep
from precious.policy import load
from precious.putback import put_back
from precious.selection import select

pytestmark = pytest.mark.root

SRV = rules('keep = ["/srv/**"]')


def test_a_pattern_through_a_link_is_refused_when_it_would_lose_files(tmp_path: Path) -> None:
    write(tmp_path, "data/srv/db", b"precious")
    (tmp_path / "srv").symlink_to("/data/srv")
    with pytest.raises(RefusedError) as caught:
        select(tmp_path, SRV, lambda _: None)
    for word in ("test, line 1 keeps /srv/**", "/srv is a link to /data/srv", "/data/srv/db", "name the real path"):
        assert word in caught.value.sentence


def test_naming_the_real_path_is_enough(tmp_path: Path) -> None:
    write(tmp_path, "data/srv/db", b"precious")
    write(tmp_path, "data/srv/tmp/x", b"not precious")
    (tmp_path / "srv").symlink_to("/data/srv")
    notes: list[str] = []
    policy = rules('keep = ["/srv/**"]\nexclude = ["/srv/tmp/**"]', 'keep = ["/data/srv/d*"]')
    kept = {entry.path for entry in select(tmp_path, policy, notes.append).entries}
    assert kept == {b".", b"data", b"data/srv", b"data/srv/db", b"srv"}
    assert len(notes) == 1 and "/srv/**" in notes[0]


@pytest.mark.parametrize("target", ["/local/srv", "/bulk", "/nowhere", "srv"])
def test_what_another_filesystem_holds_is_only_noted(tmp_path: Path, target: str) -> None:
    write(tmp_path, "etc/fstab", b"# a comment\nUUID=1 / ext4 x 0 1\nUUID=2 /bulk ext4 x 0 1\n"
          b"UUID=3 none swap sw 0 0\n")
    write(tmp_path, "local/srv/hidden-by-the-mount")
    write(tmp_path, "bulk/hidden-by-the-mount")
    (tmp_path / "srv").symlink_to(target)
    notes: list[str] = []
    selection = select(tmp_path, SRV, notes.append)
    assert b"srv" in {entry.path for entry in selection.entries}
    assert len(notes) == 1 and "keeps /srv/**" in notes[0] and target in notes[0]


def test_an_empty_folder_behind_the_link_is_no_loss(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "srv").symlink_to("data")
    select(tmp_path, SRV, lambda _: None)


def test_a_link_that_is_itself_the_last_name_is_what_is_kept(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/localtime").symlink_to("/usr/share/zoneinfo/UTC")
    notes: list[str] = []
    select(tmp_path, rules('keep = ["/etc/localtime", "/etc/l*"]'), notes.append)
    assert notes == []


@pytest.mark.parametrize("has", [False, True])
def test_the_link_comes_back_where_the_image_has_none(tmp_path: Path, has: bool) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    write(old, "local/srv/db", b"elsewhere")
    (old / "srv").symlink_to("/local/srv")
    new.mkdir()
    if has:
        (new / "srv").mkdir()
    keep.collect(old, SRV, tmp_path / "kept")
    report = put_back(tmp_path / "kept", new, SRV, index_of(new))
    assert (new / "srv").is_symlink() is not has
    assert (report.put_back, report.image_won) == (([], ["srv"]) if has else (["srv"], []))
    assert any("/srv/**" in note for note in report.notes)


def test_a_link_on_the_way_of_a_rule_is_no_unlisted_file(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/app").symlink_to("/local/app")
    policy = load([("test", '[[rule]]\nkeep = ["/etc/app/**"]\n[unlisted]\nlook = ["/etc/**"]')])
    selection = select(tmp_path, policy, lambda _: None)
    assert selection.unlisted == frozenset()


def test_links_are_resolved_within_the_root(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("/b/./c")
    (tmp_path / "b").symlink_to("d//e/..")
    (tmp_path / "d").mkdir()
    (tmp_path / "up").symlink_to("../../../../a/x")
    (tmp_path / "top").symlink_to("/")
    (tmp_path / "round").symlink_to("round")
    assert detours.resolve(tmp_path, b"a") == b"d/c"
    assert detours.resolve(tmp_path, b"up") == b"d/c/x"
    assert detours.resolve(tmp_path, b"top/d") == b"d"
    assert detours.resolve(tmp_path, b"top") == b"."
    assert detours.resolve(tmp_path, b"round/x") is None


def test_an_unlisted_file_that_does_not_fit_pushes_out_no_other(tmp_path: Path) -> None:
    with write(tmp_path, "var/lib/a/big").open("wb") as stream:
        stream.truncate(2 << 20)
    write(tmp_path, "var/www/index.html", b"made by hand")
    write(tmp_path, "var/www/site.conf", b"x")
    notes: list[str] = []
    policy = load([("test", '[unlisted]\nlook = ["/var/lib/**", "/var/www/**"]\nmax_bytes = 1048576')])
    assert select(tmp_path, policy, notes.append).unlisted == {b"var/www/index.html", b"var/www/site.conf"}
    assert len(notes) == 1 and "var/lib/a/big" in notes[0]
    policy = load([("test", '[unlisted]\nlook = ["/var/www/**"]\nmax_bytes = 12')])
    assert select(tmp_path, policy, notes.append).unlisted == {b"var/www/index.html"}, "12 bytes fill it"


def test_inode_flags_are_told_and_the_files_come_back(tmp_path: Path) -> None:
    with disk(tmp_path / "disk") as old:
        for name in ("still", "log", "plain"):
            write(old.root, f"srv/{name}", name.encode())
        os.mkfifo(old.root / "srv/fifo")
        for flag, name in (("+i", "still"), ("+a", "log"), ("+d", "")):
            subprocess.run(["chattr", flag, old.root / "srv" / name], check=True)
        policy = rules('keep = ["/srv", "/srv/**"]')
        kept = keep.collect(old.root, policy, tmp_path / "kept")
        subprocess.run(["chattr", "-R", "-i", "-a", old.root / "srv"], check=False)
    assert [note for note in kept.notes if "chattr" in note] == [
        f"/{path} has inode flags that the archive cannot hold: set them again with chattr +{flag}"
        for path, flag in (("srv", "d"), ("srv/log", "a"), ("srv/still", "i"))]
    new = tmp_path / "new"
    new.mkdir()
    report = put_back(tmp_path / "kept", new, policy, index_of(new))
    assert (new / "srv/still").read_bytes() == b"still" and (new / "srv/log").read_bytes() == b"log"
    assert sum("chattr" in note for note in report.notes) == 3


def test_a_walk_gives_signs_of_life(tmp_path: Path) -> None:
    write(tmp_path, "srv/x")
    told: list[str] = []
    select(tmp_path, SRV, lambda _: None, lambda what, done, total: told.append(what))
    assert "look" in told


# -- conditions --------------------------------------------------------------------------------------------------


def dpkg(root: Path, files: dict[str, bytes]) -> None:
    """Make `root` one where dpkg has installed these files, as they are here."""
    write(root, "var/lib/dpkg/info/pkg.list", b"".join(b"/%s\n" % path.encode() for path in files))
    write(root, "var/lib/dpkg/info/pkg.md5sums",
          b"".join(b"%s  %s\n" % (hashlib.md5(data).hexdigest().encode(), path.encode())
                   for path, data in files.items()))
    for path, data in files.items():
        write(root, path, data)


def test_conditions_choose_by_what_the_root_says_and_are_judged_the_same_when_put_back(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    dpkg(old, {"usr/lib/app/a.conf": b"a", "usr/lib/app/b.conf": b"b"})
    write(old, "usr/lib/app/b.conf", b"changed")
    write(old, "usr/lib/app/c.conf", b"added")
    write(old, "etc/passwd", b"root:x:0:0::/:/bin/sh\nada:x:1000:1000::/:/bin/sh\n")
    for name, uid in (("hers", 1000), ("root's", 0)):
        os.chown(write(old, f"data/{name}", b"x" * 50), uid, uid)
    os.link(old / "data/hers", old / "data/hers-too")
    write(old, "data/small", b"x")
    os.chown(old / "data/small", 1000, 1000)
    write(new, "data/hers", b"image")
    write(new, "data/root's", b"image")
    policy = rules('keep = ["/usr/lib/app/*"]\nmodified = true', 'keep = ["/data/*"]\nwhen = "beside"',
                   'keep = ["/data/*"]\nowner = ["ada"]\nmin_bytes = 50')
    selection = select(old, policy, lambda _: None)
    assert {entry.path for entry in selection.entries if not entry.is_directory} == {
        b"usr/lib/app/b.conf", b"usr/lib/app/c.conf", b"data/hers", b"data/hers-too", b"data/root's", b"data/small"}
    keep.collect(old, policy, tmp_path / "kept")
    report = put_back(tmp_path / "kept", new, policy, index_of(new))
    assert (new / "data/hers").read_bytes() == b"x" * 50 and (new / "data/root's").read_bytes() == b"image"
    assert report.beside == ["data/root's.precious"]
    assert (new / "usr/lib/app/b.conf").read_bytes() == b"changed"


def test_a_file_that_a_rule_s_condition_passes_over_is_still_looked_for_as_unlisted(tmp_path: Path) -> None:
    write(tmp_path, "etc/big", b"x" * 100)
    write(tmp_path, "etc/little", b"x")
    policy = load([("test", '[[rule]]\nkeep = ["/etc/*"]\nmax_bytes = 10\n[unlisted]\nlook = ["/etc/**"]')])
    selection = select(tmp_path, policy, lambda _: None)
    assert selection.unlisted == {b"etc/big"}
    assert {entry.path for entry in selection.entries if entry.is_file} == {b"etc/big", b"etc/little"}


def test_a_condition_is_no_promise_for_what_lies_behind_a_link(tmp_path: Path) -> None:
    write(tmp_path, "data/srv/db", b"precious")
    (tmp_path / "srv").symlink_to("/data/srv")
    with pytest.raises(RefusedError, match="would not be kept"):
        select(tmp_path, rules('keep = ["/srv/**"]', 'keep = ["/data/**"]\nmax_bytes = 1'), lambda _: None)


def test_a_fifo_or_a_link_in_a_package_file_s_place_is_changed_and_holds_nobody_up(tmp_path: Path) -> None:
    dpkg(tmp_path, {"opt/a": b"a", "opt/b": b"b", "opt/c": b"c"})
    for name in ("a", "b"):
        (tmp_path / "opt" / name).unlink()
    os.mkfifo(tmp_path / "opt/a")
    (tmp_path / "opt/b").symlink_to("c")
    selection = select(tmp_path, rules('keep = ["/opt/*"]\nmodified = true'), lambda _: None)
    assert {entry.path for entry in selection.entries if not entry.is_directory} == {b"opt/a", b"opt/b"}
