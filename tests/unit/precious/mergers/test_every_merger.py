"""What holds for all mergers, whatever is in the files: the contract of precious.mergers."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precious.mergers.lines import plain, split
from precious.mergers.registry import ACCOUNTS, MERGERS
from precious.mergers.sides import Link, Merged, Node, Nodes
from precious.mergers.world import World, paths

PATHS = {
    "accounts": [b"etc/passwd", b"etc/group", b"etc/shadow", b"etc/subuid"],
    "alternatives": [b"var/lib/dpkg/alternatives/editor", b"etc/alternatives/editor", b"etc/alternatives/editor.1.gz"],
    "crontab": [b"etc/crontab"], "fstab": [b"etc/fstab"], "hosts": [b"etc/hosts"],
    "statoverride": [b"var/lib/dpkg/statoverride"],
    "units": [b"etc/systemd/system/multi-user.target.wants/a.service", b"etc/systemd/system/b.service"],
}
THERE = {b"usr/bin/vi", b"usr/bin/nano", b"usr/lib/systemd/system/a.service", b"usr/lib/systemd/system/g@.service"}
WORLD = World(frozenset({b"root", b"ada"}), frozenset({b"root", b"adm"}), paths(THERE, {b"bin": b"usr/bin"}))

WORDS = {
    "accounts": [
        b"root:x:0:0::/:/bin/sh", b"ada:x:1000:1000::/:/bin/sh", b"ada:x:1000:", b"bob:x:1000:1000::/:/bin/sh",
        b"root:*:1::::::", b"ada:$y$:1::::::", b"ada:100000:65536", b"bob:100000:65536"],
    "alternatives": [
        b"auto", b"manual", b"/usr/bin/editor", b"", b"editor.1.gz", b"/usr/bin/vi", b"/usr/bin/nano", b"30",
        b"/bin/nano"],
    "crontab": [
        b"SHELL=/bin/sh", b"PATH=/bin", b"# a comment", b"", b"17 * * * * root run-parts --report /etc/cron.hourly",
        b"18 * * * * root cd / && run-parts /etc/cron.hourly", b"1 2 * * *  root  job", b"1 2 * * * root job",
        b"# other", b"*/5 * * * * www run-parts /opt/jobs"],
    "fstab": [
        b"UUID=1 / ext4 defaults 0 1", b"UUID=2 / ext4 ro 0 1", b"tmpfs /tmp tmpfs size=1g 0 0", b"# comment", b"",
        b"tmpfs /tmp/ tmpfs nosuid 0 0", b"UUID=3 none swap sw 0 0", b"nas:/x /data nfs defaults 0 0", b"word",
        b"proc /proc proc defaults 0 0", b"/dev/sdb1 /tmp ext4 defaults 0 2"],
    "hosts": [
        b"127.0.0.1 localhost", b"127.0.1.1 alpha", b"127.0.1.1 builder", b"::1 localhost ip6-localhost", b"# x", b"",
        b"10.0.0.1 db DB.example # main", b"10.0.0.2 db", b"10.0.0.1\tdb DB.example", b"10.0.0.9"],
    "statoverride": [
        b"root root 755 /usr/bin/mount", b"root adm 4750 /usr/bin/mount", b"gone root 755 /usr/bin/x", b"",
        b"#7 #8 0644 /etc/y", b"root root 999 /z", b"root root 755 /usr/bin/with space", b"junk"],
    "units": [b"a"],
}
TARGETS = [b"/lib/systemd/system/a.service", b"/usr/lib/systemd/system/a.service", b"/dev/null", b"../gone.service",
           b"/usr/lib/systemd/system/g@1.service", b"/usr/bin/vi", b"/bin/nano", b"/gone", b"", b".", b"..",
           b"\xff\x00"]


def files(name: str) -> st.SearchStrategy[bytes]:
    lines = st.lists(st.sampled_from(WORDS[name]) | st.binary(max_size=12), max_size=9)
    return st.one_of(lines.map(lambda rows: b"".join(row + b"\n" for row in rows)), lines.map(b"\n".join),
                     st.binary(max_size=60))


def sides(name: str) -> st.SearchStrategy[dict[bytes, Node]]:
    node: st.SearchStrategy[Node] = files(name)
    if name in {"units", "alternatives"}:
        node = st.one_of(st.sampled_from(TARGETS).map(Link), node)
    elif name == "hosts":
        node = st.one_of(st.sampled_from(TARGETS).map(Link), node, node, node)
    return st.dictionaries(st.sampled_from(PATHS[name]), node)


def applied(image: Nodes, merged: Merged) -> dict[bytes, Node]:
    """What the new root has at these paths then."""
    there = dict(image)
    for path, node in merged.nodes.items():
        if node is None:
            there.pop(path, None)
        else:
            there[path] = node
    return there


each_merger = pytest.mark.parametrize("name", sorted(MERGERS))


@each_merger
@given(st.data())
def test_merging_twice_changes_nothing(name: str, data: st.DataObject) -> None:
    host, image, base = (data.draw(sides(name)) for _ in range(3))
    for old in (base, {}):
        merged = MERGERS[name].merge(host, image, old, WORLD)
        there = applied(image, merged)
        again = MERGERS[name].merge(host, there, old, WORLD)
        assert applied(there, again) == there
        assert MERGERS[name].merge(host, image, old, WORLD) == merged


@pytest.mark.parametrize("name", sorted({"crontab", "fstab", "hosts", "statoverride"}))
@given(st.data())
def test_every_line_of_the_host_is_in_the_result_or_told(name: str, data: st.DataObject) -> None:
    host, image, base = (data.draw(sides(name)) for _ in range(3))
    merged = MERGERS[name].merge(host, image, base, WORLD)
    told = {plain(row.line) for row in merged.told}
    for path, ours in host.items():
        if name not in {"fstab", "hosts"} and ours == base.get(path) and path in image:
            assert path not in merged.nodes, "no choice of the host's: the image's stays"
            continue
        result = merged.nodes[path]
        if isinstance(ours, Link):
            assert result == ours
            continue
        assert isinstance(result, bytes)
        have = {plain(line) for line in split(result)}
        assert all(plain(line) in have | told for line in split(ours) if plain(line))


@pytest.mark.parametrize("name", ["units"])
@given(st.data())
def test_every_link_of_the_host_is_there_or_told(name: str, data: st.DataObject) -> None:
    host, image = (data.draw(sides(name)) for _ in range(2))
    merged = MERGERS[name].merge(host, image, {}, WORLD)
    told = {row.path for row in merged.told}
    for path in host:
        assert path in merged.nodes or path in told


@pytest.mark.parametrize("name", sorted({"crontab", "fstab", "hosts", "statoverride"}))
@given(st.data())
def test_the_host_s_lines_stay_in_their_order(name: str, data: st.DataObject) -> None:
    host = data.draw(sides(name))
    merged = MERGERS[name].merge(host, {}, {}, WORLD)
    for path, ours in host.items():
        result = merged.nodes[path]
        if isinstance(ours, bytes) and isinstance(result, bytes):
            left = iter(split(ours))
            assert all(any(line == row for row in left) for line in split(result))


NUMBERS = b"".join(b"%d 4 * * * root job %d\n" % (n % 60, n) for n in range(50_000))
HOSTILE: list[Callable[[], bytes]] = [
    lambda: bytes(range(256)) * 4000, lambda: b"\0" * 1_000_000, lambda: b"x" * 3_000_000,
    lambda: b"17 * * * * root " + b"run-parts " * 200_000, lambda: b"127.0.0.1 " + b"a " * 500_000,
    lambda: b"\xff\xfe\n" * 200_000,
    lambda: b"manual\n/usr/bin/editor\n\n" + b"/x\n1\n" * 100_000, lambda: b" " * 2_000_000, lambda: b"#" * 2_000_000,
    lambda: NUMBERS,
]


@each_merger
@pytest.mark.parametrize("made", HOSTILE)
def test_hostile_content_neither_raises_nor_holds_up(name: str, made: Callable[[], bytes]) -> None:
    data = made()
    began = time.process_time()
    for host, image in ((data, b"root:x:0:0::/:/bin/sh\n"), (b"tmpfs /tmp tmpfs x 0 0\n", data), (data, data)):
        merged = MERGERS[name].merge(dict.fromkeys(PATHS[name], host), dict.fromkeys(PATHS[name], image), {}, WORLD)
        assert all(len(str(row)) < 2000 and str(row).isprintable() for row in merged.told)
    assert time.process_time() - began < 20


def test_a_merger_is_named_for_its_own_kind_of_file_only() -> None:
    assert MERGERS[ACCOUNTS].takes("/etc/passwd") and not MERGERS[ACCOUNTS].takes("/etc/passwd-")
    assert MERGERS["units"].takes("/etc/systemd/system/*.wants/*") and not MERGERS["units"].takes("/etc/*")
    assert MERGERS["statoverride"].takes("/var/lib/dpkg/statoverride")
    assert MERGERS["hosts"].takes("/etc/hosts.local")
