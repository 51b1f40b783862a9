"""Each merger on files as a Debian 12 host and a Debian 13 image have them."""

from __future__ import annotations

import pytest

from precious.mergers import alternatives, crontab, fstab, hosts, statoverride, units
from precious.mergers.sides import Fate, Link, Node, Told
from precious.mergers.world import World, paths

WORLD = World()


def fates(told: list[Told] | tuple[Told, ...]) -> list[tuple[Fate, bytes]]:
    return [(row.fate, row.line) for row in told]


# -- fstab -------------------------------------------------------------------------------------------------------

HOST_FSTAB = b"""# disks of this machine
UUID=0a-host  /          ext4   errors=remount-ro  0 1
UUID=0b-host  /boot/efi  vfat   umask=0077         0 1
UUID=0c-host  none       swap   sw                 0 0
LABEL=data    /srv/data  xfs    noatime            0 2
nas:/export   /home      nfs4   _netdev            0 0
/srv/data/tmp /var/tmp   none   bind               0 0
tmpfs         /tmp       tmpfs  size=1g            0 0
tmpfs         /scratch   tmpfs  size=8g            0 0
"""
IMAGE_FSTAB = b"""# where the image was built
UUID=builder  /         ext4   defaults          0 1
UUID=builder2 /var      ext4   defaults          0 2
tmpfs         /tmp      tmpfs  nosuid,nodev      0 0
tmpfs         /run/user tmpfs  mode=0755         0 0
"""


def test_the_host_s_disks_and_shares_stay_and_the_image_s_filesystems_of_memory_win() -> None:
    result, told = fstab.merge(b"etc/fstab", HOST_FSTAB, IMAGE_FSTAB, None, WORLD)
    lines = HOST_FSTAB.splitlines()
    expected = [*lines[:7], b"tmpfs         /tmp      tmpfs  nosuid,nodev      0 0", lines[8],
                b"tmpfs         /run/user tmpfs  mode=0755         0 0"]
    assert result.splitlines() == expected
    assert fates(told) == [(Fate.CONFLICT, lines[7]), (Fate.NOTE, b"")]
    assert "/var" in told[1].why


def test_what_the_old_release_had_follows_the_new_one() -> None:
    base = b"tmpfs /tmp tmpfs size=1g 0 0\ntmpfs /scratch tmpfs size=8g 0 0\n"
    result, told = fstab.merge(b"etc/fstab", HOST_FSTAB, b"tmpfs /tmp tmpfs x 0 0\n", base, WORLD)
    assert b"/scratch" not in result and b"tmpfs /tmp tmpfs x" in result
    assert [fate for fate, _ in fates(told)] == [Fate.DROPPED, Fate.DROPPED]


def test_a_disk_at_a_place_that_the_image_makes_of_memory_stays_mounted() -> None:
    result, _ = fstab.merge(b"etc/fstab", b"/dev/vdb /tmp ext4 defaults 0 2\n", IMAGE_FSTAB, None, WORLD)
    assert result.splitlines() == [b"/dev/vdb /tmp ext4 defaults 0 2",
                                   b"tmpfs         /run/user tmpfs  mode=0755         0 0"]


# -- hosts -------------------------------------------------------------------------------------------------------


def test_hosts_get_the_image_s_new_names_and_never_the_builder_s() -> None:
    host = b"127.0.0.1 localhost\n127.0.1.1 alpha.example alpha\n\n# databases\n10.1.0.5 db.example db\n"
    image = b"127.0.0.1 localhost\n127.0.1.1 builder\n::1 localhost ip6-localhost\n10.9.9.9 db\n"
    result, told = hosts.merge(b"etc/hosts", host, image, None, WORLD)
    assert result == host + b"::1 localhost ip6-localhost\n"
    assert [row.fate for row in told] == [Fate.CONFLICT] and "10.9.9.9 db" in told[0].why


def test_hosts_three_way() -> None:
    base = b"127.0.0.1 localhost\nfe00::0 ip6-localnet\n10.0.0.1 old\n"
    host = b"127.0.0.1 localhost\nfe00::0 ip6-localnet\n10.0.0.7 mine\n"
    result, told = hosts.merge(b"etc/hosts", host, b"127.0.0.1 localhost\n10.0.0.1 old\nff02::1 ip6-all\n", base, WORLD)
    assert result == b"127.0.0.1 localhost\n10.0.0.7 mine\nff02::1 ip6-all\n", "what the host took out stays out"
    assert fates(told) == [(Fate.DROPPED, b"fe00::0 ip6-localnet")]


# -- crontab -----------------------------------------------------------------------------------------------------

OLD_CRONTAB = b"""# the system's table
SHELL=/bin/sh
17 *\t* * *\troot\tcd / && run-parts --report /etc/cron.hourly
25 6\t* * *\troot\ttest -x /usr/sbin/anacron || ( cd / && run-parts --report /etc/cron.daily )
"""
NEW_CRONTAB = b"""# the system's table, newer
SHELL=/bin/sh
17 *\t* * *\troot\tcd / && run-parts --report /etc/cron.hourly
25 6\t* * *\troot\ttest -x /usr/sbin/anacron || { cd / && run-parts --report /etc/cron.daily; }
"""
MINE = b"# nightly copy\nMAILTO=ops@example.org\n3 4 * * * root /usr/local/sbin/copy --all\n"


@pytest.mark.parametrize("base", [None, OLD_CRONTAB])
def test_own_jobs_come_after_the_image_s_and_no_folder_runs_twice(base: bytes | None) -> None:
    result, told = crontab.merge(b"etc/crontab", OLD_CRONTAB + MINE, NEW_CRONTAB, base, WORLD)
    assert result == NEW_CRONTAB + MINE
    daily = OLD_CRONTAB.splitlines()[3]
    assert (Fate.CONFLICT if base is None else Fate.DROPPED, daily) in fates(told)
    assert (Fate.NOTE, b"MAILTO=ops@example.org") in fates(told)
    assert (Fate.DROPPED, b"# the system's table") in fates(told)


def test_a_job_that_the_host_had_changed_gives_way_as_a_conflict() -> None:
    changed = OLD_CRONTAB.replace(b"25 6", b"45 3")
    result, told = crontab.merge(b"etc/crontab", changed, NEW_CRONTAB, OLD_CRONTAB, WORLD)
    assert result == NEW_CRONTAB
    assert (Fate.CONFLICT, changed.splitlines()[3]) in fates(told)


def test_a_job_of_a_user_who_is_gone_is_told() -> None:
    world = World(users=frozenset({b"root"}))
    rows = b"MAILTO=x\n@daily gone job\n1 2 3 4 5 www job\n1 2 3 4 5 root job\n@reboot root job\nodd\n"
    result, told = crontab.merge(b"etc/crontab", rows, b"", None, world)
    assert result == rows
    assert [row.line for row in told if "user" in row.why] == [b"@daily gone job", b"1 2 3 4 5 www job"]


# -- statoverride ------------------------------------------------------------------------------------------------


def test_overrides_stay_where_their_accounts_exist() -> None:
    world = World(frozenset({b"root"}), frozenset({b"root", b"ssl-cert"}))
    host = (b"root root 755 /usr/bin/mount\nroot ssl-cert 4710 /usr/bin/a b\nroot gone 2755 /usr/bin/x\n"
            b"#12 #34 0600 /etc/y\nbroken\n")
    image = b"root root 4755 /usr/bin/mount\nroot root 700 /usr/lib/z\n"
    result, told = statoverride.merge(b"var/lib/dpkg/statoverride", host, image, None, world)
    assert result == (b"root root 755 /usr/bin/mount\nroot root 700 /usr/lib/z\nroot ssl-cert 4710 /usr/bin/a b\n"
                      b"#12 #34 0600 /etc/y\n")
    assert fates(told) == [(Fate.CONFLICT, b"root root 755 /usr/bin/mount"),
                           (Fate.DROPPED, b"root gone 2755 /usr/bin/x"), (Fate.DROPPED, b"broken")]
    assert "group 'gone'" in told[1].why


# -- units -------------------------------------------------------------------------------------------------------

WANTS = b"etc/systemd/system/multi-user.target.wants/"


def test_units_stay_enabled_where_the_image_has_them() -> None:
    there = {b"usr/lib/systemd/system/" + name for name in (b"ssh.service", b"nginx.service", b"getty@.service")}
    world = World(has=paths({*there, b"usr/lib/systemd"}, {b"lib": b"usr/lib"}))
    host: dict[bytes, Node] = {
        WANTS + b"ssh.service": Link(b"/lib/systemd/system/ssh.service"),
        WANTS + b"nginx.service": Link(b"/somewhere/nginx.service"),
        WANTS + b"gone.service": Link(b"/lib/systemd/system/gone.service"),
        WANTS + b"getty@tty9.service": Link(b"/opt/getty@.service"),
        b"etc/systemd/system/apt-daily.timer": Link(b"/dev/null"),
        b"etc/systemd/system/default.target": Link(b"/usr/lib/systemd/system/nginx.service"),
        WANTS + b"both.service": Link(b"/lib/systemd/system/both.service"),
    }
    image: dict[bytes, Node] = {
        b"etc/systemd/system/default.target": Link(b"/usr/lib/systemd/system/ssh.service"),
        WANTS + b"both.service": Link(b"/usr/lib/systemd/system/both.service")}
    merged = units.merge(host, image, {}, world)
    assert merged.nodes == {
        WANTS + b"ssh.service": Link(b"/lib/systemd/system/ssh.service"),
        WANTS + b"nginx.service": Link(b"/usr/lib/systemd/system/nginx.service"),
        WANTS + b"getty@tty9.service": Link(b"/usr/lib/systemd/system/getty@.service"),
        b"etc/systemd/system/apt-daily.timer": Link(b"/dev/null"),
        b"etc/systemd/system/default.target": Link(b"/usr/lib/systemd/system/nginx.service"),
        WANTS + b"both.service": Link(b"/usr/lib/systemd/system/both.service")}
    assert {(row.path, row.fate) for row in merged.told} == {
        (WANTS + b"gone.service", Fate.DROPPED), (b"etc/systemd/system/default.target", Fate.CONFLICT)}


def test_units_of_users_are_looked_for_among_those() -> None:
    path = b"etc/systemd/user/default.target.wants/a.service"
    world = World(has=paths({b"usr/lib/systemd/system/a.service"}, {}))
    assert units.merge({path: Link(b"/gone/a.service")}, {}, {}, world).nodes == {}
    world = World(has=paths({b"usr/lib/systemd/user/a.service"}, {}))
    assert units.merge({path: Link(b"/gone/a.service")}, {}, {}, world).nodes == {
        path: Link(b"/usr/lib/systemd/user/a.service")}


# -- alternatives ------------------------------------------------------------------------------------------------

EDITOR = b"var/lib/dpkg/alternatives/editor"


def editor(status: bytes, *choices: bytes) -> bytes:
    rows = b"".join(choice + b"\n40\n/usr/share/man/" + choice.rpartition(b"/")[2] + b".1.gz\n" for choice in choices)
    return status + b"\n/usr/bin/editor\neditor.1.gz\n/usr/share/man/man1/editor.1.gz\n\n" + rows + b"\n"


def merged_editor(chosen: bytes, *, image: bytes, status: bytes = b"manual", there: tuple[bytes, ...] = ()) -> tuple[
        dict[bytes, Node | None], list[Fate]]:
    host: dict[bytes, Node] = {EDITOR: editor(status, b"/bin/nano", b"/usr/bin/vim.basic", chosen),
                               b"etc/alternatives/editor": Link(chosen)}
    world = World(has=paths({*there, b"usr/share/man/vim.basic.1.gz"}, {b"bin": b"usr/bin"}))
    merged = alternatives.merge(host, {EDITOR: image, b"etc/alternatives/editor": Link(b"/usr/bin/nano")}, {}, world)
    return dict(merged.nodes), [row.fate for row in merged.told]


def test_a_choice_made_by_hand_is_kept_with_its_slaves() -> None:
    image = editor(b"auto", b"/usr/bin/nano", b"/usr/bin/vim.basic")
    nodes, told = merged_editor(b"/usr/bin/vim.basic", image=image, there=(b"usr/bin/vim.basic",))
    assert nodes == {
        EDITOR: image.replace(b"auto", b"manual"), b"etc/alternatives/editor": Link(b"/usr/bin/vim.basic"),
        b"etc/alternatives/editor.1.gz": Link(b"/usr/share/man/vim.basic.1.gz")}
    assert told == []


def test_a_choice_is_found_again_under_usr_and_a_slave_without_a_file_is_taken_away() -> None:
    image = editor(b"auto", b"/usr/bin/nano")
    nodes, told = merged_editor(b"/bin/nano", image=image, there=(b"usr/bin/nano",))
    assert nodes[b"etc/alternatives/editor"] == Link(b"/usr/bin/nano") and told == []
    assert nodes[b"etc/alternatives/editor.1.gz"] is None


def test_a_choice_that_only_the_host_knows_joins_the_group_when_its_program_came_along() -> None:
    image = editor(b"auto", b"/usr/bin/nano")
    nodes, _ = merged_editor(b"/usr/local/bin/ed", image=image, there=(b"usr/local/bin/ed",))
    assert nodes[EDITOR] == editor(b"manual", b"/usr/bin/nano", b"/usr/local/bin/ed")


@pytest.mark.parametrize(("chosen", "image"), [(b"/usr/bin/gone", editor(b"auto", b"/usr/bin/nano")),
                                              (b"/usr/bin/vim.basic", b"no group")])
def test_a_choice_that_cannot_be_kept_is_listed(chosen: bytes, image: bytes) -> None:
    assert merged_editor(chosen, image=image, there=(b"usr/bin/vim.basic",)) == ({}, [Fate.DROPPED])


def test_what_is_automatic_is_the_image_s() -> None:
    assert merged_editor(b"/usr/bin/vim.basic", image=editor(b"auto", b"/usr/bin/nano"), status=b"auto") == ({}, [])


# -- the new root ------------------------------------------------------------------------------------------------


def test_a_path_is_there_through_links_and_a_loop_is_not() -> None:
    has = paths({b"usr/bin/vi", b"bin", b"round"}, {b"bin": b"usr/bin", b"up": b"../../usr", b"round": b"round"})
    assert has(b"bin/vi") and has(b"up/bin/vi") and has(b"usr/./bin//vi") and has(b"")
    assert not has(b"bin/ed") and not has(b"round") and not has(b"round/x")


def test_what_is_told_is_one_line_however_long_or_odd() -> None:
    told = Told(b"etc/\xff", Fate.DROPPED, b"\x1b[2J" + b"x" * 1000, "went")
    assert str(told).isprintable() and len(str(told)) < 400 and str(told).endswith("went")
