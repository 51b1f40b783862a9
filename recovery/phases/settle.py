"""putback, bootloader, finish (I/O): the host's own things into the new root, and the way to start it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from plumbing import clock, durable
from plumbing.errors import CorruptError, DiskError, NotFoundError, RefusedError
from recovery import bootloader, disks, filesystems, firststage, fstab, hostkeys
from recovery.phases import blank, second
from recovery.phases.fill import mount_root
from recovery.phases.keep import archive_folder, brief, set_default
from recovery.session import Session

if TYPE_CHECKING:
    from precious.place import PutBackReport

RUNTIME = "usr/lib/reroot"
UNIT = "reroot-agent.service"
_UNIT_TEXT = """[Unit]
Description=reroot agent: reports this host, takes orders, stages releases
After=network-online.target
Wants=network-online.target
RequiresMountsFor=/local

[Service]
ExecStart=/usr/lib/reroot/lib/ld-linux-x86-64.so.2 --library-path /usr/lib/reroot/lib \\
  /usr/lib/reroot/bin/python3 -I -m fleet.agent
Restart=always
RestartSec=10

[Install]
WantedBy=multi-user.target
"""


def put_back(session: Session) -> Mapping[str, object]:
    """Put the precious files into the new root."""
    journal = session.journalled
    journal.begin("putback")
    folder = archive_folder(session)
    if folder is None:
        journal.done("putback")
        return {"put_back": 0}
    root = mount_root(session)
    try:
        report = _from(session, folder, root).to_json()
    except (CorruptError, DiskError) as error:
        spare = second.instead(session, folder)
        if spare is None:
            raise
        folder, placed = spare, _from(session, spare, root)
        placed.notes.insert(0, f"the archive on /local is damaged, and the second copy was put back: {error.sentence}")
        report = placed.to_json()
    disks.sync_filesystem(root)
    durable.write_file(folder / "putback.json", json.dumps(report, indent=1).encode(), 0o600)
    journal.done("putback")
    for name, value in report.items():
        if isinstance(value, list) and value:
            session.log.say("putback", f"{name}: {len(value)}")
    return brief(report)


def _from(session: Session, folder: Path, root: Path) -> PutBackReport:
    from precious import putback
    from precious.policy import Policy

    assert session.index is not None
    return putback.put_back(folder, root, Policy.from_json(session.ordered.precious), session.index,
                            session.progress("putback"))


def make_bootable(session: Session) -> Mapping[str, object]:
    """Write what makes the new root this host's: mounts, name, agent, release file, and the way to start it."""
    session.journalled.begin("bootloader")
    root = mount_root(session)
    if session.ordered.mode == "install":
        write_inside(root, "etc/hostname", session.ordered.host.encode() + b"\n")
        make_host_keys(session, root)
    told_fstab = write_fstab(session, root)
    copy_runtime(session.places.runtime, root)
    enable_agent(root)
    write_release(session, root)
    system = boot_area(session, root)
    disks.sync_filesystem(root)
    session.journalled.done("bootloader")
    return {"kernel": system.kernel, "config": system.config, "fstab": told_fstab}


def finish(session: Session) -> Mapping[str, object]:
    """Say that it is done, where the next boot looks for it, and in this order: journal, then boot default."""
    blank.refuse_unwritten(session)
    session.detach()
    if session.journalled.state.must_run("finish"):
        session.journalled.begin("finish")
        session.journalled.done("finish")
    set_default(session, "system")
    return {}


# -- the new root --------------------------------------------------------------------------------------------


def inside(root: Path, path: str) -> Path:
    """Return root/path with its folder made; raises RefusedError when a link on the way leads out of the root."""
    target = root / path
    folder = target.parent
    missing = [folder, *folder.parents]
    for ancestor in reversed(missing[:missing.index(root)]):
        if not os.path.lexists(ancestor):
            ancestor.mkdir(mode=0o755)
    if not folder.resolve().is_relative_to(root.resolve()):
        raise RefusedError(f"/{path} cannot be written to the new root: a link on its way leads out of it; correct the "
                           "release or the precious policy")
    return target


def write_inside(root: Path, path: str, data: bytes, mode: int = 0o644) -> None:
    """Replace a file of the new root; a link of that name is replaced, not followed."""
    durable.write_file(inside(root, path), data, mode)


def make_host_keys(session: Session, root: Path) -> None:
    """Give an installed system its SSH host keys, unless precious put the old ones back."""
    if not hostkeys.wanted(root):
        return
    for told in hostkeys.make(session.ordered.host, lambda path, data, mode: write_inside(root, path, data, mode)):
        session.log.say("bootloader", f"new SSH host key: {told}")


def write_fstab(session: Session, root: Path) -> str:
    """Make /etc/fstab name the partitions that are there; returns what was done, for the report.

    An upgrade keeps the partitions, so a file that names a root is left alone. An installation has made new ones: what
    came with the release or was put back still names the old, and a system whose /local never shows up does not start.
    """
    found, text = session.disks_found, fstab.read(root)
    install = session.ordered.mode == "install"
    if "/" in fstab.points(text) and not install:
        return "kept"
    fstype, local = session.ordered.fstype("root"), session.ordered.fstype("local")
    kind = filesystems.ROOTS[fstype]
    mounts = [fstab.Mount(found.root.source, ("/",), fstype, kind.options, kind.check)]
    if found.local is not None:
        mounts.append(fstab.Mount(found.local.source, ("/local",), local, "defaults", 0 if local == "xfs" else 2))
    mounts.append(fstab.Mount(found.boot.source, ("/boot/efi", "/efi"), "vfat", "umask=0077", 2))
    kept = text if fstab.points(text) else ""
    fresh = fstab.rewritten(kept or f"{fstab.HEADER}\n", mounts)
    for mount in mounts[1:]:
        _mount_point(root, next(point for point in mount.points if point in fstab.points(fresh))[1:])
    if kept and fresh != text:
        write_inside(root, fstab.BEFORE, text.encode("utf-8", "surrogateescape"))
        session.log.say("bootloader", f"/etc/fstab names the new partitions, the one before is /{fstab.BEFORE}; its "
                                      "other lines were kept: look whether what they name is still there")
    write_inside(root, "etc/fstab", fresh.encode("utf-8", "surrogateescape"))
    return f"rewritten, the one before is /{fstab.BEFORE}" if kept else "written"


def _mount_point(root: Path, path: str) -> None:
    folder = inside(root, path)
    if not os.path.lexists(folder):
        folder.mkdir(mode=0o755)


def copy_runtime(source: Path, root: Path) -> None:
    """Copy the host runtime this recovery runs from into the new root, in place of any that is there."""
    if not (source / "bin").is_dir():
        raise NotFoundError(f"{source} is not a host runtime; build the recovery image again")
    target = inside(root, RUNTIME)
    if os.path.lexists(target):
        if target.is_symlink() or not target.is_dir():
            target.unlink()
        else:
            shutil.rmtree(target)
    shutil.copytree(source, target, symlinks=True)


def enable_agent(root: Path) -> None:
    """Put the agent's unit into the new root and enable it, as `systemctl enable` would."""
    write_inside(root, f"etc/systemd/system/{UNIT}", _UNIT_TEXT.encode())
    link = inside(root, f"etc/systemd/system/multi-user.target.wants/{UNIT}")
    if os.path.lexists(link):
        link.unlink()
    link.symlink_to(f"/etc/systemd/system/{UNIT}")


def write_release(session: Session, root: Path) -> None:
    """Write /etc/reroot/release.json: what this root is and which order brought it."""
    ordered, release = session.ordered, session.release
    assert release is not None
    words = {"release": release.ref, "digest": release.digest, "order": ordered.id, "level": ordered.level or "",
             "installed": clock.iso(clock.wall())}
    write_inside(root, "etc/reroot/release.json", json.dumps(words, indent=1).encode() + b"\n")


# -- the boot area -------------------------------------------------------------------------------------------


def boot_area(session: Session, root: Path) -> bootloader.SystemBoot:
    """Write the menu for the new root, on a fresh disk recovery and the first stage too; recovery stays the default."""
    found = session.disks_found
    there = disks.identify(found.root.device)
    assert there is not None
    system = bootloader.find_system(root, found.root.source, there.uuid, extra=consoles(session))
    spec = bootloader.BootSpec(
        session.ordered.host, found.root.source, there.uuid, found.local.word if found.local else None,
        session.ordered.control, system)
    area = session.open_boot_area()
    assert area is not None
    if session.ordered.mode == "install":
        _first_stage(session, area, spec)
    else:
        bootloader.write_menu(area, spec)
    session.unmount(session.places.boot)
    return system


def consoles(session: Session) -> tuple[str, ...]:
    """Return the console words that recovery itself was started with: where people look at this machine."""
    return tuple(f"console={name}" for name in session.command_line.consoles)


def _first_stage(session: Session, area: Path, spec: bootloader.BootSpec) -> None:
    from recovery.phases import content

    image = content.recovery_files(session)
    files = bootloader.RecoveryFiles(image["vmlinuz"], image["initrd.img"], image.get("grubx64.efi"))
    bootloader.install(area, files, spec, when_unset="recovery")
    layout, found = session.ordered.layout, session.disks_found
    assert layout is not None
    disk = next(disk for disk in session.inventory() if disk.device == found.boot.disk_device)
    firststage.install(disk, found.boot.partuuid, image, uefi=layout.firmware == "uefi",
                       say=lambda text: session.log.say("bootloader", text))
