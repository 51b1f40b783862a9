from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbing.errors import ConfigError
from precious.conditions import Conditions, Facts
from precious.policy import FAMILIES, Policy, family, load, shipped
from precious.rules import When

names = st.text(st.characters(codec="utf-8", exclude_characters="/\0*?"), min_size=1, max_size=8)
paths = st.lists(names.filter(lambda name: name not in {".", ".."}), min_size=1, max_size=5)


def one_rule(glob: str) -> Policy:
    rule = {"keep": [glob], "exclude": [], "when": "host", "origin": "t"}
    return Policy.from_json({"rules": [rule], "unlisted": {}})


def rules(*texts: str) -> Policy:
    return load([(f"layer {number}", text) for number, text in enumerate(texts)])


def test_the_shipped_defaults_keep_what_makes_a_host_that_host() -> None:
    policy = load([shipped()])
    for path in (b"etc/machine-id", b"etc/hostname", b"etc/ssh/ssh_host_ed25519_key",
                 b"etc/systemd/network/lan.network", b"var/spool/cron/crontabs/ada",
                 b"home/ada/.ssh/authorized_keys", b"root/.bashrc"):
        assert policy.rule_for(path) is not None, path
    for path in (b"etc/ssh/sshd_config", b"usr/bin/ls", b"home/ada/.cache/x", b"etc/debian_version"):
        assert policy.rule_for(path) is None, path
    rule = policy.rule_for(b"etc/passwd")
    assert rule is not None
    assert rule.when is When.MERGE


def test_a_star_stays_within_one_name_and_two_cross_folders() -> None:
    policy = rules('[[rule]]\nkeep = ["/a/*", "/b/**", "/c?"]')
    assert policy.rule_for(b"a/x") and not policy.rule_for(b"a/x/y") and not policy.rule_for(b"a")
    assert policy.rule_for(b"b/x/y") and policy.rule_for(b"c1") and not policy.rule_for(b"c/")


def test_the_later_layer_wins_and_an_exclude_in_it_is_final() -> None:
    policy = rules('[[rule]]\nkeep = ["/etc/**"]', '[[rule]]\nkeep = ["/etc/x"]\nwhen = "image"',
                   '[[rule]]\nkeep = ["/etc/y*"]\nexclude = ["/etc/yy"]')
    found = policy.rule_for(b"etc/x")
    assert found is not None
    assert (found.when, found.where) == (When.IMAGE, "layer 1, line 1")
    assert policy.rule_for(b"etc/yy") is None
    assert policy.rule_for(b"etc/z") is not None


@given(paths)
def test_a_literal_path_is_kept_and_every_folder_on_its_way_is_walked(parts: list[str]) -> None:
    path = "/" + "/".join(parts)
    policy = one_rule(path)
    encoded = path[1:].encode("utf-8", "surrogateescape")
    assert policy.rule_for(encoded) is not None
    folder = encoded
    while b"/" in folder:
        folder = folder.rpartition(b"/")[0]
        assert policy.may_hold(folder)


@given(st.lists(st.sampled_from(["a", "b", "*", "**", "x?"]), min_size=1, max_size=4), paths)
def test_a_path_that_is_kept_is_always_reached(glob: list[str], parts: list[str]) -> None:
    policy = one_rule("/" + "/".join(glob))
    encoded = "/".join(parts).encode("utf-8", "surrogateescape")
    if policy.rule_for(encoded) is not None:
        while b"/" in encoded:
            encoded = encoded.rpartition(b"/")[0]
            assert policy.may_hold(encoded)


def test_an_order_carries_the_policy_whole() -> None:
    policy = load([shipped(), ("site", '[[rule]]\nkeep = ["/etc/x"]\nwhen = "beside"\n[unlisted]\nlook = ["/etc/**"]')])
    assert Policy.from_json(policy.to_json()) == policy


@pytest.mark.parametrize(("text", "complaint"), [
    ("[[rule]]\nkeeep = ['/a']", "did you mean 'keep'"), ("[[rule]]\nkeep = ['a']", "must be an absolute path"),
    ("[[rule]]\nkeep = ['/a/../b']", "without '..'"), ("[[rule]]\nkeep = ['/a']\nwhen = 'hots'", "did you mean 'host'"),
    ("[[rule]]\nkeep = ['/etc/fstab']\nwhen = 'merge'", "nothing knows how to merge /etc/fstab"),
    ("[[rule]]\nkeep = ['/etc/fstab']\nmerge = 'fstap'", "did you mean 'fstab'"),
    ("[[rule]]\nkeep = ['/etc/fstab']\nmerge = 'fstab'\nwhen = 'host'", "leave out one of the two"),
    ("[[rule]]\nkeep = ['/etc/*']\nmerge = 'units'", "that is for /etc/systemd/system/"),
    ("[[rule", "not valid TOML"),
    ("[unlisted]\nmax_bytes = -1", "max_bytes"), ("rule = 3", "must be a list of tables"), ("[[rule]]", "rule 1, keep"),
])
def test_a_mistake_gets_one_sentence_with_its_place(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([("/site/precious.toml", text)])
    assert caught.value.sentence.startswith("/site/precious.toml")
    assert complaint in caught.value.sentence


LINES = '''# a comment
[[rule]]
keep = ["/a"]

[[rule]]
keep = ["/b"]
wehn = "host"
'''


@pytest.mark.parametrize(("text", "line", "needles"), [
    (LINES, 7, ("rule 2", "'wehn'", "did you mean 'when'")),
    (LINES.replace('wehn = "host"', 'owner = ["9-1"]'), 7, ("owner", "'9-1'", "range")),
    (LINES.replace('wehn = "host"', 'owner = []'), 7, ("owner", "list of words")),
    (LINES.replace('wehn = "host"', 'type = ["fiel"]'), 7, ("type", "did you mean 'file'")),
    (LINES.replace('wehn = "host"', 'min_bytes = 5\nmax_bytes = 4'), 8, ("min_bytes = 5", "nothing would be kept")),
    (LINES.replace('wehn = "host"', 'max_age_days = inf'), 7, ("max_age_days", "number of days")),
    (LINES.replace('wehn = "host"', 'owned = "no"'), 7, ("owned", "true or false")),
    (LINES.replace('wehn = "host"', '') + '[unlisted]\nlok = []', 9, ("'lok'", "did you mean 'look'")),
])
def test_a_mistake_is_found_by_its_line(text: str, line: int, needles: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        load([("/site/precious.toml", text)])
    assert caught.value.sentence.startswith(f"/site/precious.toml, line {line}: ")
    assert all(needle in caught.value.sentence for needle in needles), caught.value.sentence


@pytest.mark.parametrize(("os_release", "expected"), [
    ({"ID": "debian"}, "debian"), ({"ID": "ubuntu", "ID_LIKE": "debian"}, "debian"),
    ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, "debian"), ({"ID": "fedora"}, "redhat"),
    ({"ID": "rocky", "ID_LIKE": "rhel centos fedora"}, "redhat"), ({"ID": "opensuse-leap", "ID_LIKE": "suse"}, "suse"),
    ({"ID": "sles"}, "suse"), ({"ID": "arch"}, None), ({}, None), ({"ID": 3}, None),
])
def test_the_shipped_rules_are_those_of_the_host_s_distribution(os_release: dict[str, object], expected: str) -> None:
    assert family(os_release) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_s_defaults_keep_who_the_host_is_and_its_people(name: str) -> None:
    policy = load([shipped(name)])
    for path in (b"etc/machine-id", b"etc/hostname", b"etc/fstab", b"etc/ssh/ssh_host_rsa_key", b"home/ada/x"):
        assert policy.rule_for(path) is not None, path
    rule = policy.rule_for(b"etc/shadow")
    assert rule is not None and rule.when is When.MERGE
    assert policy.rule_for(b"usr/bin/ls") is None
    assert Policy.from_json(policy.to_json()) == policy


# -- conditions --------------------------------------------------------------------------------------------------

FILE = Facts("file", 1000, "ada", 10, 5 * 86_400.0, True, False)


@pytest.mark.parametrize(("text", "holds", "fails"), [
    ('owner = ["1000-59999"]', FILE, replace(FILE, uid=999)), ('owner = ["0", "ada"]', FILE, replace(FILE, user="bob")),
    ('owner = ["33"]', replace(FILE, uid=33), FILE), ('owner = ["ada"]', FILE, replace(FILE, user="")),
    ("min_bytes = 10", FILE, replace(FILE, size=9)), ("max_bytes = 10", FILE, replace(FILE, size=11)),
    ("min_age_days = 5", FILE, replace(FILE, age_s=1.0)), ("max_age_days = 5.0", FILE, replace(FILE, age_s=1e9)),
    ('type = ["file"]', FILE, replace(FILE, type="link")), ("modified = true", FILE, replace(FILE, modified=False)),
    ("owned = false", FILE, replace(FILE, owned=True)), ("owned = true", replace(FILE, owned=True), FILE),
    ("modified = true", FILE, replace(FILE, type="directory")),
    ('type = ["directory"]', replace(FILE, type="directory"), FILE),
    ('owner = ["1000"]\nmax_bytes = 10', FILE, replace(FILE, size=11)),
])
def test_a_rule_is_passed_over_when_a_condition_fails(text: str, holds: Facts, fails: Facts) -> None:
    policy = rules('[[rule]]\nkeep = ["/a"]\nwhen = "image"', f'[[rule]]\nkeep = ["/a"]\n{text}')
    for facts, when in ((holds, When.HOST), (fails, When.IMAGE)):
        rule = policy.rule_for(b"a", facts)
        assert rule is not None and rule.when is when
    assert Policy.from_json(policy.to_json()) == policy


def test_what_is_not_known_keeps_unless_one_must_be_sure() -> None:
    policy = rules('[[rule]]\nkeep = ["/a"]\nowned = false')
    for facts in (None, Facts("file", 0)):
        assert policy.rule_for(b"a", facts) is not None
        assert policy.rule_for(b"a", facts, unknown=False) is None


def test_a_policy_without_conditions_is_written_as_older_hosts_read_it() -> None:
    rows = [{"keep": ["/a"], "exclude": [], "when": "host", "origin": "t"}]
    assert Policy.from_json({"rules": rows}).to_json()["rules"] == rows


def test_patterns_that_match_nothing_are_found() -> None:
    policy = rules('[[rule]]\nkeep = ["/etc/*", "/srv/**"]\nexclude = ["/etc/x", "/etc/y"]')
    assert [glob for _, glob in policy.idle([b"etc", b"etc/x", b"srv"])] == ["/srv/**", "/etc/y"]
    assert list(policy.idle([b"etc/x", b"etc/y", b"srv/z"])) == []


small = st.builds(
    Conditions, st.lists(st.sampled_from(["0", "10-20", "ada"]), max_size=2).map(tuple),
    st.lists(st.sampled_from(["file", "link", "directory"]), max_size=2).map(tuple), st.none() | st.integers(0, 9),
    st.none() | st.integers(0, 9), st.none() | st.floats(0, 9), st.none() | st.floats(0, 9), st.none() | st.booleans(),
    st.none() | st.booleans())
known = st.builds(
    Facts, st.sampled_from(["file", "link", "directory"]), st.integers(0, 30), st.none() | st.sampled_from(["", "ada"]),
    st.none() | st.integers(0, 9), st.none() | st.floats(0, 9e5), st.none() | st.booleans(), st.none() | st.booleans())


@given(small, known)
def test_knowing_less_never_loses_what_knowing_more_keeps(asked: Conditions, facts: Facts) -> None:
    if asked.hold(facts):
        for less in (replace(facts, user=None), replace(facts, size=None), replace(facts, owned=None), None):
            assert asked.hold(less)
    if asked.hold(facts, unknown=False):
        assert asked.hold(facts)


def test_a_later_layer_says_the_rule_and_adds_to_what_is_ignored() -> None:
    policy = load([("site", '[loss]\nrule = "refuse"\nignore = ["/var/cache/**"]'),
                   ("class", '[loss]\nignore = ["/x"]'),
                   ("host", '[loss]\nrule = "warn"\n[unlisted]\nskip = ["/etc/made/**"]')])
    assert (policy.loss.rule, policy.loss.ignore) == ("warn", ("/var/cache/**", "/x"))
    assert policy.ignores(b"var/cache/a/b") and policy.ignores(b"x") and policy.ignores(b"etc/made/it")
    assert not policy.ignores(b"var/cache") and not policy.ignores(b"x/y")
    assert policy.ignores_below(b"var/cache") and policy.ignores_below(b"etc/made") and not policy.ignores_below(b"var")
    assert load([("site", "")]).loss.rule == "ask"
    assert Policy.from_json({"rules": []}).loss.rule == "warn", "an order of before"
    assert Policy.from_json(policy.to_json()).digest == policy.digest != load([("site", "")]).digest


def test_a_loss_rule_that_is_none_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"site, line 3: .*rule = 'aks'.*did you mean 'ask'"):
        load([("site", '\n[loss]\nrule = "aks"')])
