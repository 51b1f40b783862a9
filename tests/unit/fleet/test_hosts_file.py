"""hosts.toml: strict, exact about where it is wrong, written so that it reads back the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.hosts import Host, Hosts, HostsFile, Layout, Partition, host_of, mac, parse, write
from plumbing.errors import ConfigError, NotFoundError
from plumbing.tomltext import line_of

GOOD = """\
[[host]]
name = "alpha"
macs = ["52-54-00-00-00-0A"]
address = "10.1.0.11/24"
class = ["web", "debian"]

[[host]]
name = "beta"
macs = ["525400000002"]
subnet = "10.2.0.0/24"
firmware = "uefi"
serial = "QX 1"
serves = ["nfs"]
[host.layout]
disk = "D1"
"""


def test_reads() -> None:
    hosts = parse(GOOD)
    alpha, beta = hosts.get("alpha"), hosts.get("beta")
    assert alpha.macs == ("52:54:00:00:00:0a",)
    assert (alpha.address, alpha.subnet) == ("10.1.0.11/24", "10.1.0.0/24")
    assert beta.layout is not None
    assert [part.name for part in beta.layout.partitions] == ["esp", "root", "local"]
    assert hosts.with_class("web") == (alpha,)
    with pytest.raises(NotFoundError, match="did you mean 'alpha'"):
        hosts.get("alpa")
    with pytest.raises(NotFoundError, match="no host"):
        hosts.with_class("wev")


@pytest.mark.parametrize(("text", "line", "words"), [
    ('[[host]]\nname = "a"\nmac = []', 3, "did you mean 'macs'"),
    ('[[hosts]]\nname = "a"', 1, "did you mean 'host'"),
    ('[[host]]\nmacs = []', 1, "name = None"),
    ('[[host]]\nname = "Alpha"', 2, "small letters"),
    ('[[host]]\nname = "a..b"', 2, "small letters"),
    ('[[host]]\nname = "a"\n\n[[host]]\nname = "a"', 5, "twice"),
    ('[[host]]\nname = "a"\nmacs = ["52:54:00:00:00"]', 3, "not a MAC"),
    ('[[host]]\nname="a"\nmacs=["52:54:00:00:00:01"]\n[[host]]\nname="b"\nmacs=["525400000001"]', 6, "belongs to 'a'"),
    ('[[host]]\nname = "a"\nmacs = ["00:00:00:00:00:00"]', 3, "no machine's MAC address"),
    ('[[host]]\nname = "a"\nmacs = ["ff:ff:ff:ff:ff:ff"]', 3, "no machine's MAC address"),
    ('[[host]]\nname = "a"\naddress = "10.0.0.1"', 3, "prefix length"),
    ('[[host]]\nname = "a"\naddress = "10.0.0.1/24"\nsubnet = "10.1.0.0/24"', 3, "not in the subnet"),
    ('[[host]]\nname = "a"\nsubnet = "10.1.0.1/24"', 3, "no network"),
    ('[[host]]\nname = "a"\nfirmware = "efi"', 3, '"bios" or "uefi"'),
    ('[[host]]\nname = "a"\nmemory = "rest"', 3, '"512MiB" or "8GiB"'),
    ('[[host]]\nname = "a"\nmemory = "1024"', 3, '"512MiB" or "8GiB"'),
    ('[[host]]\nname = "a"\nserial = "a${x}"', 3, "letters, digits"),
    ('[[host]]\nname = "a"\nserial = "a\\nb"', 3, "printable"),
    ('[[host]]\nname = "a"\nclass = ["a b"]', 3, "cannot be a class"),
    ('[[host]]\nname = "a"\nclass = [1]', 3, "list of strings"),
    ('[[host]]\nname = "a"\n[host.layout]\ndick = "x"', 4, "did you mean 'disk'"),
    ('[[host]]\nname = "a"\n[host.layout]\npartitions = []', 3, "needs disk"),
    ('[[host]]\nname = "a"\n[host.layout]\ndisk = "x"\npartitions = []', 5, "also needs"),
    ('[[host]]\nname = "a"\nlayout.disk = "x"\nlayout.partitions = [{name = "root", size = "2GB"}]', 4, "size"),
    ('[[host]]\nname = "a"\n[host.layout]\ndisk = "x"\npartitions = [{name = "esp", size = "1MiB", fs = "ext4"}]', 5,
     "'vfat'"),
    ('[[host]]\nname = "a"\n[host.layout]\ndisk = "x"\ngroup = "a b"', 5, "volume group's name"),
    ('host = 1', 1, "[[host]] tables"),
    ('[[host]]\nname = \n', 2, "not TOML"),
])
def test_complaints_name_the_line(text: str, line: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "hosts.toml")
    assert words in caught.value.sentence
    assert f"line {line}" in caught.value.sentence, caught.value.sentence


names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
words = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)
layouts = st.builds(Layout, words, st.just((
    Partition("bios", "1MiB", None), Partition("esp", "256MiB", "vfat"), Partition("root", "rest", "xfs"))),
    st.sampled_from([None, "vg0"]))
hosts = st.builds(
    Host, name=names, macs=st.lists(st.binary(min_size=5, max_size=5).map(lambda raw: mac(f"52{raw.hex()}")),
                                    max_size=2, unique=True).map(tuple),
    subnet=st.sampled_from([None, "10.0.0.0/8"]), layout=st.none() | layouts,
    serves=st.lists(words, max_size=2).map(tuple),
    classes=st.lists(st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,9}", fullmatch=True), max_size=2).map(tuple))


@given(hosts)
def test_what_is_written_reads_back(host: Host) -> None:
    assert parse(write(host)).by_name == {host.name: host}


@given(st.text(max_size=300))
def test_any_text_is_hosts_or_one_complaint(text: str) -> None:
    try:
        assert isinstance(parse(text), Hosts)
    except ConfigError as error:
        assert "hosts.toml" in error.sentence


def test_machines_are_found(tmp_path: Path) -> None:
    found = parse(GOOD + '[[host]]\nname = "gamma"\nserial = "G"\n')
    alpha, beta = "52:54:00:00:00:0a", "52:54:00:00:00:02"
    assert (host := host_of(found, {alpha, "00:00:00:00:00:01"}, None)) and host.name == "alpha"
    assert host_of(found, {alpha, beta}, None) is None
    assert host_of(found, {beta}, "another") is None
    assert (host := host_of(found, {beta}, "QX 1")) and host.name == "beta"
    assert (host := host_of(found, set(), "G")) and host.name == "gamma"
    assert host_of(found, set(), "QX 1") is None  # beta has a MAC address, and this is not it


def test_file_follows_changes_and_keeps_the_last_good_one(tmp_path: Path) -> None:
    path = tmp_path / "hosts.toml"
    path.write_text(GOOD)
    file = HostsFile(path)
    file.add(Host(name="gamma"))
    assert set(file.current().by_name) == {"alpha", "beta", "gamma"}
    with pytest.raises(ConfigError, match=r"gamma is in hosts\.toml already \(line 18\)"):
        file.add(Host(name="gamma"))
    path.write_text("broken")
    assert "gamma" in file.current().by_name
    assert file.problem
    path.write_text(GOOD)
    assert set(file.current().by_name) == {"alpha", "beta"}
    assert file.problem is None


def test_line_of_dotted_and_quoted_keys() -> None:
    text = '# a\n[a."b"]\nc.d = 1\n[[e]]\nf = 1\n[[e]]\n"f" = 2\n[e.g]\nh = 1\n'
    assert line_of(text, ("a", "b", "c", "d")) == 3
    assert line_of(text, ("e", 1, "f")) == 7
    assert line_of(text, ("e", 1, "g", "h")) == 9
    assert line_of(text, ("e", 1, "g", "x")) == 8
    assert line_of(text, ("nothing",)) == 1
