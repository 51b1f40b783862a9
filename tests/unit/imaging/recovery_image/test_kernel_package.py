from __future__ import annotations

from pathlib import Path

import ko
import pytest

from imaging.recovery_image import initramfs, kernel
from imaging.recovery_image.initramfs import Compression
from plumbing.errors import NotFoundError, UsageError


def test_the_newest_kernel_by_number_not_by_letter(tmp_path: Path) -> None:
    for release in ("6.1.0-9-amd64", "6.1.0-56-amd64", "5.10.0-99-amd64"):
        ko.tree(tmp_path, {}, release=release, builtin=("x",))
    found = kernel.from_root(tmp_path)
    assert found.release == "6.1.0-56-amd64"
    assert found.modules == tmp_path / "lib/modules/6.1.0-56-amd64"


def test_a_kernel_without_its_modules_does_not_count(tmp_path: Path) -> None:
    ko.tree(tmp_path, {}, release="6.1.0-1", builtin=("x",))
    (tmp_path / "boot/vmlinuz-6.2.0-1").write_bytes(b"")
    assert kernel.from_root(tmp_path).release == "6.1.0-1"
    with pytest.raises(NotFoundError, match="has no /boot/vmlinuz-VERSION"):
        kernel.from_root(tmp_path / "boot")


def test_the_configuration_decides_the_packing(tmp_path: Path) -> None:
    ko.tree(tmp_path)
    assert initramfs.choose(kernel.from_root(tmp_path).config()) is Compression.ZSTD
    assert initramfs.choose({"CONFIG_RD_ZSTD": "n", "CONFIG_RD_XZ": "y"}) is Compression.XZ
    assert initramfs.choose({}) is Compression.ZSTD
    with pytest.raises(UsageError, match="choose another kernel"):
        initramfs.choose({"CONFIG_RD_GZIP": "y"})


def test_an_unknown_package_is_named() -> None:
    with pytest.raises(NotFoundError, match="apt knows no package linux-image-of-the-moon"):
        kernel.resolve("linux-image-of-the-moon")
