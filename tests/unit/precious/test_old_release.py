"""The old release as the third side of a merge: what Debian 12 had, what a host made of it, what Debian 13 has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from old_and_new import rules

from imaging.entry import ROOT, Entry, EntryType, Extent
from imaging.index import Frame, Index
from precious import accounts, base, keep
from precious.base import Base
from precious.mergers import alternatives, units
from precious.mergers.registry import MERGERS
from precious.mergers.sides import Fate, Link, Node
from precious.mergers.world import World, paths

DEBIAN = Path(__file__).with_name("debian")
TABLES = ("passwd", "group", "shadow", "gshadow")


def debian(version: str) -> dict[str, bytes]:
    """The account files of a Debian root with systemd, sshd and cron, as its packages make them."""
    return {name: (DEBIAN / version / name).read_bytes() for name in TABLES}


def changed(files: Mapping[str, bytes], *changes: tuple[str, bytes, bytes]) -> dict[str, bytes]:
    """Change what stands once in a table, or (from nothing) put a line at its end."""
    made = dict(files)
    for table, old, new in changes:
        assert not old or made[table].count(old) == 1, (table, old)
        made[table] = made[table].replace(old, new) if old else made[table] + new
    return made


def table(data: bytes) -> dict[str, list[str]]:
    return {line.split(":")[0]: line.split(":") for line in data.decode().splitlines()}


def ids(data: bytes) -> list[str]:
    return [row[2] for row in table(data).values()]


# -- Debian's own files --------------------------------------------------------------------------------------------

OLD, NEW = debian("12"), debian("13")
ADA = (("passwd", b"", b"ada:x:1000:1000:Ada:/home/ada:/bin/bash\n"), ("group", b"", b"ada:x:1000:\n"),
       ("shadow", b"", b"ada:$y$ada:20000:0:99999:7:::\n"), ("gshadow", b"", b"ada:!::\n"))


@pytest.mark.root
@pytest.mark.nightly
def test_these_are_the_files_that_debian_makes() -> None:
    from lab import roots

    for version, suite in (("12", "bookworm"), ("13", "trixie")):
        for name, data in debian(version).items():
            made = (roots.root_tree(roots.RootSpec(suite)) / "etc" / name).read_bytes()
            assert table(made).keys() == table(data).keys()
            if name in {"passwd", "group"}:
                assert made == data


def test_a_host_that_changed_nothing_gets_the_image_s_files_and_no_note() -> None:
    merged = accounts.merge(OLD, NEW, base=OLD)
    assert {name: merged.files[name] for name in TABLES} == NEW
    assert merged.notes == merged.conflict == merged.dropped == ()


def test_what_the_host_changed_since_is_the_host_s() -> None:
    host = changed(OLD, *ADA, ("passwd", b"root:x:0:0:root:/root:/bin/bash", b"root:x:0:0:root:/root:/bin/zsh"),
                   ("passwd", b"/var/backups:/usr/sbin/nologin", b"/srv/backups:/bin/sh"),
                   ("group", b"sudo:x:27:", b"sudo:x:27:ada"), ("gshadow", b"sudo:*::", b"sudo:*::ada"))
    merged = accounts.merge(host, NEW, base=OLD, has=lambda path: path in {"/bin/zsh", "/bin/sh", "/bin/bash"})
    passwd = table(merged.files["passwd"])
    assert passwd["root"][6] == "/bin/zsh" and passwd["backup"][5:] == ["/srv/backups", "/bin/sh"]
    assert passwd["ada"][2:4] == ["1000", "1000"] and table(merged.files["group"])["sudo"][3] == "ada"
    assert {name: row for name, row in passwd.items() if name not in {"root", "backup", "ada"}} == {
        name: row for name, row in table(NEW["passwd"]).items() if name not in {"root", "backup"}}
    assert merged.notes == merged.conflict == merged.dropped == ()
    assert accounts.merge(host, merged.files, base=OLD).files == merged.files


def test_a_shell_that_the_new_root_lacks_locks_nobody_out_untold() -> None:
    host = changed(OLD, *ADA, ("passwd", b"/root:/bin/bash", b"/root:/usr/bin/fish"),
                   ("passwd", b"/home/ada:/bin/bash", b"/home/ada:/usr/bin/fish"))
    merged = accounts.merge(host, NEW, base=OLD, has=lambda path: path != "/usr/bin/fish")
    passwd = table(merged.files["passwd"])
    assert passwd["root"][6] == "/bin/bash" and passwd["ada"][6] == "/usr/bin/fish"
    assert len(merged.conflict) == 1 and "root's shell was /usr/bin/fish" in merged.conflict[0]
    assert [note for note in merged.notes if "ada cannot log in" in note] == list(merged.notes)


def test_both_changed_is_a_conflict_that_the_host_wins() -> None:
    host = changed(OLD, ("passwd", b"/var/backups:", b"/srv/host:"))
    image = changed(NEW, ("passwd", b"/var/backups:", b"/srv/image:"))
    merged = accounts.merge(host, image, base=OLD)
    assert table(merged.files["passwd"])["backup"][5] == "/srv/host"
    assert len(merged.conflict) == 1 and "/srv/image" in merged.conflict[0]


def test_without_the_old_release_the_image_s_wins_and_it_is_told() -> None:
    assert accounts.merge(OLD, NEW).conflict == ()
    image = changed(NEW, ("shadow", b"root:*:", b"root:$y$image:"))
    merged = accounts.merge(changed(OLD, ("passwd", b"/root:/bin/bash", b"/root:/bin/zsh")), image)
    assert table(merged.files["passwd"])["root"][6] == "/bin/bash"
    assert len(merged.conflict) == 2 and "root's shell was /bin/zsh" in merged.conflict[0]
    assert "root has another password" in merged.conflict[1] and "$y$" not in str(merged.conflict)


@pytest.mark.parametrize(("was", "host", "image", "then"), [
    ("$y$a", "$y$a", "$y$b", "$y$b"), ("$y$a", "$y$mine", "$y$b", "$y$mine"), ("$y$a", "!", "$y$b", "!"),
    ("*", "$y$mine", "$y$b", "$y$mine"), ("*", "!", "$y$b", "$y$b"), ("*", "!*", "*", "*")])
def test_passwords(was: str, host: str, image: str, then: str) -> None:
    sides = [changed(files, ("shadow", table(files["shadow"])["root"][1].encode().join((b"root:", b":20786")),
                             f"root:{word}:20786".encode())) for files, word in ((OLD, was), (OLD, host), (NEW, image))]
    merged = accounts.merge(sides[1], sides[2], base=sides[0])
    assert table(merged.files["shadow"])["root"][1] == then


def test_a_membership_that_the_host_took_away_stays_away() -> None:
    def people(files: dict[str, bytes], members: bytes) -> dict[str, bytes]:
        return changed(files, *ADA, ("group", b"sudo:x:27:", b"sudo:x:27:" + members),
                       ("gshadow", b"sudo:*::", b"sudo:*::" + members))

    merged = accounts.merge(people(OLD, b""), people(NEW, b"ada"), base=people(OLD, b"ada"))
    assert table(merged.files["group"])["sudo"][3] == table(merged.files["gshadow"])["sudo"][3] == ""
    assert table(accounts.merge(people(OLD, b""), people(NEW, b"ada")).files["group"])["sudo"][3] == "ada"


def test_what_does_not_come_is_told_unless_the_old_release_brought_it() -> None:
    """A service of 12 that 13 has no more is nobody's loss; one that somebody installed is."""
    was = changed(OLD, ("passwd", b"", b"oldd:x:104:65534::/:/usr/sbin/nologin\n"))
    host = changed(was, ("passwd", b"", b"ghost:x:105:110::/:/bin/false\n"), ("group", b"", b"ghost:x:110:\n"),
                   ("group", b"", b"shared:x:111:ada\n"), *ADA)
    merged = accounts.merge(host, NEW, base=was)
    assert [row.split(":")[0] for row in merged.dropped] == ["/etc/passwd", "/etc/group"]
    assert all("ghost" in row for row in merged.dropped)
    assert table(merged.files["group"])["shared"][3] == "ada", "a group that somebody who comes is in"
    assert sum("oldd" in row for row in accounts.merge(host, NEW).dropped) == 1


@given(st.lists(st.sampled_from([
    *ADA, ("passwd", b"", b"eve:x:996:996::/:/bin/sh\n"), ("group", b"", b"eve:x:996:\n"),
    ("passwd", b"", b"kim:x:990:990::/:/bin/sh\n"), ("group", b"", b"kim:x:990:ada\n"),
    ("group", b"", b"team:x:101:ada,kim\n"), ("passwd", b"/root:/bin/bash", b"/root:/bin/dash")]), unique=True),
    st.booleans())
def test_no_collision_survives_and_merging_twice_changes_nothing(
        changes: list[tuple[str, bytes, bytes]], known: bool) -> None:
    host, was = changed(OLD, *changes), OLD if known else None
    merged = accounts.merge(host, NEW, ["eve", "kim"], ["team"], base=was)
    for name in ("passwd", "group"):
        assert len({*ids(merged.files[name])}) == len(ids(merged.files[name]))
        for account in table(host[name]).keys() & {"ada", "eve", "kim", "team"}:
            assert account in table(merged.files[name]) or any(f" {account} " in row for row in merged.dropped)
    image, passwd = {row[2]: name for name, row in table(NEW["group"]).items()}, table(merged.files["passwd"])
    own = {row[2]: name for name, row in table(host["group"]).items()}
    for account in passwd.keys() & {"ada", "eve", "kim"}:
        was_in, is_in = own.get(table(host["passwd"])[account][3]), image.get(passwd[account][3])
        assert is_in is None or is_in == was_in or was_in is None, "into a group by its number"
    again = accounts.merge(host, merged.files, ["eve", "kim"], ["team"], base=was)
    assert again.files == merged.files


# -- units and alternatives ------------------------------------------------------------------------------------------

WANTS = b"etc/systemd/system/timers.target.wants/"
SSH, TIMER, GONE = (WANTS + name for name in (b"ssh.service", b"fstrim.timer", b"gone.timer"))


def test_a_unit_that_the_host_disabled_stays_disabled_and_one_that_the_release_dropped_goes() -> None:
    there = World(has=paths({b"usr/lib/systemd/system/" + name for name in (b"ssh.service", b"gone.timer")}, {}))
    release: dict[bytes, Node] = {path: Link(b"/lib/systemd/system/" + path.rpartition(b"/")[2])
                                  for path in (SSH, TIMER, GONE)}
    host = {path: node for path, node in release.items() if path != TIMER}
    image: dict[bytes, Node] = {SSH: Link(b"/usr/lib/systemd/system/ssh.service"), TIMER: Link(b"/x/fstrim.timer")}
    merged = units.merge(host, image, release, there)
    assert merged.nodes == {TIMER: None}
    assert [(row.path, row.fate) for row in merged.told] == [(GONE, Fate.DROPPED), (TIMER, Fate.NOTE)]
    assert units.merge(host, image, {}, there).nodes.keys() == {SSH, GONE}, "without the old release all stay"


def test_a_choice_that_the_old_release_had_made_is_no_choice_of_the_host_s() -> None:
    group = b"manual\n/usr/bin/editor\n\n/usr/bin/nano\n40\n/usr/bin/vim\n30\n\n"
    at, link = alternatives.FILES + b"editor", alternatives.LINKS + b"editor"
    release: dict[bytes, Node] = {at: group, link: Link(b"/usr/bin/vim")}
    image: dict[bytes, Node] = {at: group.replace(b"manual", b"auto"), link: Link(b"/usr/bin/nano")}
    there = World(has=paths({b"usr/bin/vim", b"usr/bin/nano"}, {}))
    assert alternatives.merge(release, image, release, there).nodes == {}
    mine = {**release, link: Link(b"/usr/bin/nano")}  # the group's file is the same: only the link says it
    assert alternatives.merge(mine, image, release, there).nodes[link] == Link(b"/usr/bin/nano")


def test_an_unchanged_fstab_and_hosts_get_no_lines_of_where_the_image_was_built() -> None:
    release: dict[bytes, Node] = {b"etc/fstab": b"LABEL=root / ext4 x 0 1\ntmpfs /a tmpfs x 0 0\n",
                                  b"etc/hosts": b"::1 localhost\n::2 old\n"}
    image: dict[bytes, Node] = {b"etc/fstab": b"UUID=builder / ext4 x 0 1\ntmpfs /b tmpfs x 0 0\n",
                                b"etc/hosts": b"::1 localhost\n127.0.1.1 builder\n"}
    merged = [MERGERS[name].merge({path: release[path]}, image, release, World()).nodes[path]
              for name, path in (("fstab", b"etc/fstab"), ("hosts", b"etc/hosts"))]
    assert merged == [b"LABEL=root / ext4 x 0 1\ntmpfs /b tmpfs x 0 0\n", b"::1 localhost\n"]


# -- what is known -----------------------------------------------------------------------------------------------------

POLICY = rules('keep = ["/etc/hosts", "/etc/fstab"]\nmerge = "hosts"', 'keep = ["/etc/other"]',
               'keep = ["/etc/systemd/system/*"]\nmerge = "units"\ntype = ["link"]')


def file(path: bytes, data: bytes, frame: int) -> Entry:
    return Entry(path, EntryType.FILE, 0o644, 0, 0, 0, size=len(data), digest=blake3(data).digest(),
                 extents=(Extent(frame, 0, len(data)),) if data else ())


def index(*entries: Entry, frame_bytes: int = 100) -> Index:
    folders = sorted({entry.path.rpartition(b"/")[0] for entry in entries})
    ways = [Entry(path, EntryType.DIRECTORY, 0o755, 0, 0, 0) for path in (ROOT, *folders)]
    frames = tuple(Frame(number * frame_bytes, frame_bytes, 1000, bytes(32)) for number in range(9))
    return Index((*ways, *entries), frames)


def test_links_and_unchanged_files_need_no_content_and_only_merged_paths_are_asked_for() -> None:
    link = Entry(b"etc/systemd/system/a.service", EntryType.SYMLINK, 0o777, 0, 0, 0, link=b"/x")
    unit = file(b"etc/systemd/system/b.service", b"no link", 3)
    hosts, fstab, other = file(b"etc/hosts", b"h", 1), file(b"etc/fstab", b"f", 2), file(b"etc/other", b"o", 2)
    mine = {b"etc/hosts": hosts, b"etc/fstab": file(b"etc/fstab", b"changed", 0), b"etc/other": other}
    found, lacking = base.known("debian/12/amd64", index(link, unit, hosts, fstab, other), POLICY, mine)
    assert found == Base("debian/12/amd64", frozenset({b"etc/hosts"}), {link.path: Link(b"/x")})
    assert lacking == [fstab]
    assert base.content(fstab, {fstab.extents[0]: b"f"}) == b"f"
    assert base.content(fstab, {fstab.extents[0]: b"x"}) is None and base.content(fstab, {}) is None
    assert base.known("r", index(hosts), POLICY, {})[1] == [], "what the host lacks is nobody's to merge"


def test_a_file_that_would_cost_too_much_is_left_out_and_noted() -> None:
    hosts, fstab = file(b"etc/hosts", b"h", 1), file(b"etc/fstab", b"f", 2)
    mine = {entry.path: file(entry.path, b"changed", 0) for entry in (hosts, fstab)}
    found, lacking = base.known("r", index(hosts, fstab, frame_bytes=base.MOST_FETCHED_BYTES), POLICY, mine)
    assert lacking == [hosts] and len(found.notes) == 1 and "/etc/fstab" in found.notes[0]
    big = replace(hosts, size=base.MOST_FILE_BYTES + 1)
    assert base.known("r", index(big), POLICY, mine)[1] == []


def test_it_stands_beside_the_archive_whole_or_counts_as_unknown(tmp_path: Path) -> None:
    told = Base("debian/12/amd64", frozenset({b"etc/\xff"}), {b"a": b"\0\xff", b"l": Link(b"\xfe")}, ("note",))
    keep.write_base(tmp_path, told)
    assert keep.read_base(tmp_path) == told
    place = tmp_path / keep.BASE
    data = place.read_bytes()
    for damage in (data[:-9], data.replace(b"note", b"n0te"), b"[]", b'{"version": 1}', b"\xff"):
        place.write_bytes(damage)
        found = keep.read_base(tmp_path)
        assert not found.nodes and len(found.notes) == 1
    place.unlink()
    assert keep.read_base(tmp_path) == Base()
