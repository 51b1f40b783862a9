"""network, order, disks (I/O): everything that is found out and checked before anything is touched."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

from plumbing import clock, durable
from plumbing.errors import ConfigError, DiskError, NetworkError, NotFoundError, RefusedError, RerootError, TrustError
from plumbing.http import Client
from recovery import disks, filesystems, fstab, identity, lvm, servers, signed_order
from recovery import network as links
from recovery import order as orders
from recovery.disks import Partition
from recovery.drive import NoOrderError
from recovery.order import Order
from recovery.session import Session, fstype_of
from recovery.startable import require_startable

DEVICE_WAIT_S = 20.0
"""How long disks may take to show up after their drivers were loaded, in seconds."""

LEAST_MEMORY_BYTES = 96 << 20
"""Memory that must be free: the index, a few unpacked frames, the page cache that mkfs and tar-sized writes need."""


def connect(session: Session) -> Mapping[str, object]:
    """Mount /local, learn who this host is, bring the network up."""
    durable.make_folder(session.places.scratch, 0o700)
    learn(session)
    described = _described(session)
    try:
        session.network = links.bring_up(
            described, say=lambda text: session.log.say("network", text), sysfs=session.places.sysfs / "class/net",
            resolver=session.places.resolver, script=session.places.scratch / "udhcpc-script")
    except NetworkError as error:
        if not session.wiped and not session.command_line.rescue:
            raise
        # there is no way back and the stage may hold all that is needed, or a person wants the menu
        session.log.say("network", f"{error.sentence}; going on with what is on /local")
        return {"addresses": {}}
    for name, address in session.network.addresses.items():
        session.log.say("network", f"{name} {address} ({session.network.how})")
    if session.identity is not None:
        session.reporter.identify(session.identity)
    return {"addresses": dict(session.network.addresses), "how": session.network.how}


def learn(session: Session) -> None:
    """Mount /local if the kernel command line names one, and read who this host is."""
    if session.command_line.local is not None:
        part = _wait_partition(session, session.command_line.local)
        session.attach_local(part.device, fstype_of(part))
        session.identity = identity.load(session.places.local)


def _wait_partition(session: Session, partuuid: str) -> Partition:
    deadline, pause = clock.monotonic() + DEVICE_WAIT_S, threading.Event()
    while True:
        here = session.inventory()
        if lvm.is_volume(partuuid):
            lvm.activate(here, lambda text: session.log.say("disks", text))
            here = session.inventory()
        found = [part for disk in here for part in disk.places if part.partuuid == partuuid]
        if len(found) == 1:
            return found[0]
        if len(found) > 1 or clock.monotonic() > deadline:
            count = "is not on this machine" if not found else "is there more than once"
            raise DiskError(f"the /local partition {partuuid} {count}; here are {disks.describe(here)}: look at the "
                            "disks and their cables")
        pause.wait(0.1)


def _described(session: Session) -> links.Network | None:
    path = session.places.local / identity.AGENT / "network.json"
    if not session.local_mounted or not path.exists():
        return None
    try:
        return links.parse(path.read_bytes())
    except ConfigError as error:
        session.log.say("network", error.sentence)
        return None


def obtain(session: Session) -> Mapping[str, object]:
    """Get the freshest valid order for this machine, and the release it names."""
    if session.command_line.rescue:
        raise NoOrderError("the kernel command line asks for the rescue menu")
    control = session.identity.control if session.identity is not None else session.command_line.control
    if control is None:
        raise NoOrderError("this machine knows no control server and has no order; nothing was touched")
    cache = (session.recover if session.local_mounted else session.places.scratch) / "trust"
    session.catalogue = servers.catalogue(session.places.trust_root, control, cache)
    fresh, why = _ask(session, control)
    candidates = [("the control server", fresh)] if fresh is not None else []
    path = session.recover / "order.json"
    if session.local_mounted and path.exists():
        candidates.append((str(path), path.read_bytes()))
    if not candidates:
        if why is not None:
            raise why
        raise NoOrderError("there is no order for this machine; nothing was touched")
    found = first_valid(session, candidates)
    withdrawn = fresh is None and why is None and not session.wiped
    done_before = session.journal is not None and session.journal.finished(found.id)
    if withdrawn and not done_before:
        raise RefusedError(f"the control server has no current order for {found.host}: the one on /local was "
                           "cancelled or is over")
    return _take(session, found)


def _ask(session: Session, control: str) -> tuple[bytes | None, RerootError | None]:
    """Return the control server's envelope, or None; and why it could not be asked, if so."""
    if session.identity is not None:
        client, path = session.identity.client(), f"/api/v1/hosts/{session.identity.host}/order"
    else:
        words = [("mac", mac) for mac in links.links(session.places.sysfs / "class/net")]
        serial = machine_serial(session.places.sysfs)
        client = Client(control)
        path = "/api/v1/boot/order?" + urlencode([*words, *([("serial", serial)] if serial else [])])
    try:
        return servers.current_order(client, path), None
    except RerootError as error:
        session.log.say("order", f"no fresh order: {error.sentence}")
        return None, error
    finally:
        client.close()


def machine_serial(sysfs: Path) -> str | None:
    """Return the serial the firmware gives this machine, as fleet.inventory reports it."""
    try:
        return (sysfs / "class/dmi/id/product_serial").read_text().strip() or None
    except OSError:
        return None


def first_valid(session: Session, candidates: list[tuple[str, bytes]]) -> Order:
    """Return the first of (where from, envelope) that is valid for this machine now, or raise what the first lacks."""
    assert session.catalogue is not None
    keys = session.catalogue.fetch("orders/keys.json")
    macs = links.links(session.places.sysfs / "class/net")
    first: RerootError | None = None
    for where, envelope in candidates:
        try:
            found = signed_order.verify(envelope, keys, host_macs=macs, now=clock.wall(),
                                  host_serial=machine_serial(session.places.sysfs))
            if session.identity is not None and found.host != session.identity.host:
                raise TrustError(f"the order is for {found.host} and this host is {session.identity.host}")
        except (TrustError, ConfigError) as error:
            session.log.say("order", f"the order from {where} is not valid: {error.sentence}")
            first = first or error
            continue
        session.envelope = envelope
        session.log.say("order", f"{found.id} from {where}: {found.mode} {found.host}")
        return found
    assert first is not None
    raise first


def _require_home(session: Session, found: Order) -> None:
    """Raise RefusedError unless an upgrade finds, on the /local that it names, who this host is.

    The kernel command line says where /local is, and anybody on the network may have written it: leaving the word out,
    or naming another partition, must not spare an order the comparison with the host it is for.
    """
    if found.disks is None:
        return
    named = found.disks.local
    if named is None:
        raise RefusedError(f"{found.host} has no /local; this version upgrades hosts with one: order an install, or "
                           "give it a /local partition")
    if session.identity is None or session.command_line.local != named.partuuid:
        raise RefusedError(f"order {found.id} upgrades {found.host}, and this machine was not started with that host's "
                           f"/local ({named.partuuid}) and the identity on it; start it from its own boot area")


def _take(session: Session, found: Order) -> Mapping[str, object]:
    """Make `found` this session's order: on /local, in the journal, its release known."""
    session.order = found
    session.reporter.order = found.id
    if found.mode == "rescue" or found.release is None:
        raise NoOrderError(f"order {found.id} asks for the rescue menu")
    mine = session.journal is not None and session.journal.state.order == found.id
    if found.mode == "install" and session.command_line.local is not None and not mine:
        raise RefusedError(f"order {found.id} installs {found.host} anew, and this machine was started from its own "
                           "/local; boot it from the network, or issue an upgrade")
    _require_home(session, found)
    if session.journal is not None:
        session.journal.refuse_repeat(found.id)
        durable.write_file(session.recover / "order.json", session.envelope, 0o600)
        session.journal.order(found.id, found.mode, found.release.digest,
                              orders.mail_to_json(found.mail) if found.mail is not None else None)
        session.journal.attempt()
        if session.journal.state.finished and session.command_line.local is not None and session.area_says_system():
            raise NoOrderError(f"order {found.id} was carried out, and the system it brought could not be started: "
                               "GRUB came here instead; a new order heals this host")
        if session.journal.state.finished:
            return {"order": found.id, "release": found.release.target, "finished": True}
    from imaging.release import Release

    assert session.catalogue is not None
    session.release = Release.parse(servers.manifest(session.catalogue, found.release, found.id))
    return {"order": found.id, "release": session.release.ref}


def identify(session: Session) -> Mapping[str, object]:
    """Find the disks the order names and check everything that can be checked before the wipe."""
    ordered = session.ordered
    if ordered.mode == "install":
        from recovery.phases import blank

        root_bytes = blank.find(session)
        if session.journal is not None and session.journal.state.finished:
            return {}
    else:
        assert ordered.disks is not None
        filesystems.require_makeable(ordered.disks.root.fstype)
        if lvm.is_volume(ordered.disks.root.partuuid):
            lvm.activate(session.inventory(), lambda text: session.log.say("disks", text))
        session.found = disks.find_all(session.inventory(), ordered.disks)
        if session.journalled.state.finished:
            return {}
        if not session.wiped:
            disks.check_filesystem(session.found.root, ordered.disks.root, "root")
            _refuse_separate_boot(session, session.found.root)
        _check_boot_area(session)
        root_bytes = session.found.root.size_bytes
    assert session.release is not None
    require_memory(session.places.meminfo)
    from recovery.phases import content, room

    missing = content.prepare(session)
    assert session.index is not None
    require_startable(session.index.entries, session.release.ref, volumes=_on_volumes(ordered))
    room.require(session, root_bytes)
    return {"frames": len(session.index.frames), "missing": missing}


def _on_volumes(ordered: Order) -> bool:
    if ordered.disks is not None:
        return lvm.is_volume(ordered.disks.root.partuuid)
    return ordered.layout is not None and ordered.layout.group is not None


def _refuse_separate_boot(session: Session, root: Partition) -> None:
    """A kernel in a /boot of its own would stay the old one, and nothing but it would start."""
    with session.look(root) as old:
        separate = "/boot" in fstab.points(fstab.read(old))
    if separate:
        raise RefusedError(f"{session.ordered.host} has a separate /boot (its /etc/fstab says so), and the boot menu "
                           "finds kernels on the root filesystem only; nothing was touched: move /boot there, or order "
                           "an install")


def _check_boot_area(session: Session) -> None:
    """Recovery must be able to start from the boot area, or a power cut after the wipe leaves nothing that starts."""
    with session.look(session.disks_found.boot) as area:
        lacking = [name for name in ("grub.cfg", "vmlinuz", "initrd.img") if not (area / "reroot" / name).is_file()]
    if lacking:
        raise NotFoundError(f"the boot area on {session.disks_found.boot.device} lacks {', '.join(lacking)}; have "
                            "the agent stage the order again")


def require_memory(meminfo: Path, needed: int = LEAST_MEMORY_BYTES) -> None:
    """Raise RefusedError when too little memory is free for the restore."""
    words = (line.split() for line in meminfo.read_text().splitlines())
    free = next((int(word[1]) * 1024 for word in words if word[:1] == ["MemAvailable:"]), 0)
    if free < needed:
        raise RefusedError(f"{free >> 20} MiB of memory are free and the restore needs {needed >> 20}; give the "
                           "machine more memory")
