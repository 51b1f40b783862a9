"""Staging (I/O): everything recovery will need, fetched and verified while the host still works.

In: a verified order. Out: the release's frames and the recovery image's parts below /local/recover/stage, recovery in
the boot area, the order beside it, and one boot of recovery armed. Until that last step nothing has changed for the
host; a stage that was cut short goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fleet import health
from fleet.local_frames import LocalFrames
from imaging import recovery_manifest
from plumbing import durable
from plumbing.errors import RefusedError
from recovery import bootloader, disks, filesystems, firststage, servers
from recovery.identity import AGENT, Identity
from recovery.log import Log, size
from recovery.lvm import is_volume
from recovery.order import Order
from recovery.phases.content import fetch_part
from recovery.report import Reporter
from recovery.startable import require_startable
from recovery.tickets import held, still_held

if TYPE_CHECKING:
    from imaging.index import Index
    from imaging.release import Release
    from imaging.sources import FrameSource, StageWriter
    from imaging.trusted import TrustedCatalogue
    from throttle.client import Ticket

CHANGED = "changed"
"""The folder of the stage in which a delta makes contents, while it does."""
WINDOW = 16
"""After so many frames the tickets are looked at again and progress is reported."""
SLACK_BYTES = 64 << 20
"""Room to leave on /local beyond the stage, for the precious archive's own check to work with."""


def catalogue(identity: Identity, local: Path) -> TrustedCatalogue:
    """Return the site's catalogue as this host's trust root sees it now."""
    return servers.catalogue(local / AGENT / "root.json", identity.control, local / "recover/trust")


def discard(recover: Path) -> None:
    """Remove the stage: the system it was for is up and well."""
    shutil.rmtree(recover / "stage", ignore_errors=True)


def refuse_separate_boot(root: Path = Path("/")) -> None:
    """Raise RefusedError when /boot is a filesystem of its own: the new root's kernel would not be what starts."""
    boot = root / "boot"
    if boot.exists() and boot.stat().st_dev != root.stat().st_dev:
        raise RefusedError("/boot is a filesystem of its own on this host, and the boot menu finds kernels on the root "
                           "filesystem only; nothing was touched: move /boot there, or order an install")


class Stager:
    """One order on one host."""

    def __init__(self, order: Order, identity: Identity, local: Path, log: Log, reporter: Reporter,
                 root: Path = Path("/")) -> None:
        self.order, self.identity, self.local, self.log, self.reporter = order, identity, local, log, reporter
        self.root = root
        self.folder = local / "recover/stage"
        self.believed = catalogue(identity, local)

    def run(self, envelope: bytes, last_look: Callable[[], None] = lambda: None) -> dict[str, object]:
        """Do all of it; returns figures for the report. Raises RerootError, with the host as it was.

        `last_look` may raise too; after it nothing keeps the host from rebooting.
        """
        self._refuse()
        durable.make_folder(self.folder, 0o700)
        told: dict[str, object] = self._frames()
        told["recovery_bytes"] = self._recovery()
        last_look()
        durable.write_file(self.local / "recover/order.json", envelope, 0o600)
        with self._boot_area() as area:
            bootloader.boot_once(area, "recovery")
        return told

    def _refuse(self) -> None:
        """Refuse what recovery could only refuse too, with this host down meanwhile."""
        if self.order.mode != "upgrade" or self.order.disks is None:
            raise RefusedError(f"order {self.order.id} is to {self.order.mode} this host, which a living host does not "
                               "do to itself; boot it from the network, or issue an upgrade")
        if self.order.disks.local is None:
            raise RefusedError(f"order {self.order.id} names no /local and recovery needs one for what is precious; "
                               "give this host a /local partition, or order an install")
        filesystems.require_makeable(self.order.disks.root.fstype)
        refuse_separate_boot()

    # -- the release -----------------------------------------------------------------------------------------

    def _frames(self) -> dict[str, object]:
        from imaging.release import Release

        assert self.order.release is not None
        release = Release.parse(servers.manifest(self.believed, self.order.release, self.order.id))
        there = self._drop_others(release.layer_digest.removeprefix("sha256:"))
        disks.require_space(self.folder, max(0, release.layer_size - there) + SLACK_BYTES,
                            f"the stage of release {release.ref}")
        return self._fetch(release)

    def _drop_others(self, stem: str) -> int:
        """Remove what was staged of other releases, and what a delta left unfinished.

        Returns the bytes on disk of this one's stage.
        """
        shutil.rmtree(self.folder / CHANGED, ignore_errors=True)  # a power cut may have left it
        for path in (*self.folder.glob("*.part"), *self.folder.glob("*.have")):
            if path.stem != stem:
                path.unlink(missing_ok=True)
        part = self.folder / f"{stem}.part"
        return part.lstat().st_blocks * 512 if part.exists() else 0

    @contextmanager
    def _tickets(self) -> Iterator[tuple[Ticket, ...]]:
        """Hold a ticket of every service the order names."""
        with held(self.identity, self.order.services, lambda text: self.log.say("stage", text)) as found:
            self.reporter.send("stage", "progress", {"tickets": [ticket.ticket for ticket in found]})
            yield found

    def _fetch(self, release: Release) -> dict[str, object]:
        from imaging.sources import StageWriter

        packed, index = servers.read_index([place for group in self._sources(release.layer_digest) for place in group],
                                           release)
        assert self.order.disks is not None
        require_startable(index.entries, release.ref, volumes=is_volume(self.order.disks.root.partuuid))
        with StageWriter(self.folder, release.layer_digest) as stage:
            stage.put(release.index_offset, packed)
            local = LocalFrames(self.root, release, index, stage, lambda text: self.log.say("stage", text))
            todo = local.of_files([number for number in range(len(index.frames)) if not stage.has(number)])
            if not todo:
                return {"frames": 0, "bytes": 0}
            with self._tickets() as tickets:
                installed = health.installed(self.root / health.RELEASE_FILE.relative_to("/"))
                todo = local.of_delta(todo, self.believed, (installed.get("release", ""), installed.get("digest", "")),
                                      lambda digest: self._sources(digest, tickets), self.folder / CHANGED,
                                      lambda: still_held(tickets))
                return self._fetch_frames(release, index, stage, todo, tickets)

    def _sources(self, digest: str, tickets: tuple[Ticket, ...] = ()) -> list[tuple[FrameSource, ...]]:
        from imaging.sources import HttpSource

        shown = {ticket.url.rstrip("/"): ticket.headers() for ticket in tickets if ticket.url}
        return [tuple(HttpSource(url, digest, shown.get(url)) for url in group)
                for group in servers.groups(self.order, shown)]

    def _fetch_frames(self, release: Release, index: Index, stage: StageWriter, todo: list[int],
                      tickets: tuple[Ticket, ...]) -> dict[str, object]:
        from imaging.ahead import Ahead
        from imaging.fetch import FrameFetcher

        total = sum(index.frames[number].length for number in todo)
        self.log.say("stage", f"{release.ref}: {len(todo)} of {len(index.frames)} frames to fetch, {size(total)}")
        fetcher = FrameFetcher(self._sources(release.layer_digest, tickets),
                               note=lambda text: self.log.say("stage", text))
        done = 0
        with Ahead(fetcher, [index.frames[number] for number in todo]) as ahead:
            for start in range(0, len(todo), WINDOW):
                still_held(tickets)
                for number in todo[start:start + WINDOW]:
                    data = ahead.frame(index.frames[number])
                    stage.put(index.frames[number].offset, data, number)
                    done += len(data)
                self.reporter.send("stage", "progress", {"done": done, "total": total})
        return {"frames": len(todo), "bytes": total}

    # -- the recovery image ----------------------------------------------------------------------------------

    def _recovery(self) -> int:
        """Fetch the recovery image and make it startable beside the host's own system; returns its bytes."""
        if self.order.recovery is None:
            raise RefusedError(f"order {self.order.id} names no recovery image; issue it again with --recovery")
        manifest = servers.manifest(self.believed, self.order.recovery, self.order.id)
        parts = recovery_manifest.parts(manifest, recovery_manifest.STARTED)
        folder = self.folder / "image"
        durable.make_folder(folder)
        urls = tuple(dict.fromkeys((*self.order.content, self.order.control)))
        image = {title: fetch_part(urls, folder / title, digest, length, lambda text: self.log.say("stage", text))
                 for title, (digest, length) in parts.items()}
        self._install(image)
        return sum(length for _, length in parts.values())

    def _install(self, image: Mapping[str, Path]) -> None:
        assert self.order.disks is not None
        found = disks.find_all(disks.inventory(), self.order.disks)
        root = disks.identify(found.root.device)
        assert root is not None
        consoles = tuple(word for word in Path("/proc/cmdline").read_text().split() if word.startswith("console="))
        system = bootloader.find_system(Path("/"), found.root.source, root.uuid, extra=consoles)
        spec = bootloader.BootSpec(self.order.host, found.root.source, root.uuid,
                                   found.local.word if found.local else None, self.order.control, system)
        files = bootloader.RecoveryFiles(image["vmlinuz"], image["initrd.img"], image["grubx64.efi"])
        with self._boot_area() as area:
            bootloader.install(area, files, spec, when_unset="system")
        disk = next(disk for disk in disks.inventory() if disk.device == found.boot.disk_device)
        firststage.install(disk, found.boot.partuuid, image, uefi=Path("/sys/firmware/efi").is_dir(),
                           say=lambda text: self.log.say("stage", text))

    @contextmanager
    def _boot_area(self) -> Iterator[Path]:
        """Yield the ESP mounted for writing: where the host has it, else somewhere of our own."""
        assert self.order.disks is not None
        boot = disks.find_all(disks.inventory(), self.order.disks).boot
        for line in Path("/proc/mounts").read_text().splitlines():
            device, point, _, options = line.split()[:4]
            if Path(device).resolve() == boot.device and "rw" in options.split(","):
                yield Path(point)
                return
        with disks.mounted(boot.device, Path("/run/reroot/boot"), "vfat") as area:
            yield area


def prepare(order: Order, envelope: bytes, identity: Identity, local: Path, log: Log,
            reporter: Reporter, last_look: Callable[[], None] = lambda: None) -> dict[str, object]:
    """Stage `order` and arm one boot of recovery; returns figures for the report."""
    return Stager(order, identity, local, log, reporter).run(envelope, last_look)
