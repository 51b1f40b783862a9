"""What patterns leave out."""

import fnmatch
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaging.excludes import DEFAULT_EXCLUDES, Exclude, What, effective, matcher, parse_file
from plumbing.errors import UsageError


@pytest.mark.parametrize(("pattern", "path", "hit"), [
    ("/proc/*", b"proc/1", True), ("/proc/*", b"proc", False), ("/proc/*", b"usr/proc/1", False),
    ("/etc/ssh/ssh_host_*_key", b"etc/ssh/ssh_host_rsa_key", True),
    ("/etc/ssh/ssh_host_*_key", b"etc/ssh/ssh_host_rsa_key.pub", False),
    ("lost+found", b"lost+found", True), ("lost+found", b"home/lost+found", True), ("lost+found", b"lostfound", False),
    ("*.swp", b"a/b/.x.swp", True), ("/*.swp", b"a/b.swp", False), ("/a?c", b"a/c", False), ("/a?c", b"abc", True),
    ("/[ab]x", b"bx", True), ("/[!ab]x", b"bx", False), ("/[!ab]x", b"/x", False), ("/[x", b"[x", True),
    ("/grün", "grün".encode(), True), ("/a.b", b"axb", False), ("/n*", b"new\nline", True), ("/*", b"\xff", True),
])
def test_pattern(pattern: str, path: bytes, hit: bool) -> None:
    assert (matcher([Exclude.parse(pattern)])(path) is What.TREE) is hit


def test_each_kind_of_exclude() -> None:
    match = matcher([Exclude.parse("files:/var/log"), Exclude.parse("content:/etc/id"), Exclude.parse("tree:/x:y")])
    assert match(b"var/log") is What.NOTHING
    assert match(b"var/log/a") is match(b"var/log/a/b") is What.FILES
    assert match(b"etc/id") is What.CONTENT
    assert match(b"x:y") is What.TREE
    assert matcher([])(b"anything") is What.NOTHING


@pytest.mark.parametrize("text", ["", "/", "a/b", "files:", "tree:a/b", "/a//b"])
def test_patterns_that_could_never_match_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no exclude"):
        Exclude.parse(text)


def test_a_broken_range_is_one_sentence() -> None:
    with pytest.raises(UsageError, match="check its brackets"):
        matcher([Exclude.parse("/[z-a]")])


def test_defaults_survive_their_own_text() -> None:
    assert tuple(Exclude.parse(str(exclude)) for exclude in DEFAULT_EXCLUDES) == DEFAULT_EXCLUDES


@given(st.text("ab*?.", min_size=1, max_size=8), st.text("ab.", min_size=1, max_size=8))
def test_without_slashes_it_is_fnmatch(pattern: str, name: str) -> None:
    expected = re.fullmatch(fnmatch.translate(pattern), name) is not None
    assert (matcher([Exclude(pattern)])(name.encode()) is What.TREE) is expected


def test_every_default_has_its_reason_and_who_this_host_is_stays_out() -> None:
    assert all(exclude.reason for exclude in DEFAULT_EXCLUDES)
    match = matcher(DEFAULT_EXCLUDES)
    assert match(b"etc/machine-id") is What.CONTENT
    for path in (b"etc/ssh/ssh_host_ed25519_key", b"etc/ssh/ssh_host_rsa_key.pub", b"var/lib/systemd/random-seed",
                 b"local/x", b"proc/1", b"tmp/x", b"var/lib/dbus/machine-id"):
        assert match(path) is What.TREE
    for path in (b"etc", b"proc", b"local", b"etc/ssh/sshd_config", b"usr/proc/1"):
        assert match(path) is What.NOTHING


@given(st.sets(st.sampled_from(DEFAULT_EXCLUDES)), st.booleans())
def test_keeping_defaults_keeps_those_and_no_others(kept: set[Exclude], whole: bool) -> None:
    more = (Exclude("mine"),)
    words = [str(exclude) if whole else exclude.pattern for exclude in kept]
    assert effective(more, words) == (*(one for one in DEFAULT_EXCLUDES if one not in kept), *more)


def test_keeping_what_is_no_default_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean '/etc/machine-id'"):
        effective(keep=["/etc/machine_id"])
    with pytest.raises(UsageError, match="no defaults to keep"):
        effective(keep=["/tmp/*"], defaults=False)
    assert effective(defaults=False) == ()


def test_a_file_of_excludes() -> None:
    text = "# big, and\n#  made anew\n/srv/cache/*\n\n# a heading\n\nfiles:/var/spool\n*.core  \n"
    found = parse_file(text, "my")
    assert found == (Exclude("/srv/cache/*"), Exclude("/var/spool", What.FILES), Exclude("*.core"))
    assert [one.reason for one in found] == ["big, and made anew", "my, line 7", "my, line 8"]
    with pytest.raises(UsageError, match=r"my, line 2: 'a/b' is no exclude"):
        parse_file("# x\na/b\n", "my")
