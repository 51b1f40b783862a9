"""Roots are made by the real mmdebstrap; here, what happens when it can't."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import roots
from plumbing.errors import CommandError

pytestmark = pytest.mark.root


def test_a_suite_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"mmdebstrap could not make a nosuchsuite root: .*its log is") as told:
        roots.root_tree(roots.RootSpec("nosuchsuite"), tmp_path)
    assert "\n" not in told.value.sentence
    assert not list(tmp_path.glob("**/*.tar")), "no half-made root is left in the cache"


def test_the_cached_root_belongs_to_no_host() -> None:
    tree = roots.root_tree(roots.RootSpec("bookworm"))
    assert (tree / "etc/machine-id").read_bytes() == b""
    assert not list((tree / "etc/ssh").glob("ssh_host_*"))
    assert not (tree / "etc/resolv.conf").exists()
    assert not (tree / "etc/hostname").exists()
    assert (tree / "usr/lib/systemd/systemd-networkd").exists()
    assert list((tree / "boot").glob("initrd.img-*"))
    assert not (tree / "etc/passwd").stat().st_uid
