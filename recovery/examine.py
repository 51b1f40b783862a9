"""What the rescue menu shows of a machine (I/O, reading only): what it is, whether its filesystems are sound."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from plumbing import clock
from plumbing.errors import DiskError, RerootError
from plumbing.run import run
from recovery import disks, lvm
from recovery import network as links
from recovery.disks import Partition
from recovery.log import size
from recovery.session import Session

MOUNTS = Path("/mnt")
_MODELS = ("sys_vendor", "product_name", "product_serial")


def describe(session: Session) -> Iterator[str]:
    """Yield what this machine is, for a person in front of it."""
    sysfs = session.places.sysfs
    yield f"host:     {session.host}"
    yield f"time:     {clock.iso(clock.wall())}"
    words = []
    for name in _MODELS:
        path = sysfs / "class/dmi/id" / name
        if os.access(path, os.R_OK):
            words.append(path.read_text(errors="replace").strip())
    yield f"machine:  {' '.join(words) or 'unknown'}"
    memory = next((line.split()[1] for line in session.places.meminfo.read_text().splitlines()
                   if line.startswith("MemTotal:")), "0")
    yield f"memory:   {size(int(memory) * 1024)}, kernel {os.uname().release} {os.uname().machine}"
    addresses = session.network.addresses if session.network else {}
    for mac, name in links.links(sysfs / "class/net").items():
        yield f"network:  {name} {mac} {addresses.get(name, 'no address')}"
    for disk in session.inventory():
        yield f"disk:     {disks.describe([disk])}"
    if session.order is not None:
        yield f"order:    {session.order.id} ({session.order.mode}), valid until {session.order.expires}"
    else:
        yield "order:    none that is valid; nothing will be touched"
    state = session.journal.state if session.journal is not None else None
    if state is None:
        yield "journal:  none"
    else:
        yield (f"journal:  order {state.order}, next phase {state.resume or 'none'}, "
               f"{'the root was wiped' if state.wiped and not state.finished else 'nothing is half done'}")
        if state.last_failure:
            yield f"          last failure: {state.last_failure}"


def check_disks(session: Session, under: Path = MOUNTS) -> Iterator[str]:
    """Check every filesystem without repairing it and mount it read-only below `under`; yields what came of it."""
    left_out = list[str]()
    lvm.activate(session.inventory(), left_out.append)
    yield from left_out
    parts = [part for disk in session.inventory() for part in disk.places]
    if not parts:
        yield "there is no partition on this machine that can be seen"
    for part in parts:
        try:
            yield _check_one(part, under)
        except RerootError as error:
            yield f"{part.device}: {error.sentence}"


def _check_one(part: Partition, under: Path) -> str:
    there = disks.identify(part.device)
    if there is None:
        return f"{part.device} ({part.name or 'no name'}): no filesystem known here"
    mounted = _mounted_at(part.device)
    if mounted is not None:
        return f"{part.device} ({there.fstype}): mounted at {mounted} already"
    verdict = _verdict(part.device, there.fstype)
    target = under / part.device.name
    try:
        disks.mount(part.device, target, there.fstype, *quietly(there.fstype))
    except DiskError as error:
        return f"{part.device} ({there.fstype}): {verdict}; {error.sentence}"
    return f"{part.device} ({there.fstype}, {size(part.size_bytes)}): {verdict}, mounted read-only at {target}"


def quietly(fstype: str) -> tuple[str, ...]:
    """Return the options that mount without writing: a plain read-only mount of ext4 or XFS replays the journal."""
    return ("ro", *{"ext3": ("noload",), "ext4": ("noload",), "xfs": ("norecovery",)}.get(fstype, ()))


def _verdict(device: Path, fstype: str) -> str:
    if not fstype.startswith("ext"):
        return "not checked"
    done = run(["e2fsck", "-n", device], check=False, timeout_s=1800)
    return "clean" if done.status == 0 else f"e2fsck -n finds errors (status {done.status})"


def _mounted_at(device: Path) -> str | None:
    for line in Path("/proc/mounts").read_text(errors="surrogateescape").splitlines():
        source, target = line.split(" ")[:2]
        if source == str(device):
            return target
    return None
