"""Volume groups: what is written and read is held against the real lvm; the kernel's part is a VM test's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from disk_images import Bench, script
from hypothesis import given
from hypothesis import strategies as st
from loopdevice import attached

from plumbing.errors import CorruptError, DiskError
from plumbing.run import run
from recovery import devmapper, layout, lvm, lvm_format
from recovery.devmapper import Target
from recovery.lvm_format import EXTENT_BYTES, HEAD_BYTES, Group, Segment, Volume, ident
from recovery.order import Layout, LayoutPartition

MIB = 1 << 20
SIZE = 256 * MIB
VOLUMES = [("root", ident("o", "root"), 20), ("local", ident("o", "local"), 30)]
HEAD = lvm_format.head("vg0", ident("o", "group"), ident("o", "pv"), SIZE, VOLUMES)


class Real:
    """Debian's lvm on devices of its own; without device-mapper it reads and writes metadata all the same."""

    def __init__(self, *devices: Path) -> None:
        self.devices = devices
        accepted = ", ".join(f'"a|^{device}$|"' for device in devices)
        self._config = (f'devices {{ filter = [{accepted}, "r|.*|"] use_devicesfile = 0 '
                        'obtain_device_list_from_udev = 0 external_device_info_source = "none" '
                        "multipath_component_detection = 0 } backup { backup = 0 archive = 0 } "
                        "activation { udev_sync = 0 udev_rules = 0 }")

    def do(self, *words: str) -> str:
        return run(["lvm", *words[:1], "--config", self._config, *words[1:]]).text


@contextmanager
def real(folder: Path, *heads: bytes) -> Iterator[Real]:
    with ExitStack() as stack:
        devices = []
        for number, head in enumerate(heads):
            image = folder / f"{number}.img"
            with image.open("wb") as stream:
                stream.truncate(SIZE)
                stream.write(head)
            devices.append(stack.enter_context(attached(image)))
        yield Real(*devices)


@pytest.mark.root
def test_the_real_lvm_accepts_a_group_that_was_made_here(tmp_path: Path) -> None:
    with real(tmp_path, HEAD) as tools:
        tools.do("vgck", "vg0")
        rows = tools.do("lvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "lv_name,lv_size,lv_uuid", "vg0")
        found = {row.split()[0]: (int(row.split()[1]), row.split()[2].replace("-", "")) for row in rows.splitlines()}
        assert found == {name: (count * EXTENT_BYTES, volume) for name, volume, count in VOLUMES}
        assert tools.do("pvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "pv_size,pe_start").split() == [
            str(lvm_format.extents(SIZE) * EXTENT_BYTES), str(HEAD_BYTES)]
        tools.do("vgchange", "--addtag", "grown", "vg0")  # and it goes on from there
        changed = lvm_format.read(tools.devices[0].read_bytes()[:HEAD_BYTES])
    first = lvm_format.read(HEAD)
    assert first is not None and changed is not None and first.group is not None and changed.group is not None
    assert changed.group == replace(first.group, version=2)


TWO = """contents = "Text Format Volume Group"
version = 1
vg-a {
  id = "%s" seqno = 5 format = "lvm2" status = ["RESIZEABLE", "READ", "WRITE"] extent_size = 8192 max_lv = 0 max_pv = 0
  physical_volumes {
    pv0 { id = "%s" device = "%s" status = ["ALLOCATABLE"] dev_size = 524288 pe_start = 2048 pe_count = 63 }
    pv1 { id = "%s" device = "%s" status = ["ALLOCATABLE"] dev_size = 524288 pe_start = 2048 pe_count = 63 }
  }
  logical_volumes {
    my-root { id = "%s" status = ["READ", "WRITE", "VISIBLE"] segment_count = 2 # a comment
      segment1 { start_extent = 0 extent_count = 10 type = "striped" stripe_count = 2 stripe_size = 128
                 stripes = ["pv0", 0, "pv1", 3] }
      segment2 { start_extent = 10 extent_count = 5 type = "striped" stripe_count = 1 stripes = ["pv1", 20] } }
  }
}
"""


@pytest.mark.root
def test_a_group_of_the_real_lvm_is_read_also_when_its_ring_of_metadata_has_gone_round(tmp_path: Path) -> None:
    with real(tmp_path, b"", b"") as tools:
        one, two = map(str, tools.devices)
        tools.do("vgcreate", "--metadatasize", "60k", "vg-a", one, two)
        rows = tools.do("pvs", "--noheadings", "-o", "pv_name,pv_uuid").split()
        group, (first, second) = tools.do("vgs", "--noheadings", "-o", "vg_uuid").strip(), (rows[1], rows[3])
        volume = ident("x")
        text = tmp_path / "vg-a"
        text.write_text(TWO % (group, first, one, second, two, _dashed(volume)))
        tools.do("vgcfgrestore", "--file", str(text), "vg-a")
        tools.do("vgchange", *(word for number in range(35) for word in ("--addtag", f"{number}" + "x" * 1000)), "vg-a")
        straddled, tags = False, 0
        while not straddled:
            tools.do("vgchange", "--addtag", f"more{tags}", "vg-a")
            tags += 1
            head = tools.devices[0].read_bytes()[:HEAD_BYTES]
            found = lvm_format.read(head)
            assert found is not None and found.group is not None
            ident_found, group_found = found.ident, found.group
            size, offset, length = (int.from_bytes(head[4096 + at:4096 + at + 8], "little") for at in (32, 40, 48))
            straddled = offset + length > size
    ones, twos = first.replace("-", ""), second.replace("-", "")
    assert ident_found == ones
    assert group_found.name == "vg-a" and group_found.starts == {ones: MIB, twos: MIB}
    assert group_found.volumes == (Volume("my-root", volume, (
        Segment(0, 10, ((ones, 0), (twos, 3)), 64 << 10), Segment(10, 5, ((twos, 20),), 0))),)
    assert lvm.table(group_found, group_found.volumes[0], {ones: "8:1", twos: "8:17"}) == [
        Target(0, 81920, "striped", f"2 128 8:1 2048 8:17 {2048 + 3 * 8192}"),
        Target(81920, 40960, "linear", f"8:17 {2048 + 20 * 8192}")]
    assert lvm.mapped_name("vg-a", "my-root") == "vg--a-my--root"


def _dashed(volume: str) -> str:
    return "-".join((volume[:6], *(volume[at:at + 4] for at in range(6, 26, 4)), volume[26:]))


@given(st.integers(0, HEAD_BYTES - 1), st.integers(1, 255))
def test_a_damaged_head_is_no_other_group(at: int, flip: int) -> None:
    damaged = bytearray(HEAD)
    damaged[at] ^= flip
    try:
        found = lvm_format.read(bytes(damaged))
    except CorruptError:
        return
    assert found in (None, lvm_format.read(HEAD))


@given(st.text(max_size=200) | st.text(alphabet='{}[]=," ab1#\n\\', max_size=200))
def test_any_text_is_a_group_or_an_error(text: str) -> None:
    with suppress(CorruptError):
        assert isinstance(lvm_format.parse(text), Group)


def test_kinds_that_are_more_than_runs_of_extents_are_left_out() -> None:
    group = lvm_format.read(HEAD)
    assert group is not None and group.group is not None
    text = HEAD[4096 + 512:].split(b"\0")[0].decode()
    thin = lvm_format.parse(text.replace('type = "striped"', 'type = "thin"', 1))
    assert [volume.name for volume in thin.volumes] == ["local"]
    hidden = lvm_format.parse(text.replace(', "VISIBLE"', "", 1))
    assert [volume.name for volume in hidden.volumes] == ["local"]
    assert lvm_format.parse(text.replace('"RESIZEABLE"', '"RESIZEABLE", "EXPORTED"')).volumes == ()


def test_a_group_is_left_out_when_a_disk_of_it_is_missing_or_there_twice(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, made, said = Bench(tmp_path), list[str](), list[str]()
    monkeypatch.setattr(devmapper, "create", lambda name, uuid, rows: made.append(f"{name} {uuid[:4]} {len(rows)}"))
    bench.disk("vda", "a").write_bytes(HEAD)
    lvm.activate(bench.look(), said.append)
    assert made == ["vg0-root LVM- 1", "vg0-local LVM- 1"] and said == []
    made.clear()
    bench.disk("vdb", "b").write_bytes(HEAD)
    lvm.activate(bench.look(), said.append)
    assert made == [] and said == ["the volume group vg0 is left out: a disk of it is missing, or there twice"]
    bench.dev.joinpath("vdb").write_bytes(HEAD.replace(b"LVM2 x[5A", b"LVM2 x[5B"))
    said.clear()
    lvm.activate(bench.look(), said.append)
    assert len(made) == 2 and "vdb is left out" in said[0]


def test_a_volume_is_named_by_its_id_and_its_disks(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.disk("vda", "alpha", table=script())
    bench.disk("vdb", "beta")
    volume = f"LVM-{ident('o', 'group')}{ident('o', 'root')}"

    def mapped(name: str, uuid: str, *slaves: str) -> None:
        folder = bench.sysfs / "block" / name
        (folder / "dm").mkdir(parents=True)
        (folder / "dm/uuid").write_text(uuid + "\n")
        (folder / "dm/name").write_text(f"vg0-{name}\n")
        (folder / "size").write_text("8192\n")
        for slave in slaves:
            (folder / "slaves" / slave).mkdir(parents=True)

    mapped("dm-0", volume, "vda3", "vdb")
    mapped("dm-1", volume[:-1] + "x", "dm-0")
    mapped("dm-2", "CRYPT-LUKS2-1", "vda3")
    mapped("dm-3", volume[:-1] + "y", "vda3", "vdz")
    (vda, vdb) = bench.look()
    assert vdb.volumes == () and len(vda.volumes) == 1
    found = vda.volumes[0]
    assert (found.device.name, found.partuuid) == ("dm-0", volume)
    assert (found.disk_serial, found.size_bytes) == ("alpha+beta", 4 * MIB)
    assert (found.source, found.word) == ("/dev/mapper/vg0-dm-0", volume)


WANTED = Layout("alpha", "bios", (
    LayoutPartition("bios", "1MiB", None), LayoutPartition("esp", "40MiB", "vfat"),
    LayoutPartition("root", "21MiB", "ext4"), LayoutPartition("local", "rest", "ext4")), "vg0")


def test_a_layout_with_a_group_is_one_partition_with_volumes_of_known_ids(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.disk("vda", "alpha", size_mib=160)
    plan = layout.plan(WANTED, bench.look()[0], "order")
    assert plan == layout.plan(WANTED, bench.look()[0], "order")
    assert [(part.name, part.size_bytes >> 20) for part in plan.places] == [
        ("bios", 1), ("esp", 40), ("lvm", 117), ("root", 24), ("local", 92)]
    assert plan.holder.name == "lvm" and 'name="reroot-lvm-new"' in layout.sfdisk_script(plan)
    assert "root         24 MiB  ext4  volume of vg0" in layout.show(plan, bench.look()[0])
    assert all(lvm.is_volume(ref.partuuid) for ref in (plan.disks.root, plan.disks.local) if ref is not None)
    bench.disk("vdb", "alpha", size_mib=130)
    with pytest.raises(DiskError, match="the volumes of group vg0 do not fit into 87 MiB"):
        layout.plan(WANTED, bench.look()[1], "order")
