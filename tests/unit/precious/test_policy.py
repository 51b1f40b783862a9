from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbing.errors import ConfigError
from precious.policy import Policy, When, load, shipped

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
    assert (found.when, found.origin) == (When.IMAGE, "layer 1")
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
    ("[[rule", "not valid TOML"),
    ("[unlisted]\nmax_bytes = -1", "max_bytes"), ("rule = 3", "must be a list of tables"), ("[[rule]]", "rule 1, keep"),
])
def test_a_mistake_gets_one_sentence_with_its_place(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([("/site/precious.toml", text)])
    assert caught.value.sentence.startswith("/site/precious.toml: ")
    assert complaint in caught.value.sentence
