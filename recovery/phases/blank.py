"""Installing a blank or broken machine (I/O): what its disk becomes, and who it is from then on.

The journal lies on the /local that the installation makes, so until then a power cut leaves a machine that has to be
booted from the network again. The layout's GUIDs follow from the order: the same order finds its own layout again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from imaging.footprint import Footprint
from plumbing import durable
from plumbing.errors import CorruptError, DiskError, RefusedError, RerootError
from recovery import bootloader, disks, filesystems, identity, layout, lvm
from recovery import network as links
from recovery.disks import Disk, Found, Partition
from recovery.gpt import LVM_TYPE
from recovery.journal import Journal, Record, carried_out, decode, replay
from recovery.layout import LayoutPlan
from recovery.phases import room
from recovery.phases.keep import archive_folder, brief
from recovery.session import Session, check_local

if TYPE_CHECKING:
    from precious.keep import Kept

SALVAGED = "salvaged"
"""Where in the scratch, which is memory, the only copy of precious files lies while the disk is made anew."""
PIECE_BYTES = 1 << 20


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
    if any(part.type_guid == LVM_TYPE for part in disk.partitions):
        lvm.activate([disk], lambda text: session.log.say("disks", text))
        plan, disk = _plan(session)
    for line in layout.show(plan, disk).splitlines():
        session.log.say("disks", line)
    if layout.is_finished(plan, disk):
        _take_up(session, plan, disk)
    return root.size_bytes


def _take_up(session: Session, plan: LayoutPlan, disk: Disk) -> None:
    """Go on with the /local that this very order has made, if that is whole."""
    parts = _parts(plan, disk.places)
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
    """Take precious files that an unfinished upgrade left on the disk's /local into memory, or go on with those there.

    They are all that is left of the old root, and the layout is about to go over them; once it has, the copy in memory
    is the only one, and outlives this process. It goes to the new /local as soon as there is one.
    """
    kept = _taken_up(session)
    if kept is None and session.found is None and not session.local_mounted:
        kept = _search(session)
    if kept is None:
        return {"files": 0}
    if session.found is None:
        _require_room(session, kept)
    session.salvaged = kept.folder
    figures = brief(kept.to_json())
    session.log.say("preserve", f"kept {figures['files']} precious files that an unfinished upgrade had left")
    if session.found is not None:
        _keep_salvaged(session, session.journalled)
    return figures


def _require_room(session: Session, kept: Kept) -> None:
    plan, size = _plan(session)[0], sum(path.stat().st_size for path in _files(kept.folder))
    root, local = plan.partition("root"), plan.partition("local")
    assert root is not None and local is not None
    room.require(session, root.size_bytes, kept)
    filesystems.require_room("ext4", local.size_bytes, Footprint(size, 1),
                             "what an unfinished upgrade left precious on /local")


def _taken_up(session: Session) -> Kept | None:
    """Return the copy that is in memory already; a process before this one made it and came to its end."""
    there = session.places.scratch / SALVAGED
    return _verified(session, there) if there.exists() else None


def refuse_unwritten(session: Session) -> None:
    """Raise RefusedError while precious files are in memory alone: a reboot would lose them."""
    there = session.places.scratch / SALVAGED
    if there.exists():
        raise RefusedError(f"precious files of this host are in {there} and nowhere else; they are written to /local "
                           "at the next attempt, or copy them from the rescue menu's shell: do not reboot before")


def _search(session: Session) -> Kept | None:
    _, disk = _plan(session)
    for part in disk.places:
        there = disks.identify(part.device)
        if there is None or not there.fstype.startswith(("ext", "xfs")):
            continue
        if not _mount_broken(session, part.device, there.fstype):
            continue
        recover = session.places.root / "recover"
        records = _records(recover)
        if carried_out(records, session.ordered.id):
            raise RefusedError(f"order {session.ordered.id} was carried out before, as the journal on {part.device} "
                               "says; nothing is done: issue a new one")
        found = _unfinished(records, recover)
        kept = None if found is None else _into_memory(session, found)
        session.unmount(session.places.root)
        if kept is not None:
            return kept
    return None


def _mount_broken(session: Session, device: Path, fstype: str) -> bool:
    """Mount what may be the old /local, read-only but for its own journal; False when that cannot be done.

    The filesystem's journal has to be replayed, because what was synced just before a power cut is only there. What
    does not mount even after a check holds nothing that can be kept, and must not keep a broken host from its cure.
    """
    try:
        session.mount(device, session.places.root, fstype, "ro")
    except DiskError:
        try:
            check_local(device, fstype)
            session.mount(device, session.places.root, fstype, "ro")
        except RerootError as error:
            session.log.say("preserve", f"nothing can be kept from {device}: {error.sentence}")
            return False
    return True


def _records(recover: Path) -> list[Record]:
    try:
        return decode((recover / "journal").read_bytes())[0]
    except (OSError, CorruptError):
        return []


def _unfinished(records: Iterable[Record], recover: Path) -> Path | None:
    """Return the precious archive that was not put back yet, if there is one."""
    try:
        state = replay(records)
    except CorruptError:
        return None
    if state.finished or not state.wiped or state.precious_order is None:
        return None
    folder = recover / "precious" / state.precious_order
    return folder if folder.is_dir() else None


def _into_memory(session: Session, folder: Path) -> Kept:
    from recovery.phases.begin import LEAST_MEMORY_BYTES, require_memory

    require_memory(session.places.meminfo, LEAST_MEMORY_BYTES + sum(path.lstat().st_size for path in _files(folder)))
    half, whole = session.places.scratch / f"{SALVAGED}.part", session.places.scratch / SALVAGED
    _copy(session, folder, half)
    _verified(session, half)
    half.rename(whole)  # a copy under this name is a whole one, whatever became of the process that made it
    return _verified(session, whole)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _copy(session: Session, folder: Path, into: Path) -> None:
    """Copy an archive, however large, with signs of life on the way; what was at `into` goes."""
    if into.exists():
        shutil.rmtree(into)
    durable.make_folder(into, 0o700)
    files, progress = _files(folder), session.progress("preserve")
    total, done = sum(path.stat().st_size for path in files), 0
    for path in files:
        target = into / path.relative_to(folder)
        durable.make_folder(target.parent, 0o700)
        with path.open("rb") as source, target.open("wb") as stream:
            target.chmod(0o600)
            while piece := source.read(PIECE_BYTES):
                stream.write(piece)
                done += len(piece)
                progress("copying precious files", done, total)


def _verified(session: Session, folder: Path) -> Kept:
    """Read an archive back, every frame against its digest, with signs of life on the way."""
    from precious import keep

    return keep.verify(folder, session.progress("preserve"))


def wipe(session: Session) -> Mapping[str, object]:
    """Partition the disk, make its filesystems, and write down who this host is from now on."""
    plan, _ = _plan(session)
    root = plan.partition("root")
    assert root is not None
    again = session.journal is not None and session.journal.state.wiped
    archive = archive_folder(session) if session.salvaged is None and session.journal is not None else session.salvaged
    inodes = room.inodes(session, root.size_bytes, archive)
    if session.found is None:
        session.layout_begun = True
        parts = layout.apply(plan, look=session.inventory, say=lambda text: session.log.say("wipe", text),
                             root_inodes=inodes)
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
    if again:
        device = session.disks_found.root.device
        disks.make_filesystem(device, session.ordered.fstype("root"), label="reroot-root", uuid=root.fs_uuid,
                              inodes=inodes)
    # A boot area that says recovery, before there is one: nothing may start the root until it is whole.
    area = session.open_boot_area()
    assert area is not None
    bootloader.set_default(area, "recovery")
    session.unmount(session.places.boot)
    durable.write_file(session.recover / "order.json", session.envelope, 0o600)
    journal.done("wipe", {"fs_uuid": root.fs_uuid})
    return {"device": str(plan.device), "serial": plan.disk_serial, "partitions": len(plan.partitions)}


def _keep_salvaged(session: Session, journal: Journal) -> None:
    """Write the copy in memory to the new /local, and let go of it when the disk gives it back right."""
    assert session.salvaged is not None
    journal.begin("preserve")
    into = session.recover / "precious" / session.ordered.id
    durable.make_folder(into.parent, 0o700)
    _copy(session, session.salvaged, into)
    disks.sync_filesystem(session.places.local)
    _verified(session, into)
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
