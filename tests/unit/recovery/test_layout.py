"""A blank disk's layout: the same plan every time, real sfdisk and mkfs on image files, resumed after a cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from disk_images import Bench, script, table

from plumbing.errors import CommandError, DiskError, RefusedError
from plumbing.run import run
from recovery import layout
from recovery.disks import find_all, identify, make_filesystem
from recovery.order import Layout, LayoutPartition

ORDER = "6f1d5f0e-5b0b-4d53-9f0b-8f1d6a2c7e11"
WANTED = Layout("alpha-0", "bios", (
    LayoutPartition("bios", "1MiB", None), LayoutPartition("esp", "40MiB", "vfat"),
    LayoutPartition("root", "rest", "ext4"), LayoutPartition("local", "32MiB", "ext4"),
))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.disk("vda", "alpha-0", size_mib=160, table=script())
    return made


def make_plan(bench: Bench) -> layout.LayoutPlan:
    return layout.plan(WANTED, bench.look()[0], ORDER)


def test_a_plan_is_a_value(bench: Bench) -> None:
    plan = make_plan(bench)
    assert plan == make_plan(bench)
    assert [(p.name, p.start_bytes >> 20, p.size_bytes >> 20) for p in plan.partitions] == [
        ("bios", 1, 1), ("esp", 2, 40), ("root", 42, 85), ("local", 127, 32)]
    assert len({p.partuuid for p in plan.partitions} | {plan.disk_guid}) == 5
    other = layout.plan(WANTED, bench.look()[0], ORDER.replace("6", "7", 1))
    assert {p.partuuid for p in other.partitions}.isdisjoint(p.partuuid for p in plan.partitions)


def test_it_is_shown_with_what_it_destroys(bench: Bench) -> None:
    shown = layout.show(make_plan(bench), bench.look()[0])
    assert "every byte on it goes (vda1 1 MiB, vda2 40 MiB, vda3 20 MiB)" in shown
    assert "3 root         85 MiB  ext4" in shown


def test_it_is_made_and_found_again(bench: Bench) -> None:
    plan, said = make_plan(bench), list[str]()
    parts = layout.apply(plan, look=bench.look, say=said.append)
    assert [part.name for part in parts] == ["reroot-bios", "REROOT-ESP", "reroot-root", "reroot-local"]
    assert len(said) == 4
    found = find_all(bench.look(), plan.disks)
    for part, planned in ((found.root, plan.partition("root")), (found.boot, plan.partition("esp"))):
        there = identify(part.device)
        assert there is not None
        assert planned is not None
        assert there.uuid == planned.fs_uuid
    gpt = table(plan.device)
    assert gpt is not None
    assert gpt.disk_guid == plan.disk_guid

    root = found.root.device.read_bytes()
    said.clear()
    assert layout.apply(plan, look=bench.look, say=said.append) == parts
    assert said == [f"{plan.device}: partitions and filesystems are as planned already"]
    assert found.root.device.read_bytes() == root


def test_a_cut_before_the_end_makes_the_filesystems_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, made = make_plan(bench), list[str]()

    def cut(device: Path, fstype: str, *, label: str | None = None, uuid: str | None = None,
            inodes: int | None = None) -> None:
        if label == "reroot-root" and len(made) == 1:
            raise CommandError("the power was cut")
        made.append(str(label))
        make_filesystem(device, fstype, label=label, uuid=uuid)

    monkeypatch.setattr(layout, "make_filesystem", cut)
    with pytest.raises(CommandError):
        layout.apply(plan, look=bench.look)
    assert layout.is_made(plan, bench.look()[0])
    made.append("again")
    layout.apply(plan, look=bench.look)
    assert made == ["REROOT-ESP", "again", "REROOT-ESP", "reroot-root", "reroot-local"]


def test_another_disk_is_refused(bench: Bench) -> None:
    with pytest.raises(DiskError, match="has the serial alpha-0, the order names beta-0; nothing was touched"):
        layout.plan(replace(WANTED, disk_serial="beta-0"), bench.look()[0], ORDER)
    plan = make_plan(bench)
    before = plan.device.read_bytes()
    (bench.sysfs / "block/vda/serial").write_text("changed\n")
    with pytest.raises(RefusedError, match="no longer the one disk"):
        layout.apply(plan, look=bench.look)
    bench.disk("vdb", "changed", size_mib=160)
    with pytest.raises(RefusedError, match="no longer the one disk"):
        layout.apply(replace(plan, disk_serial="changed"), look=bench.look)
    assert plan.device.read_bytes() == before


@pytest.mark.parametrize("size_mib", [40, 100, 138])
def test_a_disk_too_small_is_refused(tmp_path: Path, size_mib: int) -> None:
    bench = Bench(tmp_path / "small")
    bench.disk("vda", "alpha-0", size_mib=size_mib)
    with pytest.raises(DiskError, match=f"has {size_mib} MiB; use a larger disk"):
        make_plan(bench)


def test_a_layout_whose_filesystems_may_be_half_made_is_not_taken_up(bench: Bench) -> None:
    """A cut among the mkfs runs: the root partition still says that they are not done, so all are made again."""
    plan = make_plan(bench)
    layout.apply(plan, look=bench.look)
    assert layout.is_finished(plan, bench.look()[0])
    run(["sfdisk", "--quiet", "--part-label", plan.device, "3", layout.LABELS["root"] + layout.UNFINISHED])
    assert layout.is_made(plan, bench.look()[0]) and not layout.is_finished(plan, bench.look()[0])
