from __future__ import annotations

import lzma
from pathlib import Path

import ko
import pytest
import zstandard

from imaging.recovery_image import modules
from imaging.recovery_image.modules import Wanted, module_closure
from plumbing.errors import CorruptError, NotFoundError, UsageError


def names(found: modules.ModuleSet) -> list[str]:
    return [module.name for module in found.modules]


def text(found: modules.ModuleSet, name: str) -> list[str]:
    return next(item.data for item in found.items() if item.path.endswith(name)).decode().splitlines()


def test_a_profile_brings_everything_below_it_in_loading_order(tmp_path: Path) -> None:
    found = module_closure(ko.tree(tmp_path), modules.profile("virtio"))
    order = names(found)
    assert order.index("virtio") < order.index("virtio_pci") and order.index("virtio_ring") < order.index("virtio_pci")
    for module in found.modules:
        assert all(order.index(below) < order.index(module.name) for below in module.needs)
    assert "e1000e" in [want.name for want in found.absent]
    assert text(found, "etc/reroot/modules") == order


def test_a_soft_dependency_by_alias_comes_before_and_post_is_left_out(tmp_path: Path) -> None:
    found = module_closure(ko.tree(tmp_path), [Wanted("ext4", "root")])
    assert names(found) == ["crc32c_generic", "ext4"]
    assert "kernel/drivers/ext4.ko: kernel/drivers/crc32c_generic.ko" in text(found, "modules.dep")


def test_dependencies_are_listed_last_first_as_modprobe_expects(tmp_path: Path) -> None:
    chain = {"a": {"depends": ["b"]}, "b": {"depends": ["c"]}, "c": {}}
    found = module_closure(ko.tree(tmp_path, chain), [Wanted("a", "why")])
    assert text(found, "modules.dep")[-1] == "kernel/drivers/a.ko: kernel/drivers/b.ko kernel/drivers/c.ko"


def test_a_soft_dependency_is_the_generic_one_and_none_when_the_kernel_has_it(tmp_path: Path) -> None:
    """The fast ones load on some processors only, and what depends on them would not load either."""
    crc = {"xfs": {"softdep": ["pre: crc32c"]}, "a_crc32c_intel": {"alias": ["crc32c"]},
           "crc32c_generic": {"alias": ["crc32c"]}}
    folder = ko.tree(tmp_path, crc)
    assert names(module_closure(folder, [Wanted("xfs", "why")])) == ["crc32c_generic", "xfs"]
    (folder / "modules.builtin.modinfo").write_bytes(b"crc32c_generic.alias=crc32c\0crc32c_generic.license=GPL\0")
    assert names(module_closure(folder, [Wanted("xfs", "why")])) == ["xfs"]


def test_dashes_aliases_and_builtins(tmp_path: Path) -> None:
    folder = ko.tree(tmp_path, {"virtio-rng": {"depends": ["virtio"], "alias": ["virtio:d00000004v*"]}},
                     builtin=("virtio", "ext4"))
    found = module_closure(folder, [Wanted("virtio_rng", "why"), Wanted("ext4", "why")])
    assert names(found) == ["virtio_rng"] and found.builtin == ("ext4",)
    assert text(found, "modules.alias") == ["alias virtio:d00000004v* virtio_rng"]
    assert found.modules[0].needs == ()


@pytest.mark.parametrize("suffix", [".xz", ".zst"])
def test_compressed_modules_are_carried_plain(tmp_path: Path, suffix: str) -> None:
    folder = ko.tree(tmp_path, {"a": {"alias": ["x"]}})
    plain = folder / "kernel/drivers/a.ko"
    data = plain.read_bytes()
    packed = lzma.compress(data) if suffix == ".xz" else zstandard.ZstdCompressor().compress(data)
    plain.with_name("a.ko" + suffix).write_bytes(packed)
    plain.unlink()
    found = module_closure(folder, [Wanted("a", "why")])
    assert found.modules[0].data == data and found.modules[0].path == "kernel/drivers/a.ko"


def test_a_missing_module_is_named_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no module virtio_net \(the network\)"):
        module_closure(ko.tree(tmp_path, {"a": {}}), [Wanted("virtio_net", "the network")])


def test_a_broken_dependency_and_an_empty_tree_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="module a needs gone"):
        module_closure(ko.tree(tmp_path, {"a": {"depends": ["gone"]}}), [Wanted("a", "why")])
    with pytest.raises(NotFoundError, match="holds no kernel modules"):
        module_closure(tmp_path / "nothing", [])
    with pytest.raises(UsageError, match="choose one of: virtio"):
        modules.profile("moon")


def test_a_file_that_is_no_module_is_named(tmp_path: Path) -> None:
    folder = ko.tree(tmp_path, {"a": {}})
    (folder / "kernel/drivers/a.ko").write_bytes(b"not an ELF file")
    with pytest.raises(CorruptError, match="module a is not an ELF file"):
        module_closure(folder, [Wanted("a", "why")])
