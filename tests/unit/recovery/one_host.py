"""A host on loop devices and its control server on loopback: all that recovery touches, made small.

The disk's partitions are loop devices of their own, because a loop device shows no partitions everywhere; the
inventory that names them is the only thing a test brings itself.
"""

from __future__ import annotations

import io
import os
import random
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from loopdevice import attached

from imaging.capture import capture
from imaging.catalogue import Catalogue
from imaging.keys import order_keys, signer
from imaging.store import Store
from plumbing import clock
from plumbing.digest import sha256
from plumbing.run import run
from recovery import bootloader, disks, identity, layout, signed_order
from recovery.cmdline import CommandLine
from recovery.disks import Disk, Partition
from recovery.drive import Action, Drive
from recovery.gpt import ESP_TYPE, LINUX_TYPE
from recovery.lastgasp import LastGasp
from recovery.layout import LayoutPlan, PlannedPartition
from recovery.log import Log
from recovery.machine import Event, State
from recovery.order import Disks, Layout, LayoutPartition, Machine, Order, PartitionRef, Target
from recovery.phases import ACTIONS, begin, blank, settle
from recovery.report import Reporter
from recovery.session import Places, Session

BOOT_FS = "vfat" if "vfat" in Path("/proc/filesystems").read_text() else "ext4"
"""Not every kernel that tests run on has FAT; what is tested here does not depend on it."""

MAC = "52:54:00:00:00:77"
SERIAL = "DISK-77"
GUIDS = {name: str(uuid.uuid5(uuid.NAMESPACE_DNS, name)) for name in ("root", "local", "boot")}


@dataclass
class Site:
    """A store, a catalogue, an order key, and the HTTP server that gives them out."""

    folder: Path
    url: str = ""
    order_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    order: bytes | None = None
    """What the control server answers when asked for the order; None is 204."""
    reports: int = 0
    blobs_read: int = 0
    break_blob: Callable[[int, bytes], bytes | None] = lambda offset, data: data
    """What becomes of a piece of a blob on its way; None is a server error."""

    def __post_init__(self) -> None:
        self.store = Store(self.folder / "store")
        self.store.create()
        self.catalogue = Catalogue(self.folder / "catalogue", self.folder / "keys")
        (self.folder / "keys").mkdir()
        self.catalogue.create()
        self.catalogue.publish("orders/keys.json", order_keys([signer(self.order_key).public_key]))

    def release(self, tree: Path, version: str) -> Target:
        """Capture and publish a tree."""
        manifest = capture(tree, self.store, name="test", version=version, arch="amd64")
        target = Target(f"releases/test/{version}/amd64.json", sha256(manifest))
        self.catalogue.publish(target.target, manifest)
        return target

    def sign(self, order: Order) -> bytes:
        """Sign with the site's order key."""
        return signed_order.sign(order, self.order_key)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        site, path = self.site, self.path.partition("?")[0]
        if path.startswith("/catalogue/"):
            file = site.folder / path[1:]
            self._answer(200, file.read_bytes()) if file.is_file() else self._answer(404)
        elif path.startswith("/v2/reroot/blobs/"):
            place = site.store.blob_path(path.rpartition("/")[2])
            if not place.is_file():
                self._answer(404)
                return
            blob = place.read_bytes()
            first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            data = site.break_blob(int(first), blob[int(first):int(last or len(blob)) + 1])
            site.blobs_read += 1
            self._answer(206 if "Range" in self.headers else 200, data) if data is not None else self._answer(500)
        elif path.endswith("/order"):
            self._answer(204) if site.order is None else self._answer(200, site.order)
        else:
            self._answer(404)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.site.reports += 1
        self._answer(201 if self.path.endswith("/enrol") else 204)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def serve(folder: Path) -> Iterator[Site]:
    """Run a site for the length of a block."""
    folder.mkdir()
    site = Site(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield site
    server.shutdown()
    server.server_close()


@dataclass
class Host:
    """The machine: its devices, and where recovery finds things."""

    folder: Path
    site: Site
    devices: dict[str, Path]
    order: Order
    local_word: str | None = GUIDS["local"]
    """What the kernel command line says of /local; None for a machine started from the network."""

    @property
    def places(self) -> Places:
        """The initramfs, as a folder."""
        base = self.folder
        return Places(base / "local", base / "root", base / "boot", base / "runtime", base / "root.json",
                      base / "scratch", base / "sys", base / "resolv.conf", Path("/proc/meminfo"))

    def inventory(self) -> tuple[Disk, ...]:
        """What the disk holds now."""
        parts = tuple(
            Partition(device, number, GUIDS[name], ESP_TYPE if name == "boot" else LINUX_TYPE, name, 0, _size(device),
                      Path("/dev/none"), SERIAL)
            for number, (name, device) in enumerate(self.devices.items(), 1))
        return (Disk(Path("/dev/none"), SERIAL, sum(part.size_bytes for part in parts), 512, parts),)

    def session(self, **changes: object) -> Session:
        """A fresh boot of recovery."""
        out = io.StringIO()
        log = Log([out])
        session = Session(self.places, CommandLine(local=self.local_word, control=self.site.url), log, Reporter(log),
                          LastGasp(say=lambda text: log.say("gasp", text), gateway_wait_s=1, total_wait_s=2),
                          inventory=self.inventory)
        for name, value in changes.items():
            setattr(session, name, value)
        return session

    @contextmanager
    def mounted(self, name: str) -> Iterator[Path]:
        """Look into a partition while recovery is not running."""
        found = disks.identify(self.devices[name])
        assert found is not None
        fstype = BOOT_FS if name == "boot" else found.fstype
        with disks.mounted(self.devices[name], self.folder / f"look-{name}", fstype) as folder:
            yield folder

    def boots(self) -> str | None:
        """What starts at the next power-up."""
        with self.mounted("boot") as area:
            return bootloader.state(area).saved


def _size(device: Path) -> int:
    return int(run(["blockdev", "--getsize64", device]).text)


def actions() -> dict[State, Action]:
    """The phases as they are, but for the links: those are test_network's, in a namespace of their own."""
    def connect(session: Session) -> Mapping[str, object]:
        begin.learn(session)
        if session.identity is not None:
            session.reporter.identify(session.identity)
        return {}

    return {**ACTIONS, State.NETWORK: connect}


def old_tree(root: Path) -> None:
    """Fill the old root: what is precious, and what is not."""
    for name in ("etc/ssh", "var/spool/cron/crontabs", "usr/bin", "srv"):
        (root / name).mkdir(parents=True)
    (root / "etc/hostname").write_text("alpha\n")
    (root / "etc/ssh/ssh_host_ed25519_key").write_bytes(os.urandom(400))
    (root / "etc/ssh/ssh_host_ed25519_key").chmod(0o600)
    (root / "etc/fstab").write_text("UUID=whatever / ext4 defaults 0 1\n")
    (root / "usr/bin/tool").write_text("old\n")


def new_tree(root: Path, size: int = 3 << 20) -> None:
    """Fill the tree of a release."""
    for name in ("etc/ssh", "usr/bin", "boot", "var/lib", "usr/share/data", "tmp"):
        (root / name).mkdir(parents=True)
    (root / "etc/hostname").write_text("image\n")
    (root / "etc/os-release").write_text("PRETTY_NAME=new\n")
    (root / "usr/bin/tool").write_text("new\n")
    (root / "boot/vmlinuz-6.1.0-1-amd64").write_bytes(b"kernel")
    (root / "boot/initrd.img-6.1.0-1-amd64").write_bytes(b"initrd")
    for number in range(6):
        (root / f"usr/share/data/{number}").write_bytes(random.Random(SEED + number).randbytes(size // 6))


SEED = 55
"""Of a new tree that is cut into four frames, on every run."""

POLICY: dict[str, object] = {"rules": [{"keep": ["/etc/hostname", "/etc/ssh/ssh_host_*", "/etc/fstab"], "exclude": [],
                                        "when": "host", "origin": "test"}],
                             "unlisted": {"look": [], "skip": [], "max_bytes": 0}}


@contextmanager
def host(folder: Path, root_fstype: str = "ext4") -> Iterator[Host]:
    """Make a host with an old system, a staged order on /local, and recovery in its boot area."""
    with ExitStack() as stack:
        site = stack.enter_context(serve(folder / "site"))
        sizes = {"root": (320 if root_fstype == "xfs" else 48) << 20, "local": 48 << 20, "boot": 40 << 20}
        devices = {name: stack.enter_context(_loop(folder / f"{name}.img", size)) for name, size in sizes.items()}
        disks.make_filesystem(devices["root"], root_fstype)
        run(["mkfs.ext4", "-q", "-F", devices["local"]])
        run(["mkfs.vfat", devices["boot"]] if BOOT_FS == "vfat" else ["mkfs.ext4", "-q", "-F", devices["boot"]])
        new_tree(folder / "new")
        refs = {name: PartitionRef(GUIDS[name], SERIAL, BOOT_FS if name == "boot" else "ext4") for name in GUIDS}
        refs["root"] = replace(refs["root"], fstype=root_fstype)
        now = clock.wall()
        order = Order(
            id=str(uuid.uuid4()), host="alpha", mode="upgrade", machine=Machine((MAC,), None),
            release=site.release(folder / "new", "13"),
            recovery=Target("recovery/r/1/amd64.json", "sha256:" + "0" * 64),
            disks=Disks(refs["root"], refs["local"], refs["boot"]), layout=None, precious=POLICY, services=(),
            control=site.url, content=(site.url,), mail=None, attempts=3, level="debian13-1",
            issued=clock.iso(now - 60), expires=clock.iso(now + 3600), nonce="n" * 16)
        made = Host(folder, site, devices, order)
        _fill(made)
        yield made


def _fill(made: Host) -> None:
    places, site = made.places, made.site
    link = places.sysfs / "class/net/lan0"
    link.mkdir(parents=True)
    (link / "type").write_text("1\n")
    (link / "address").write_text(MAC + "\n")
    for name in ("bin", "lib"):
        (places.runtime / name).mkdir(parents=True)
    (places.runtime / "bin/python3").write_text("python")
    (places.runtime / "lib/libc.so").symlink_to("libc.so.6")
    places.trust_root.write_bytes(site.catalogue.root_json())
    places.scratch.mkdir()
    with made.mounted("root") as root:
        old_tree(root)
    site.order = site.sign(made.order)
    with made.mounted("local") as local:
        identity.create(local, "alpha", site.url, [site.url], places.trust_root.read_bytes(), b'{"links": []}')
        (local / "recover/order.json").write_bytes(site.order)
        (local / "file").write_text("stays")
    with made.mounted("boot") as area:
        (area / "reroot").mkdir()
        for name in ("grub.cfg", "vmlinuz", "initrd.img"):
            (area / "reroot" / name).write_text("recovery")
        bootloader.set_default(area, "system")
        bootloader.boot_once(area, "recovery")


@contextmanager
def _loop(image: Path, size: int) -> Iterator[Path]:
    with image.open("wb") as stream:
        stream.truncate(size)
    with attached(image) as device:
        yield device


class PowerCutError(BaseException):
    """Not an Exception: nothing in recovery may catch it."""


def cut(_: Session) -> Mapping[str, object]:
    """The power goes."""
    raise PowerCutError


def drive(made: Host, changed: Mapping[State, Action] | None = None, **settings: object) -> tuple[Session, list[str]]:
    """Boot recovery once, to its reboot; returns the session and what the rescue menu was shown for."""
    session, menus = made.session(**settings), list[str]()

    def menu(why: str, _: float | None) -> Event:
        menus.append(why)
        return Event.DONE

    driver = Drive(session, {**actions(), **(changed or {})}, menu=menu, jitter=lambda: 0.0, pause=lambda _: None)
    try:
        driver.run()
    finally:
        session.close()
        print("\n".join(session.log.last(200)))  # shown when a test fails
    return session, menus


def reissue(made: Host, **changes: object) -> Order:
    """Issue a changed order, with an id of its own."""
    order = replace(made.order, **{"id": str(uuid.uuid4()), **changes})  # type: ignore[arg-type]
    made.site.order = made.site.sign(order)
    return order


def installing(made: Host, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make the host's order an install onto its own partitions, and a started-from-network machine of it.

    Partitioning is test_layout's and GRUB test_bootloader's: here the one makes filesystems, the other the menu.
    Returns a list that names the filesystems as they are made.
    """
    made.local_word = None
    (made.places.sysfs / "firmware/efi").mkdir(parents=True)
    wanted = Layout(SERIAL, "uefi", (LayoutPartition("esp", "40MiB", "vfat"), LayoutPartition("root", "rest", "ext4"),
                                     LayoutPartition("local", "48MiB", "ext4")))
    made.order = reissue(made, mode="install", disks=None, layout=wanted)
    makes: list[str] = []

    def plan(session: Session) -> tuple[LayoutPlan, Disk]:
        (disk,) = made.inventory()
        names = {"root": "root", "local": "local", "boot": "esp"}
        parts = tuple(PlannedPartition(
            number, names[name], LINUX_TYPE, GUIDS[name], 0, _size(device), "vfat" if name == "boot" else "ext4",  # type: ignore[arg-type]
            str(uuid.uuid5(uuid.UUID(session.ordered.id), name)))
            for number, (name, device) in enumerate(made.devices.items(), 1))
        return LayoutPlan(disk.device, SERIAL, GUIDS["root"], disk.size_bytes, 512, parts), disk

    def finished(wanted: LayoutPlan, _: Disk) -> bool:
        local, there = wanted.partition("local"), disks.identify(made.devices["local"])
        return local is not None and there is not None and there.uuid == local.fs_uuid

    def apply(wanted: LayoutPlan, **_: object) -> tuple[Partition, ...]:
        for name, planned in (("boot", "esp"), ("root", "root"), ("local", "local")):
            part = wanted.partition(planned)  # type: ignore[arg-type]
            assert part is not None
            makes.append(name)
            fs = BOOT_FS if name == "boot" else "ext4"
            disks.make_filesystem(made.devices[name], fs, uuid=part.fs_uuid if fs == "ext4" else None)
        return made.inventory()[0].partitions

    def first_stage(session: Session, area: Path, spec: bootloader.BootSpec) -> None:
        bootloader.write_menu(area, spec)

    monkeypatch.setattr(blank, "_plan", plan)
    monkeypatch.setattr(layout, "is_finished", finished)
    monkeypatch.setattr(layout, "apply", apply)
    monkeypatch.setattr(settle, "_first_stage", first_stage)
    return makes


def free_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
