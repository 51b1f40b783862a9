"""preserve and wipe (I/O): what is precious goes to /local and is read back; only then is the root made anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from plumbing.errors import RefusedError
from recovery import bootloader, disks
from recovery.phases import oldrelease, room, second
from recovery.session import Session


def archive_folder(session: Session) -> Path | None:
    """Return where the precious archive of this work lies; None when nothing was preserved."""
    order = session.journalled.state.precious_order
    return None if order is None else session.recover / "precious" / order


def preserve(session: Session) -> Mapping[str, object]:
    """Collect what is precious from the old root to /local, read it back and compare."""
    if session.ordered.mode == "install":
        from recovery.phases import blank

        return blank.salvage(session)
    from precious import keep
    from precious.policy import Policy

    journal, places = session.journalled, session.places
    if session.wiped:
        raise RefusedError("the old root was wiped and its precious archive is not in the journal; nothing more is "
                           "done to this machine: look at /local/recover/precious from the rescue menu")
    journal.begin("preserve")
    policy = Policy.from_json(session.ordered.precious)
    root, into = session.disks_found.root, session.recover / "precious" / session.ordered.id
    there = disks.check_filesystem(root, session.ordered.disks.root, "root") if session.ordered.disks else None
    session.mount(root.device, places.root, there.fstype if there else "ext4", "ro")
    keep.collect(places.root, policy, into, progress=session.progress("preserve"))
    was = oldrelease.installed(places.root)
    session.unmount(places.root)
    disks.sync_filesystem(places.local)
    kept = keep.verify(into, session.progress("preserve"))
    assert session.index is not None
    keep.refuse_losses(kept, policy)
    keep.refuse_stops(kept, policy, frozenset(entry.path for entry in session.index.entries))
    room.require(session, root.size_bytes, kept)
    keep.write_base(into, oldrelease.ask(session, was, kept, policy))
    copied = second.take(session, into)  # last: what ends the upgrade on this host alone has ended it by now
    journal.done("preserve", {"fs_uuid": there.uuid if there else None, "label": there.label if there else ""})
    return brief(kept.to_json()) | copied


def wipe(session: Session) -> Mapping[str, object]:
    """Cross the border: recovery becomes what boots, the journal says so, the root filesystem is made anew."""
    if session.ordered.mode == "install":
        from recovery.phases import blank

        return blank.wipe(session)
    journal, root = session.journalled, session.disks_found.root
    ordered = session.ordered.disks
    assert ordered is not None
    if "preserve" not in journal.state.done:
        raise RefusedError("the journal does not say that the precious files were kept; nothing is wiped")
    set_default(session, "recovery")
    journal.begin("wipe")
    # UUID and label are kept, so that the host's own fstab and the boot menu go on naming this filesystem.
    known = journal.state.data.get("preserve", {})
    uuid, label = known.get("fs_uuid"), known.get("label")
    session.log.say("wipe", f"making {ordered.root.fstype} on {root.device} (disk {root.disk_serial})")
    disks.make_filesystem(root.device, ordered.root.fstype, label=str(label or "root"),
                          uuid=str(uuid) if uuid else None,
                          inodes=room.inodes(session, root.size_bytes, archive_folder(session)))
    journal.done("wipe")
    return {"device": str(root.device), "serial": root.disk_serial}


def set_default(session: Session, entry: bootloader.Entry) -> None:
    """Make `entry` what boots, and read it back; raises RefusedError when the boot area does not hold it."""
    area = session.open_boot_area()
    if area is None:
        raise RefusedError("this machine has no boot area of reroot's; nothing is wiped: have the agent stage the "
                           "order again")
    bootloader.set_default(area, entry)
    session.unmount(session.places.boot)  # FAT is whole on the disk only after this
    area = session.open_boot_area()
    if area is None or bootloader.state(area).saved != entry:
        raise RefusedError(f"the boot area does not keep {entry} as its default; look at the disk of the ESP")
    session.unmount(session.places.boot)


def brief(figures: Mapping[str, object], most: int = 40) -> dict[str, object]:
    """Return figures short enough for a report: of a long list the beginning, and how long it was."""
    found: dict[str, object] = {}
    for name, value in figures.items():
        if isinstance(value, list) and len(value) > most:
            found[name], found[f"{name}_count"] = value[:most], len(value)
        else:
            found[name] = value
    return found
