"""A Debian 12 host over a Debian 13 image by the shipped rules: what is kept, merged, dropped, and told."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from old_and_new import index_of, rules, write

from imaging.entry import Entry
from precious import keep, mergedfiles, putback
from precious.place import PutBackReport
from precious.policy import Policy, load, shipped
from precious.putback import put_back

pytestmark = pytest.mark.root

DEFAULTS = load([shipped()])
UNITS = "usr/lib/systemd/system"
CRONTAB = (b"SHELL=/bin/sh\n17 *\t* * *\troot\tcd / && run-parts --report /etc/cron.hourly\n"
           b"25 6\t* * *\troot\ttest -x /usr/sbin/anacron || ( cd / && run-parts --report /etc/cron.daily )\n")
NEWER_CRONTAB = CRONTAB.replace(b"( cd /", b"{ cd /").replace(b"daily )", b"daily; }")
PASSWD = b"root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/usr/sbin:/usr/sbin/nologin\n"
GROUP = b"root:x:0:\nssl-cert:x:110:\n"
GROUP_FILE = (b"%s\n/usr/bin/editor\neditor.1.gz\n/usr/share/man/man1/editor.1.gz\n\n"
              b"/usr/bin/nano\n40\n/usr/share/man/man1/nano.1.gz\n/usr/bin/vim.basic\n30\n\n\n")


def link(root: Path, path: str, text: str) -> None:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(text)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Debian 12, as the release left it but for its mounts, names, accounts and a service that 13 does not have."""
    root = tmp_path / "old"
    write(root, "etc/passwd", PASSWD + b"ada:x:1000:1000:Ada:/home/ada:/bin/bash\n")
    write(root, "etc/group", GROUP + b"ada:x:1000:\n")
    write(root, "etc/fstab", b"UUID=aa / ext4 errors=remount-ro 0 1\nUUID=bb /srv xfs noatime 0 2\n", 0o640)
    write(root, "etc/hosts", b"127.0.0.1 localhost\n127.0.1.1 alpha\n10.0.0.5 db\n")
    write(root, "etc/crontab", CRONTAB)
    write(root, "var/lib/dpkg/status", b"Package: cron\nConffiles:\n /etc/crontab %s\n"
          % hashlib.md5(CRONTAB).hexdigest().encode())
    write(root, "var/lib/dpkg/info/cron.list", b"/etc/crontab\n")
    write(root, "var/lib/dpkg/statoverride", b"root root 755 /usr/bin/mount\nroot gone 2755 /usr/bin/x\n")
    for name in ("ssh", "gone", "nginx"):
        link(root, f"etc/systemd/system/multi-user.target.wants/{name}.service", f"/lib/systemd/system/{name}.service")
    link(root, "etc/systemd/system/apt-daily.timer", "/dev/null")
    link(root, "etc/systemd/system/own.target.wants/ssh.service", "/lib/systemd/system/ssh.service")
    write(root, "var/lib/dpkg/alternatives/editor", GROUP_FILE % b"manual")
    write(root, "var/lib/dpkg/alternatives/pager", b"auto\n/usr/bin/pager\n\n/bin/more\n50\n\n")
    link(root, "etc/alternatives/editor", "/usr/bin/vim.basic")
    link(root, "etc/alternatives/pager", "/bin/more")
    write(root, "etc/ssh/ssh_host_ed25519_key", b"key", 0o600)
    os.chown(write(root, "var/spool/cron/crontabs/ada", b"1 2 * * * job\n", 0o600), 1000, 0)
    return root


@pytest.fixture
def new(tmp_path: Path) -> Path:
    root = tmp_path / "new"
    write(root, "etc/passwd", PASSWD)
    write(root, "etc/group", GROUP)
    write(root, "etc/fstab", b"UUID=builder / ext4 defaults 0 1\ntmpfs /tmp tmpfs nosuid,nodev 0 0\n")
    write(root, "etc/hosts", b"127.0.0.1 localhost\n127.0.1.1 builder\n::1 localhost ip6-localhost\n")
    write(root, "etc/crontab", NEWER_CRONTAB)
    write(root, "var/lib/dpkg/statoverride", b"root ssl-cert 2750 /usr/lib/z\n")
    link(root, "lib", "usr/lib")
    for name in ("ssh", "nginx"):
        write(root, f"{UNITS}/{name}.service", b"[Unit]\n")
    link(root, "etc/systemd/system/multi-user.target.wants/ssh.service", f"/{UNITS}/ssh.service")
    write(root, "var/lib/dpkg/alternatives/editor", GROUP_FILE % b"auto")
    link(root, "etc/alternatives/editor", "/usr/bin/nano")
    link(root, "etc/alternatives/editor.1.gz", "/usr/share/man/man1/nano.1.gz")
    for name in ("nano", "vim.basic", "mount"):
        write(root, f"usr/bin/{name}", b"\x7fELF", 0o4755 if name == "mount" else 0o755)
    return root


def go(old: Path, new: Path, policy: Policy = DEFAULTS) -> PutBackReport:
    image = index_of(new)
    kept = old.parent / "kept"
    keep.collect(old, policy, kept)
    report = put_back(kept, new, policy, image)
    assert put_back(kept, new, policy, image) == report
    return report


def test_debian_12_to_13_by_the_shipped_rules(old: Path, new: Path) -> None:
    report = go(old, new)
    assert (new / "etc/fstab").read_bytes() == (old / "etc/fstab").read_bytes() + (
        b"tmpfs /tmp tmpfs nosuid,nodev 0 0\n")
    assert (new / "etc/hosts").read_bytes() == (old / "etc/hosts").read_bytes() + b"::1 localhost ip6-localhost\n"
    assert (new / "etc/crontab").read_bytes() == NEWER_CRONTAB, "the host had not changed the release's"
    assert (new / "var/lib/dpkg/statoverride").read_bytes() == (
        b"root ssl-cert 2750 /usr/lib/z\nroot root 755 /usr/bin/mount\n")
    wants = new / "etc/systemd/system/multi-user.target.wants"
    assert {path.name: str(path.readlink()) for path in wants.iterdir()} == {
        "ssh.service": f"/{UNITS}/ssh.service", "nginx.service": "/lib/systemd/system/nginx.service"}
    assert (new / "etc/systemd/system/own.target.wants/ssh.service").is_symlink(), "in a folder the image lacks"
    assert (new / "etc/systemd/system/apt-daily.timer").readlink() == Path("/dev/null")
    assert (new / "etc/alternatives/editor").readlink() == Path("/usr/bin/vim.basic")
    assert not os.path.lexists(new / "etc/alternatives/editor.1.gz"), "this editor has no such slave"
    assert (new / "var/lib/dpkg/alternatives/editor").read_bytes() == GROUP_FILE % b"manual"
    assert not os.path.lexists(new / "etc/alternatives/pager")
    assert (new / "etc/ssh/ssh_host_ed25519_key").read_bytes() == b"key"
    assert (new / "var/spool/cron/crontabs/ada").read_bytes() == b"1 2 * * * job\n"
    assert {"etc/fstab", "etc/hosts", "etc/passwd", "var/lib/dpkg/statoverride"} <= set(report.merged)
    assert {"etc/ssh/ssh_host_ed25519_key", "etc/systemd/system/apt-daily.timer", "var/lib/dpkg/alternatives/editor"
            } <= set(report.put_back)
    assert {"etc/crontab", "var/lib/dpkg/alternatives/pager"} <= set(report.image_won)
    assert not report.conflict
    assert len(report.dropped) == 2 and not report.unlisted
    assert any("gone.service" in sentence and "no unit" in sentence for sentence in report.dropped)
    assert any("group 'gone'" in sentence for sentence in report.dropped)
    told = {*report.put_back, *report.merged, *report.image_won}
    for path in old.rglob("*"):
        if path.is_symlink() or path.is_file():
            name = str(path.relative_to(old))
            if DEFAULTS.rule_for(name.encode()) is not None:
                assert name in told or any(f"/{name}:" in sentence for sentence in report.dropped), name


def test_a_merged_file_keeps_the_image_s_owner_and_mode_or_gets_the_host_s(old: Path, new: Path) -> None:
    os.chown(new / "etc/fstab", 0, 110)
    (new / "etc/hosts").unlink()
    os.chown(old / "etc/hosts", 1000, 0)
    (old / "etc/hosts").chmod(0o604)
    private = "etc/systemd/system/own.target.wants"
    os.chown(old / private, 1000, 1000)
    (old / private).chmod(0o2750)
    go(old, new)
    made = (new / private).stat()
    assert (made.st_uid, made.st_mode & 0o7777) == (1000, 0o2750)
    fstab, hosts = (new / "etc/fstab").stat(), (new / "etc/hosts").stat()
    assert (fstab.st_gid, fstab.st_mode & 0o777) == (110, 0o644)
    assert (hosts.st_uid, hosts.st_mode & 0o777) == (1000, 0o604)


def test_a_changed_crontab_keeps_its_own_jobs(old: Path, new: Path) -> None:
    write(old, "etc/crontab", CRONTAB + b"3 4 * * * root copy\n")
    report = go(old, new)
    assert (new / "etc/crontab").read_bytes() == NEWER_CRONTAB + b"3 4 * * * root copy\n"
    assert "etc/crontab" in report.merged
    assert len(report.conflict) == 1 and "/etc/cron.daily" in report.conflict[0]


def test_overrides_are_carried_out_and_lead_nowhere_through_links(old: Path, new: Path, tmp_path: Path) -> None:
    outside = write(tmp_path, "outside/file", b"x", 0o644)
    link(new, "bin", "usr/bin")
    link(new, "usr/bin/away", str(outside))
    link(new, "opt", str(outside.parent))
    write(old, "var/lib/dpkg/statoverride", b"root ssl-cert 2755 /bin/mount\nroot ssl-cert 4777 /usr/bin/away\n"
          b"ada #7 4777 /opt/file\nada #7 600 /usr/bin/nano\nroot root 700 /usr/bin/later\n")
    report = go(old, new)
    mount, nano = (new / "usr/bin/mount").stat(), (new / "usr/bin/nano").stat()
    assert (mount.st_gid, mount.st_mode & 0o7777) == (110, 0o2755)
    assert (nano.st_uid, nano.st_gid, nano.st_mode & 0o7777) == (1000, 7, 0o600)
    assert outside.stat().st_mode & 0o7777 == 0o644 and outside.stat().st_uid == 0
    assert sorted(note.split()[0] for note in report.notes if "statoverride" in note) == [
        "/opt/file", "/usr/bin/away", "/usr/bin/later"]


def test_a_corrected_policy_takes_back_what_the_one_before_merged(old: Path, new: Path, tmp_path: Path) -> None:
    image = index_of(new)
    before = (new / "etc/hosts").read_bytes()
    keep.collect(old, DEFAULTS, tmp_path / "kept")
    put_back(tmp_path / "kept", new, DEFAULTS, image)
    assert (new / "etc/hosts").read_bytes() != before
    corrected = load([shipped(), ("site", '[[rule]]\nkeep = ["/etc/hosts"]\nwhen = "image"')])
    put_back(tmp_path / "kept", new, corrected, image)
    assert (new / "etc/hosts").read_bytes() == before
    assert b"nodev" in (new / "etc/fstab").read_bytes()


def test_a_hard_link_among_what_is_merged_is_read_as_the_file_it_is(old: Path, new: Path) -> None:
    os.link(old / "etc/hosts", old / "etc/hosts.too")
    policy = rules('keep = ["/etc/hosts", "/etc/hosts.too"]\nmerge = "hosts"', 'keep = ["/etc/passwd", "/etc/group"]\n'
                   'when = "merge"')
    go(old, new, policy)
    assert (new / "etc/hosts").read_bytes().endswith(b"10.0.0.5 db\n::1 localhost ip6-localhost\n")
    assert (new / "etc/hosts.too").read_bytes() == (old / "etc/hosts").read_bytes()


def test_what_no_merger_can_be_asked_about_goes_as_the_host_has_it(old: Path, new: Path) -> None:
    """A folder in the image where the host has a file: beside it, as ever."""
    (new / "etc/fstab").unlink()
    (new / "etc/fstab").mkdir()
    report = go(old, new)
    assert report.beside == ["etc/fstab.precious"]


def test_a_link_on_the_way_leads_nothing_out_of_the_new_root(old: Path, new: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (new / "etc/systemd/system/own.target.wants").symlink_to(outside)
    image = index_of(new)
    keep.collect(old, DEFAULTS, tmp_path / "kept")
    report = put_back(tmp_path / "kept", new, DEFAULTS, image)
    assert list(outside.iterdir()) == []
    assert any("own.target.wants/ssh.service was not put back" in note for note in report.notes)


@pytest.mark.parametrize("early", [True, False])
def test_after_a_cut_in_the_middle_of_merging_the_end_and_the_report_are_the_same(
        old: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool) -> None:
    image = index_of(new)
    keep.collect(old, DEFAULTS, tmp_path / "kept")
    real = mergedfiles._write
    for cut in (1, 2, 3):
        left = [cut]

        def cutting(folder: int, path: bytes, node: object, owner: Entry | None, left: list[int] = left) -> None:
            left[0] -= 1
            if not early or left[0]:
                real(folder, path, node, owner)  # type: ignore[arg-type]
            if not left[0]:
                raise KeyboardInterrupt

        with monkeypatch.context() as changed, pytest.raises(KeyboardInterrupt):
            changed.setattr(mergedfiles, "_write", cutting)
            put_back(tmp_path / "kept", new, DEFAULTS, image)
    report = put_back(tmp_path / "kept", new, DEFAULTS, image)
    assert {"etc/fstab", "etc/hosts"} <= set(report.merged) and len(report.dropped) == 2
    assert b"nodev" in (new / "etc/fstab").read_bytes()
    assert putback.put_back(tmp_path / "kept", new, DEFAULTS, image) == report


# -- whatever tree, whatever policy ------------------------------------------------------------------------------

NAMES = st.sampled_from(["etc/fstab", "etc/hosts", "etc/crontab", "etc/a", "etc/b", "srv/x", "srv/y/z",
                         "etc/systemd/system/t.target.wants/u.service"])
CONTENT = st.sampled_from([b"", b"1\n", b"127.0.0.1 a\n", b"tmpfs /tmp tmpfs x 0 0\n", b"tmpfs /tmp tmpfs y 0 0\n",
                           b"\xff\0", b"* * * * * root job\n"])
TREE = st.dictionaries(NAMES, CONTENT | st.just(None), max_size=6)
"""Path -> content, or None for a link."""
RULES = st.lists(st.tuples(
    st.sampled_from(['keep = ["/etc/*"]', 'keep = ["/srv/**"]', 'keep = ["/etc/fstab"]\nmerge = "fstab"',
                     'keep = ["/etc/hosts"]\nmerge = "hosts"', 'keep = ["/etc/crontab"]\nmerge = "crontab"',
                     'keep = ["/etc/systemd/system/*.wants/*"]\nmerge = "units"', 'keep = ["/etc/a", "/etc/b"]']),
    st.sampled_from(["host", "image", "beside"]), st.sampled_from(["", "max_bytes = 5", 'type = ["file"]',
                                                                   'owner = ["0"]', "owned = true"])), max_size=4)


def grow(root: Path, tree: dict[str, bytes | None]) -> None:
    (root / "etc").mkdir(parents=True)
    for path, content in tree.items():
        if content is None:
            link(root, path, "/nowhere")
        else:
            write(root, path, content)


def at(path: Path) -> bytes | None:
    """What lies at a path, of a link its text; None for nothing."""
    if path.is_symlink():
        return b"link " + os.fsencode(path.readlink())
    return path.read_bytes() if path.is_file() else None


@settings(max_examples=60, deadline=None)
@given(TREE, TREE, RULES)
def test_every_kept_entry_is_back_bit_for_bit_or_reported(
        old_tree: dict[str, bytes | None], new_tree: dict[str, bytes | None],
        parts: list[tuple[str, str, str]]) -> None:
    policy = rules(*(f"{keep_}\n{asked}" + ("" if "merge" in keep_ else f'\nwhen = "{when}"')
                     for keep_, when, asked in parts))
    with tempfile.TemporaryDirectory() as folder:
        old, new = Path(folder) / "old", Path(folder) / "new"
        grow(old, old_tree)
        grow(new, new_tree)
        before = {path: at(new / path) for path in {*old_tree, *new_tree}}
        report = go(old, new, policy)
        kept = {os.fsdecode(entry.path) for entry in keep.load(Path(folder) / "kept").index.entries
                if not entry.is_directory}
        assert {*report.put_back, *report.merged, *report.image_won} <= kept
        for path in kept:
            if path in report.put_back:
                assert at(new / path) == at(old / path)
            elif path in report.image_won:
                assert at(new / path) == before[path]
            elif path not in report.merged:
                assert f"{path}.precious" in report.beside or any(f"/{path}:" in row for row in report.dropped)
                assert at(new / path) == before[path]
        for path in before.keys() - kept:
            assert at(new / path) == before[path], "what is not precious is the image's"
