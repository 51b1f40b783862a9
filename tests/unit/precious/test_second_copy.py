"""The [second_copy] table and how long copies stay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbing.errors import ConfigError
from precious import second_copy
from precious.policy import Policy, load
from precious.second_copy import DAY_S, Cause, Copy, SecondCopy

copies = st.lists(st.builds(Copy, st.sampled_from("abc"), st.uuids().map(str), st.just(1), st.just("00"),
                            st.integers(0, 100 * DAY_S)), max_size=20)


def test_the_table_says_when_and_a_later_layer_replaces_it() -> None:
    policy = load([("shipped", ""), ("site", '[second_copy]\nwhen = "always"\nrequired = true')])
    assert policy.second_copy == SecondCopy(Cause.ALWAYS, required=True)
    assert (policy.second_copy.where, policy.second_copy.told()) == ("site, line 1", "second copy: always, required")
    assert load([("a", '[second_copy]\nrequired = true'), ("b", '[second_copy]\nwhen = "never"')]
                ).second_copy == SecondCopy(Cause.NEVER)
    assert load([("shipped", "")]).second_copy == SecondCopy(Cause.SAME_DISK)


@pytest.mark.parametrize(("text", "line", "words"), [
    ('[second_copy]\n\nwhen = "alway"', 3, "always"), ('[second_copy]\nrequired = 1', 2, "true or false"),
    ('[second_copy]\nwenn = "never"', 2, "when"), ('[second_copy]\nservices = ["a"]', 2, "services"),
])
def test_a_mistake_is_told_with_line_and_nearest_word(text: str, line: int, words: str) -> None:
    with pytest.raises(ConfigError, match=f"site.toml, line {line}: .*{words}"):
        load([("site.toml", text)])


def test_an_order_carries_it_and_one_without_it_means_none() -> None:
    rules = load([("x", '[second_copy]\nwhen = "always"')])
    assert Policy.from_json(rules.to_json()) == rules
    told = {**rules.to_json(), "second_copy": {"when": "always", "required": True, "services": ["copies"]}}
    assert Policy.from_json(told).second_copy == SecondCopy(Cause.ALWAYS, required=True, services=("copies",))
    assert Policy.from_json({"rules": []}).second_copy is not None
    assert Policy.from_json({"rules": []}).second_copy == second_copy.NONE
    with pytest.raises(ConfigError):
        Policy.from_json({"second_copy": {"services": ["a b"]}})


def test_what_is_wanted_depends_on_the_disks() -> None:
    wanted = [(cause, same) for cause in Cause for same in (True, False) if SecondCopy(cause).wanted(same_disk=same)]
    assert wanted == [(Cause.SAME_DISK, True), (Cause.ALWAYS, True), (Cause.ALWAYS, False)]


@given(copies, st.integers(1, 4), st.integers(1, 60), st.data())
def test_the_newest_of_each_host_stay_until_they_are_old_and_needed_ones_always(
        found: list[Copy], keep_orders: int, keep_days: int, data: st.DataObject) -> None:
    needed = data.draw(st.sets(st.sampled_from([copy.order for copy in found]))) if found else set()
    now = 100.0 * DAY_S
    gone = {copy for copy, _ in second_copy.outlived(found, needed, now, keep_days=keep_days, keep_orders=keep_orders)}
    assert not {copy.order for copy in gone} & needed
    for copy in set(found):
        newer = sum(other.host == copy.host and other.stored_s > copy.stored_s for other in found)
        if now - copy.stored_s > keep_days * DAY_S and copy.order not in needed:
            assert copy in gone
        elif newer == 0 and sum(o.host == copy.host and o.stored_s == copy.stored_s for o in found) == 1:
            assert copy not in gone
    for host in "abc":
        left = [copy for copy in found if copy.host == host and copy not in gone]
        assert len(left) <= keep_orders + len(needed)
