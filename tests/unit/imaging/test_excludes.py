"""What patterns leave out."""

import fnmatch
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaging.excludes import DEFAULT_EXCLUDES, Exclude, What, matcher
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
