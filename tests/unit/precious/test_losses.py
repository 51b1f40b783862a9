"""Findings: what they are about decides their id, all of them can be answered, and nothing in them is alive."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imaging.entry import parent
from plumbing.errors import CorruptError
from precious.losses import MAX_FINDINGS, Finding, Groups, Kind, LossReport, Lost, blocks, glob_of
from precious.policy import load
from precious.rules import LossRule

NAMES = st.lists(st.binary(min_size=1, max_size=12).filter(lambda name: b"/" not in name and b"\0" not in name
                                                          and name not in {b".", b".."}), min_size=1, max_size=4)
PATHS = NAMES.map(b"/".join)
LOSTS = st.builds(Lost, PATHS, st.sampled_from([kind for kind in Kind if kind is not Kind.MORE]),
                  st.integers(0, 1 << 40), st.integers(0, 1 << 33), st.sampled_from([None, "nginx", "libc6:amd64"]))


def found(*rows: Lost) -> tuple[Finding, ...]:
    groups = Groups()
    for row in rows:
        groups.add(row)
    return groups.findings()


def report(findings: tuple[Finding, ...]) -> LossReport:
    return LossReport(1.5, 0.25, "debian/13/amd64 sha256:1 2026-11-29T12:00:00Z", "sha256:2", 9, findings, ("a note",))


def test_one_more_file_asks_anew_and_one_more_in_a_new_folder_does_not() -> None:
    one, more = Lost(b"etc/a", Kind.ADDED, 1, 5), Lost(b"etc/b", Kind.ADDED, 1, 6)
    assert found(one)[0].id != found(one, more)[0].id
    assert found(one, more)[0].id == found(more, one)[0].id, "in whatever order they are found"
    below, next_to = (Lost(b"srv2/app/" + name, Kind.ADDED, 1, 5, top=b"srv2/app") for name in (b"a", b"b/c"))
    assert found(below)[0].id == found(below, next_to)[0].id
    assert found(below)[0].where == "/srv2/app" and found(below)[0].keep == ("/srv2/app/**",)


def test_files_of_packages_go_by_package_and_updates_ask_nobody() -> None:
    made = found(Lost(b"etc/nginx/nginx.conf", Kind.CHANGED, 10, 5, "nginx"),
                 Lost(b"usr/share/nginx/x", Kind.CHANGED, 10, 9, "nginx"),
                 Lost(b"usr/bin/vim", Kind.INSTALLED, 10, 7, "vim"),
                 Lost(b"usr/bin/ls", Kind.UPDATED, 10, 99, "coreutils"))
    assert [(one.kind, one.where, one.files) for one in made] == [
        (Kind.CHANGED, "nginx", 2), (Kind.INSTALLED, "vim", 1), (Kind.UPDATED, "coreutils", 1)]
    assert [one.asks for one in made] == [True, True, False]
    assert report(made).open(()) == list(made[:2])


def test_what_there_is_no_room_for_is_one_finding_that_asks_too() -> None:
    rows = [Lost(b"d%d/f" % number, Kind.ADDED, 1, number) for number in range(MAX_FINDINGS + 7)]
    made = found(*rows)
    assert len(made) == MAX_FINDINGS + 1
    assert (made[-1].kind, made[-1].files, made[-1].bytes, made[-1].asks) == (Kind.MORE, 7, 7, True)
    assert made[-1].id != found(*rows, Lost(b"d/f", Kind.ADDED, 1, 0))[-1].id, "another thing hidden asks anew"
    assert LossReport.from_json(json.loads(json.dumps(report(made).to_json()))) == report(made)


@pytest.mark.parametrize(("rule", "open_before", "open_after"), [
    (LossRule.ASK, 1, 0), (LossRule.WARN, 0, 0), (LossRule.REFUSE, 1, 1)])
def test_what_keeps_a_host(rule: LossRule, open_before: int, open_after: int) -> None:
    made = report(found(Lost(b"etc/a", Kind.ADDED, 1, 5)))
    assert len(blocks(rule, made, ())) == open_before
    assert len(blocks(rule, made, {made.findings[0].id})) == open_after


@given(st.lists(LOSTS, max_size=30))
@example([Lost(b"etc/\x1b[31mred\r\n<script>", Kind.ADDED, 1, 1), Lost(b"x\xff\xe2\x80\xae", Kind.CHANGED, 1, 1)])
@example([Lost(b"long/" + b"/".join([b"\xffn" * 120] * 15), Kind.ADDED, 1, 1)])
def test_a_report_survives_the_wire_and_nothing_in_it_steers_a_terminal(rows: list[Lost]) -> None:
    made = report(found(*rows))
    text = json.dumps(made.to_json())
    assert LossReport.from_json(json.loads(text)) == made
    for one in made.findings:
        assert all(word.isprintable() for word in (one.where, *one.names, *one.keep))
    assert sum(one.files for one in made.findings) == len(rows)


@given(PATHS)
def test_the_suggested_glob_keeps_what_it_was_made_of(path: bytes) -> None:
    policy = load([("test", f"[[rule]]\nkeep = [{json.dumps(glob_of(path), ensure_ascii=False)}]")])
    assert policy.rule_for(path) is not None


@given(st.lists(PATHS, min_size=1, max_size=25, unique=True))
def test_the_suggested_rule_keeps_all_of_a_finding(paths: list[bytes]) -> None:
    folder = parent(paths[0])
    rows = [Lost(path, Kind.ADDED, 1, number) for number, path in enumerate(paths) if parent(path) == folder]
    (one,) = found(*rows)
    policy = load([("test", f"[[rule]]\nkeep = {json.dumps(one.keep, ensure_ascii=False)}")])
    assert all(policy.rule_for(row.path) is not None for row in rows)


def mutations(value: Any, data: st.DataObject) -> Any:
    """Return the value with one thing in it replaced by something else."""
    junk: st.SearchStrategy[Any] = st.sampled_from([
        None, True, -1, 1 << 70, float("nan"), "\x1b[2J", "x" * 5000, [], {}, [[]], "more"])
    if isinstance(value, dict) and value and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(value)))
        return {**value, key: mutations(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(value) - 1))
        return [*value[:place], mutations(value[place], data), *value[place + 1:]]
    return data.draw(junk)


@given(st.data())
def test_whatever_a_host_sends_is_a_report_or_one_error(data: st.DataObject) -> None:
    good = report(found(Lost(b"etc/a", Kind.ADDED, 1, 5), Lost(b"b/c", Kind.ADDED, 1, 5, top=b"b")))
    sent = mutations(good.to_json(), data)
    try:
        made = LossReport.from_json(sent)
    except CorruptError as error:
        assert "loss report" in error.sentence
    else:
        json.dumps(made.to_json(), allow_nan=False)
