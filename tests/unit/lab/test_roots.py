"""Which root a specification names in the cache."""

from __future__ import annotations

from dataclasses import replace

from lab.roots import NEW_ROOT, OLD_ROOT, RootSpec


def test_everything_that_makes_another_root_gives_another_key() -> None:
    base = RootSpec("bookworm")
    others = [replace(base, suite="trixie"), replace(base, packages=("udev",)), replace(base, left_out=()),
              replace(base, arch="arm64"), replace(base, initramfs_modules=()), replace(base, updated=False)]
    assert len({spec.key for spec in (base, *others)}) == len(others) + 1
    assert RootSpec("bookworm").key == base.key


def test_the_pair_differs_in_the_updates_alone() -> None:
    assert replace(OLD_ROOT, updated=True) == NEW_ROOT
    assert OLD_ROOT.key != NEW_ROOT.key
