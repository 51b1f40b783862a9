"""What one boot of recovery knows and holds open (I/O: mounts); the phases fill it in, in their order.

Everything that outlives the boot is in the journal and the files on /local; a Session can be thrown away at any moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from plumbing.errors import ConfigError, CorruptError, DiskError, RerootError
from recovery import bootloader, disks
from recovery.cmdline import CommandLine
from recovery.disks import Disk, Found, Partition
from recovery.gpt import ESP_TYPE
from recovery.journal import Journal
from recovery.lastgasp import LastGasp, read_mail
from recovery.log import Log, Progress
from recovery.report import Reporter

if TYPE_CHECKING:

    from imaging.index import Index
    from imaging.release import Release
    from imaging.sources import StageSource
    from imaging.trusted import TrustedCatalogue
    from recovery.identity import Identity
    from recovery.network import Up
    from recovery.order import Mail, Order


@dataclass(frozen=True)
class Places:
    """Where things are in the initramfs; a test has its own."""

    local: Path = Path("/local")
    root: Path = Path("/mnt/root")
    boot: Path = Path("/mnt/boot")
    runtime: Path = Path("/usr/lib/reroot")
    trust_root: Path = Path("/etc/reroot/root.json")
    scratch: Path = Path("/run/reroot")
    sysfs: Path = Path("/sys")
    resolver: Path = Path("/etc/resolv.conf")
    meminfo: Path = Path("/proc/meminfo")


@dataclass
class Session:
    """The state of one boot. `inventory` says which disks there are now."""

    places: Places
    command_line: CommandLine
    log: Log
    reporter: Reporter
    lastgasp: LastGasp
    inventory: Callable[[], tuple[Disk, ...]] = disks.inventory
    default_attempts: int = 10
    identity: Identity | None = None
    network: Up | None = None
    journal: Journal | None = None
    order: Order | None = None
    envelope: bytes = b""
    release: Release | None = None
    index: Index | None = None
    catalogue: TrustedCatalogue | None = None
    found: Found | None = None
    local_mounted: bool = False
    stage: tuple[str, StageSource] | None = None
    """The open stage, and the digest of the layer it holds."""
    salvaged: Path | None = None
    """Precious files of an unfinished upgrade, in memory while an installation goes over the disk they were on."""
    taken_for_wiped: bool = False
    """The journal cannot be read and the boot area does not say that the old system is whole."""
    layout_begun: bool = False
    """An installation has begun to write to the disk, and there is no journal yet to say so."""
    mounts: list[Path] = field(default_factory=list)

    @property
    def recover(self) -> Path:
        """Where everything that outlives a root lies."""
        return self.places.local / "recover"

    @property
    def host(self) -> str:
        """The best name for this machine that is known."""
        if self.order is not None:
            return self.order.host
        if self.identity is not None:
            return self.identity.host
        from recovery.network import links

        return next(iter(links(self.places.sysfs / "class/net")), "a machine without a name")

    @property
    def wiped(self) -> bool:
        """Whether the wipe of an unfinished order has begun."""
        if self.layout_begun or self.taken_for_wiped:
            return True
        return self.journal is not None and self.journal.state.wiped and not self.journal.state.finished

    @property
    def mail(self) -> Mail | None:
        """Where the last gasp goes: as the verified order says, else as the last one did that was verified here.

        The journal is root's own file on this host's /local, as is the address of the control server.
        """
        if self.order is not None:
            return self.order.mail
        kept = self.journal.state.mail if self.journal is not None else None
        if kept is None:
            return None
        try:
            return read_mail(dict(kept), "journal.mail")
        except ConfigError as error:
            self.log.say("gasp", error.sentence)
            return None

    @property
    def order_id(self) -> str | None:
        """The order that this is about: the verified one, else the one that the journal is amid."""
        if self.order is not None:
            return self.order.id
        return self.journal.state.order if self.journal is not None and not self.journal.state.finished else None

    def has_system(self) -> bool:
        """Whether there is an old system that can be gone back to.

        The journal knows; without one that can be read, the boot area does: it says recovery from before the wipe on.
        """
        if self.command_line.local is None or (self.order is not None and self.order.mode == "install"):
            return False
        if self.journal is not None:
            return not self.wiped
        return self.area_says_system()

    def area_says_system(self) -> bool:
        """Whether the boot area starts the system by default."""
        try:
            area = self.open_boot_area()
            return area is not None and bootloader.state(area).saved == "system"
        except (RerootError, OSError) as error:
            self.log.say("disks", f"the boot area cannot be read ({error})")
            return False

    def boot_system(self) -> None:
        """Make the old system what boots; raises DiskError when the boot area cannot be written."""
        area = self.open_boot_area()
        if area is None:
            raise DiskError("the boot area is not to be found; look at the disk of the ESP")
        if bootloader.state(area).saved != "system":
            bootloader.set_default(area, "system")
        self.unmount(self.places.boot)

    @property
    def journalled(self) -> Journal:
        """The journal; raises DiskError when there is no /local to hold one."""
        if self.journal is None:
            raise DiskError("there is no /local to keep the journal on; recovery needs a /local partition")
        return self.journal

    @property
    def ordered(self) -> Order:
        """The verified order; asking before the order phase is a defect."""
        assert self.order is not None
        return self.order

    @property
    def disks_found(self) -> Found:
        """The identified partitions; asking before the disks phase is a defect."""
        assert self.found is not None
        return self.found

    def progress(self, phase: str) -> Progress:
        """Return what tells the console and the control server how far `phase` is."""
        def told(what: str, done: int, total: int) -> None:
            self.reporter.send(phase, "progress", {"what": what, "done": done, "total": total})

        return self.log.progress(phase, told)

    def attach_local(self, device: Path, fstype: str) -> None:
        """Mount /local and open the journal; the spool for last gasps is there from now on."""
        if not self.local_mounted:
            try:
                disks.mount(device, self.places.local, fstype)
            except DiskError:
                self.log.say("disks", f"{device} does not mount as it is; checking it")
                check_local(device, fstype)
                disks.mount(device, self.places.local, fstype)
            self.local_mounted = True
        self.open_journal()

    def open_journal(self) -> None:
        """Open the journal on the mounted /local; raises CorruptError when it cannot be believed."""
        from plumbing import durable

        durable.make_folder(self.recover, 0o700)
        self.lastgasp.spool = self.recover / "spool"
        try:
            self.journal = Journal(self.recover / "journal")
        except CorruptError:
            self.taken_for_wiped = not self.area_says_system()
            raise
        self.taken_for_wiped = False

    def mount(self, device: Path, at: Path, fstype: str, *options: str) -> None:
        """Mount until `detach`; mounting the same place again is fine once it was detached."""
        if at in self.mounts:
            return
        disks.mount(device, at, fstype, *options)
        self.mounts.append(at)

    def unmount(self, at: Path) -> None:
        """Unmount one of our mounts; raises DiskError when something still uses it."""
        if at in self.mounts:
            disks.unmount(at)
            self.mounts.remove(at)

    def detach(self) -> None:
        """Let go of the root and the boot area, for a new attempt. /local stays."""
        for at in reversed(list(self.mounts)):
            with suppress(DiskError):
                self.unmount(at)

    def close_stage(self) -> None:
        """Let go of the stage, so that /local can be unmounted."""
        if self.stage is not None:
            self.stage[1].close()
            self.stage = None

    def close(self) -> None:
        """Let go of everything, so that the machine can go down."""
        self.close_stage()
        self.detach()
        if not self.local_mounted:
            return
        try:
            disks.sync_filesystem(self.places.local)
            disks.unmount(self.places.local)
            self.local_mounted = False
        except RerootError as error:
            # what matters on it was synced when it was written, and the next mount replays its journal
            self.log.say("finish", error.sentence)

    def boot_partition(self) -> Partition | None:
        """Return the partition of the boot area: the one the order names, else the only ESP that holds one."""
        if self.found is not None:
            return self.found.boot
        candidates = [part for disk in self.inventory() for part in disk.partitions
                      if part.type_guid == ESP_TYPE]
        return self._with_boot_area(candidates)

    def _with_boot_area(self, candidates: Iterable[Partition]) -> Partition | None:
        holding = []
        for part in candidates:
            try:
                with self.look(part) as folder:
                    if (folder / "reroot/grubenv").exists():
                        holding.append(part)
            except DiskError as error:
                self.log.say("disks", error.sentence)
        return holding[0] if len(holding) == 1 else None

    def open_boot_area(self) -> Path | None:
        """Mount the boot area for writing; None when this machine has none."""
        if self.places.boot in self.mounts:
            return self.places.boot
        part = self.boot_partition()
        if part is None:
            return None
        self.mount(part.device, self.places.boot, fstype_of(part))
        return self.places.boot

    def look(self, part: Partition) -> AbstractContextManager[Path]:
        """Mount a partition read-only for the length of a `with` block."""
        return disks.mounted(part.device, self.places.scratch / "look", fstype_of(part), "ro")


def fstype_of(part: Partition) -> str:
    """Return the type of the filesystem on a partition; raises DiskError when there is none known here."""
    there = disks.identify(part.device)
    if there is None:
        raise DiskError(f"{part.device} holds no filesystem known here; look at it from the rescue menu")
    return there.fstype


def check_local(device: Path, fstype: str) -> None:
    """Repair what can be repaired without asking (e2fsck -p); raises DiskError when that is not enough.

    Mounting has replayed the log of an XFS, so one that does not mount needs a person.
    """
    from plumbing.run import run

    if fstype == "xfs":
        raise DiskError(f"{device} has errors that mounting it does not mend; run xfs_repair on it elsewhere")
    done = run(["e2fsck", "-p", device], check=False, timeout_s=1800)
    if done.status not in (0, 1, 2):  # 1: errors corrected, 2: and a reboot advised, which is for mounted ones
        raise DiskError(f"{device} has errors that e2fsck does not repair by itself; run e2fsck on it from the rescue "
                        "menu's shell")
