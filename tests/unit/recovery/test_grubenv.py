"""GRUB's environment block, against grub-editenv itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbing.errors import CorruptError, UsageError
from plumbing.run import run
from recovery import grubenv

KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,10}", fullmatch=True)
VALUES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_what_is_encoded_decodes(values: dict[str, str]) -> None:
    block = grubenv.encode(values)
    assert len(block) == 1024
    assert grubenv.decode(block) == values


def test_grub_s_own_tool_reads_and_writes_it(tmp_path: Path) -> None:
    env = tmp_path / "grubenv"
    grubenv.write(env, {"saved_entry": "system", "next_entry": "recovery", "odd": "a\\b"})
    listed = run(["grub-editenv", env, "list"]).text.splitlines()
    assert listed == ["saved_entry=system", "next_entry=recovery", "odd=a\\b"]
    run(["grub-editenv", env, "set", "next_entry=", "other=x y"])
    assert grubenv.read(env) == {"saved_entry": "system", "next_entry": "", "odd": "a\\b", "other": "x y"}
    run(["grub-editenv", env, "create"])
    assert grubenv.read(env) == {}


def test_it_is_changed_in_place_and_only_in_its_first_sector(tmp_path: Path) -> None:
    env = tmp_path / "grubenv"
    grubenv.write(env, {f"zz{n}": "x" * 60 for n in range(8)} | {"saved_entry": "system"})
    inode, second = env.stat().st_ino, env.read_bytes()[512:]
    grubenv.write(env, {"saved_entry": "backup"})
    assert env.stat().st_ino == inode
    assert env.read_bytes()[512:] == second
    assert grubenv.read(env)["saved_entry"] == "backup"
    assert env.read_bytes().index(b"saved_entry") < 512


@pytest.mark.parametrize("block", [b"", b"#" * 1024, grubenv.encode({})[:-1], b"\0" * 1024])
def test_damage_reads_as_nothing_and_is_repaired(tmp_path: Path, block: bytes) -> None:
    env = tmp_path / "grubenv"
    env.write_bytes(block)
    with pytest.raises(CorruptError):
        grubenv.decode(block)
    assert grubenv.read(env) == {}
    grubenv.write(env, {"saved_entry": "recovery"})
    assert grubenv.read(env) == {"saved_entry": "recovery"}


def test_what_does_not_fit_is_refused() -> None:
    for values in ({"a": "x" * 1024}, {"a b": "1"}, {"a": "\0"}):
        with pytest.raises(UsageError):
            grubenv.encode(values)
