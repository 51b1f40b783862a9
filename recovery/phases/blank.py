"""Installing a blank or broken machine (I/O): what its disk becomes, and who it is from then on.

The journal lies on the /local that the installation makes, so until then a power cut leaves a machine that has to be
booted from the network again. The layout's GUIDs follow from the order: the same order finds its own layout again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from plumbing import durable
from plumbing.errors import CorruptError, DiskError, RefusedError, RerootError
from recovery import bootloader, disks, identity, layout
from recovery import network as links
from recovery.disks import Disk, Found, Partition
from recovery.journal import Journal, decode, replay
from recovery.layout import LayoutPlan
from recovery.phases.keep import brief
from recovery.session import Session, check_local


def _plan(session: Session) -> tuple[LayoutPlan, Disk]:
    wanted = session.ordered.layout
    assert wanted is not None
    disk = disks.find_disk(session.inventory(), wanted.disk_serial)
    return layout.plan(wanted, disk, session.ordered.id), disk


def find(session: Session) -> int:
    """Find the disk, see that the layout fits it and this firmware, and take up an installation that was cut short.

    Returns the size of the root to be, in bytes.
    """
    wanted = session.ordered.layout
    assert wanted is not None
    uefi = (session.places.sysfs / "firmware/efi").is_dir()
    if uefi != (wanted.firmware == "uefi"):
        raise RefusedError(f"the order's layout is for {wanted.firmware} firmware and this machine was started by "
                           f"{'uefi' if uefi else 'bios'}; correct the host's entry or the machine's boot settings")
    plan, disk = _plan(session)
    if plan.partition("local") is None:
        raise RefusedError("the order's layout has no local partition, where the journal and the host's identity live; "
                           "add one to the host's entry")
    root = plan.partition("root")
    assert root is not None
    for line in layout.show(plan, disk).splitlines():
        session.log.say("disks", line)
    if layout.is_finished(plan, disk):
        _take_up(session, plan, disk)
    return root.size_bytes


def _take_up(session: Session, plan: LayoutPlan, disk: Disk) -> None:
    """Go on with the /local that this very order has made, if that is whole."""
    parts = _parts(plan, disk.partitions)
    local = parts.local
    there = disks.identify(local.device) if local is not None else None
    made = plan.partition("local")
    if local is None or there is None or made is None or there.uuid != made.fs_uuid:
        return
    session.log.say("disks", "this order's layout is on the disk already; going on from there")
    session.found = parts
    session.attach_local(local.device, there.fstype)
    session.identity = session.identity or identity.load(session.places.local)
    if session.identity is not None and session.identity.host != session.ordered.host:
        raise RefusedError(f"the order installs {session.ordered.host} and this disk says it is "
                           f"{session.identity.host}; correct the host's entry and issue the order again")
    _journal_order(session)


def _journal_order(session: Session) -> Journal:
    journal, ordered = session.journalled, session.ordered
    assert ordered.release is not None
    journal.order(ordered.id, ordered.mode, ordered.release.digest)
    return journal


def _parts(plan: LayoutPlan, parts: Iterable[Partition]) -> Found:
    known = {part.partuuid: part for part in parts}
    refs = plan.disks
    local = known[refs.local.partuuid] if refs.local else None
    return Found(known[refs.root.partuuid], local, known[refs.boot.partuuid])


def salvage(session: Session) -> Mapping[str, object]:
    """Look for precious files that an unfinished upgrade left on the disk's /local, and take them into memory.

    They are all that is left of the old root, and the layout is about to go over them.
    """
    if session.found is not None or session.local_mounted:
        return {"files": 0}
    _, disk = _plan(session)
    for part in disk.partitions:
        there = disks.identify(part.device)
        if there is None or not there.fstype.startswith("ext"):
            continue
        if not _mount_broken(session, part.device, there.fstype):
            continue
        found = _unfinished(session.places.root / "recover")
        figures = None if found is None else _into_memory(session, found)
        session.unmount(session.places.root)
        if figures is not None:
            return figures
    return {"files": 0}


def _mount_broken(session: Session, device: Path, fstype: str) -> bool:
    """Mount what may be the old /local, read-only but for its own journal; False when that cannot be done.

    The filesystem's journal has to be replayed, because what was synced just before a power cut is only there. What
    does not mount even after a check holds nothing that can be kept, and must not keep a broken host from its cure.
    """
    try:
        session.mount(device, session.places.root, fstype, "ro")
    except DiskError:
        try:
            check_local(device)
            session.mount(device, session.places.root, fstype, "ro")
        except RerootError as error:
            session.log.say("preserve", f"nothing can be kept from {device}: {error.sentence}")
            return False
    return True


def _unfinished(recover: Path) -> Path | None:
    """Return the precious archive that was not put back yet, if there is one."""
    try:
        state = replay(decode((recover / "journal").read_bytes())[0])
    except (OSError, CorruptError):
        return None
    if state.finished or not state.wiped or state.precious_order is None:
        return None
    folder = recover / "precious" / state.precious_order
    return folder if folder.is_dir() else None


def _into_memory(session: Session, folder: Path) -> Mapping[str, object]:
    from precious import keep

    size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
    from recovery.phases.begin import LEAST_MEMORY_BYTES, require_memory

    require_memory(session.places.meminfo, LEAST_MEMORY_BYTES + size)
    into = session.places.scratch / "salvaged"
    if into.exists():
        shutil.rmtree(into)
    shutil.copytree(folder, into, symlinks=True)
    kept = keep.verify(into)
    session.salvaged = into
    figures = brief(kept.to_json())
    session.log.say("preserve", f"kept {figures['files']} precious files that an unfinished upgrade had left")
    return figures


def wipe(session: Session) -> Mapping[str, object]:
    """Partition the disk, make its filesystems, and write down who this host is from now on."""
    plan, _ = _plan(session)
    again = session.journal is not None and session.journal.state.wiped
    if session.found is None:
        session.layout_begun = True
        parts = layout.apply(plan, look=session.inventory, say=lambda text: session.log.say("wipe", text))
        session.found = _parts(plan, parts)
        local = session.found.local
        assert local is not None
        session.attach_local(local.device, "ext4")
        again = False
    journal = _journal_order(session)
    if session.salvaged is not None:
        _keep_salvaged(session, journal)
    journal.begin("wipe")
    session.layout_begun = False
    _become(session)
    root = plan.partition("root")
    assert root is not None
    if again:
        device = session.disks_found.root.device
        disks.make_filesystem(device, root.fs or "ext4", label="reroot-root", uuid=root.fs_uuid)
    # A boot area that says recovery, before there is one: nothing may start the root until it is whole.
    area = session.open_boot_area()
    assert area is not None
    bootloader.set_default(area, "recovery")
    session.unmount(session.places.boot)
    durable.write_file(session.recover / "order.json", session.envelope, 0o600)
    journal.done("wipe", {"fs_uuid": root.fs_uuid})
    return {"device": str(plan.device), "serial": plan.disk_serial, "partitions": len(plan.partitions)}


def _keep_salvaged(session: Session, journal: Journal) -> None:
    from precious import keep

    assert session.salvaged is not None
    journal.begin("preserve")
    into = session.recover / "precious" / session.ordered.id
    durable.make_folder(into.parent, 0o700)
    if into.exists():
        shutil.rmtree(into)
    shutil.copytree(session.salvaged, into, symlinks=True)
    disks.sync_filesystem(session.places.local)
    keep.verify(into)
    journal.done("preserve")
    shutil.rmtree(session.salvaged)
    session.salvaged = None


def _become(session: Session) -> None:
    """Write the host's identity and enrol its key; both are the same when they are done again."""
    from recovery.report import enrol

    ordered = session.ordered
    here = links.links(session.places.sysfs / "class/net")
    network = links.to_json(links.Network(tuple(links.Link(mac) for mac in here)))
    session.identity = identity.create(session.places.local, ordered.host, ordered.control, ordered.content,
                                       session.places.trust_root.read_bytes(), network)
    enrol(session.identity, {"order": ordered.id, "nonce": ordered.nonce})
    session.reporter.identify(session.identity)
