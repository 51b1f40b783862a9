"""Pure: the order that tells one host what to do, its fields and their rules: bytes in, an Order or one error out.

The document is docs/protocols/order.md; who signed it is `recovery.signed_order`'s to say.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Literal, cast

from plumbing import clock
from plumbing.digest import DIGEST
from plumbing.errors import ConfigError
from recovery.fields import Fields, parse_object

Mode = Literal["upgrade", "install", "rescue"]
Firmware = Literal["bios", "uefi"]
PartitionName = Literal["bios", "esp", "root", "local"]

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
URL = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~%/-]*)?")
GUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
VOLUME_ID = re.compile(r"LVM-[A-Za-z0-9]{64}")
"""What device-mapper shows as the uuid of a logical volume: its group's id and its own, without their dashes."""
GROUP = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,62}")
_PLACE_ID = re.compile(f"{GUID.pattern}|{VOLUME_ID.pattern}")
MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
SIZE = re.compile(r"rest|[1-9][0-9]{0,6}(?:MiB|GiB|TiB)")
_TARGET_PART = r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,99}"
_SERIAL = re.compile(r"[!-~](?:[ -~]{0,126}[!-~])?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FSTYPE = re.compile(r"[a-z0-9]{2,16}")
_MAIL = re.compile(r"[A-Za-z0-9._%+=-]{1,64}@[A-Za-z0-9][A-Za-z0-9.-]{0,252}")
_GATEWAY = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}|[0-9A-Fa-f:.]{2,45}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_NONCE = re.compile(r"[A-Za-z0-9_-]{16,64}")
ROOT_FILESYSTEMS = ("ext4", "xfs")
"""Types of root that recovery makes."""
_UNITS = {"MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


@dataclass(frozen=True)
class Machine:
    """Which machine the order is for; `macs` in lower case."""

    macs: tuple[str, ...]
    serial: str | None


@dataclass(frozen=True)
class Target:
    """A signed catalogue entry: TUF target path and digest (sha256:HEX) of its bytes."""

    target: str
    digest: str


@dataclass(frozen=True)
class PartitionRef:
    """A partition or logical volume by what cannot move: its id and the serial of its disk (None: it shows none)."""

    partuuid: str
    disk_serial: str | None
    fstype: str


@dataclass(frozen=True)
class Disks:
    """The partitions of an upgrade; `local` is None on a host without one."""

    root: PartitionRef
    local: PartitionRef | None
    boot: PartitionRef


def size_bytes(text: str) -> int:
    """Return the bytes of a size as SIZE has it, such as 512MiB."""
    return int(text[:-3]) * _UNITS[text[-3:]]


@dataclass(frozen=True)
class LayoutPartition:
    """One partition to be made; `size` as written, e.g. 512MiB or rest."""

    name: PartitionName
    size: str
    fs: str | None

    @property
    def size_bytes(self) -> int | None:
        """The size in bytes, None for what is left over."""
        return None if self.size == "rest" else size_bytes(self.size)


@dataclass(frozen=True)
class Layout:
    """What an install makes of the one disk with this serial; with `group`, root and local are volumes of it."""

    disk_serial: str
    firmware: Firmware
    partitions: tuple[LayoutPartition, ...]
    group: str | None = None


@dataclass(frozen=True)
class Gateway:
    """An SMTP server."""

    host: str
    port: int


@dataclass(frozen=True)
class Mail:
    """Where the last gasp goes."""

    sender: str
    to: tuple[str, ...]
    gateways: tuple[Gateway, ...]


@dataclass(frozen=True)
class Order:
    """What one host is told to do; every field is checked by `from_json`."""

    id: str
    host: str
    mode: Mode
    machine: Machine
    release: Target | None
    recovery: Target | None
    disks: Disks | None
    layout: Layout | None
    precious: dict[str, object]
    services: tuple[str, ...]
    control: str
    content: tuple[str, ...]
    mail: Mail | None
    attempts: int
    level: str | None
    issued: str
    expires: str
    nonce: str

    @property
    def expires_s(self) -> float:
        """Wall seconds at which it ceases to be valid."""
        return clock.from_iso(self.expires)

    def fstype(self, name: Literal["root", "local"]) -> str:
        """The type of filesystem of root or /local, "" where the order names no such partition."""
        if self.layout is not None:
            return next((part.fs or "" for part in self.layout.partitions if part.name == name), "")
        part = getattr(self.disks, name, None)
        return part.fstype if part is not None else ""

    @classmethod
    def from_json(cls, data: bytes | str) -> Order:
        """Read a payload; raises ConfigError naming the first field that breaks a rule."""
        fields = Fields(parse_object(data, "the order"), "order")
        fields.integer("spec", 1, 1)
        mode = cast("Mode", fields.choice("mode", ("upgrade", "install", "rescue")))
        rescue = mode == "rescue"
        order = cls(
            id=fields.text("id", GUID, "a UUID in lower case"),
            host=fields.text("host", HOST_NAME, "a host name in lower case", longest=253),
            mode=mode,
            machine=_machine(fields.child("machine")),
            release=_target(fields, "release", optional=rescue),
            recovery=_target(fields, "recovery", optional=rescue),
            disks=_disks(fields.child_or_none("disks")),
            layout=_layout(fields.child_or_none("layout")),
            precious=fields.mapping("precious"),
            services=fields.texts("services", _NAME, "a service name"),
            control=fields.text("control", URL, "a URL such as http://control:8080"),
            content=fields.texts("content", URL, "a URL such as http://control:8080", least=0 if rescue else 1),
            mail=mail_from(fields.child_or_none("mail")),
            attempts=fields.integer("attempts", 1, 20),
            level=fields.text_or_none("level", _NAME, "a level's name"),
            issued=_time(fields, "issued"),
            expires=_time(fields, "expires"),
            nonce=fields.text("nonce", _NONCE, "16 to 64 characters of A-Za-z0-9_-"),
        )
        fields.end()
        if clock.from_iso(order.expires) <= clock.from_iso(order.issued):
            raise ConfigError("order.expires must be later than order.issued; issue the order again")
        for name, wanted, found in (("disks", "upgrade", order.disks), ("layout", "install", order.layout)):
            if (mode == wanted) != (found is not None):
                raise ConfigError(f"order.{name} belongs to mode {wanted} and no other; this order's is {mode}")
        return order

    def to_json(self) -> bytes:
        """Write the payload: sorted keys, no spaces; `from_json` reads it back to an equal Order."""
        value: dict[str, object] = {"spec": 1, **asdict(self)}
        if self.layout is not None:
            value["layout"] = {
                "disk": {"serial": self.layout.disk_serial}, "firmware": self.layout.firmware,
                "group": self.layout.group,
                "partitions": [asdict(part) for part in self.layout.partitions],
            }
        if self.mail is not None:
            value["mail"] = mail_to_json(self.mail)
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _machine(fields: Fields) -> Machine:
    machine = Machine(fields.texts("macs", MAC, "a MAC address such as 52:54:00:12:34:56 in lower case"),
                      fields.text_or_none("serial", _SERIAL, "a serial number"))
    fields.end()
    if not machine.macs and machine.serial is None:
        raise ConfigError("order.machine names neither a MAC address nor a serial; give one so that no other "
                          "machine takes the order")
    return machine


def _target(fields: Fields, key: str, *, optional: bool) -> Target | None:
    inside = fields.child_or_none(key) if optional else fields.child(key)
    if inside is None:
        return None
    folder = "releases" if key == "release" else "recovery"
    path = re.compile(rf"{folder}/{_TARGET_PART}/{_TARGET_PART}/{_TARGET_PART}\.json")
    target = Target(inside.text("target", path, f"{folder}/NAME/VERSION/ARCH.json", longest=400),
                    inside.text("digest", DIGEST, "sha256: and 64 hex digits"))
    inside.end()
    return target


def _partition(fields: Fields) -> PartitionRef:
    part = PartitionRef(fields.text("partuuid", _PLACE_ID, "a GPT partition GUID in lower case, or a volume's LVM-id"),
                        fields.text_or_none("disk_serial", _SERIAL, "a disk's serial number"),
                        fields.text("fstype", _FSTYPE, "a filesystem type such as ext4"))
    fields.end()
    return part


def _disks(fields: Fields | None) -> Disks | None:
    if fields is None:
        return None
    local = fields.child_or_none("local")
    disks = Disks(_partition(fields.child("root")), None if local is None else _partition(local),
                  _partition(fields.child("boot")))
    fields.end()
    named = [part.partuuid for part in (disks.root, disks.local, disks.boot) if part is not None]
    if len(set(named)) != len(named):
        raise ConfigError("order.disks names one partition for two purposes; give root, local and boot their own")
    return disks


def _layout(fields: Fields | None) -> Layout | None:
    if fields is None:
        return None
    disk = fields.child("disk")
    serial = disk.text("serial", _SERIAL, "a disk's serial number")
    disk.end()
    firmware = cast("Firmware", fields.choice("firmware", ("bios", "uefi")))
    group = fields.text_or_none("group", GROUP, "a volume group's name of letters, digits, _ and .")
    parts = tuple(_layout_partition(child) for child in fields.children("partitions", least=2, most=4))
    fields.end()
    kinds: dict[str, str | None] = {part.name: part.fs for part in parts}
    if len(kinds) != len(parts):
        raise ConfigError("order.layout.partitions has a name twice; each of bios, esp, root, local is there once")
    needed: dict[str, tuple[str | None, ...]] = {"esp": ("vfat",), "root": ROOT_FILESYSTEMS} | (
        {"bios": (None,)} if firmware == "bios" else {})
    for name, types in needed.items():
        if name not in kinds:
            raise ConfigError(f"order.layout.partitions has no {name}, which {firmware} firmware needs; add it")
        if kinds[name] not in types:
            raise ConfigError(f"order.layout.partitions: {name} must have fs "
                              f"{' or '.join(fs or 'null' for fs in types)}")
    if sum(part.size == "rest" for part in parts) > 1:
        raise ConfigError("order.layout.partitions gives the rest of the disk away twice; give one a size")
    return Layout(serial, firmware, parts, group)


def _layout_partition(fields: Fields) -> LayoutPartition:
    name = cast("PartitionName", fields.choice("name", ("bios", "esp", "root", "local")))
    part = LayoutPartition(name, fields.text("size", SIZE, "a size such as 512MiB, 20GiB or rest"),
                           fields.text_or_none("fs", re.compile("vfat|ext4|xfs"), "vfat, ext4, xfs or null"))
    fields.end()
    if name == "local" and part.fs != "ext4":
        raise ConfigError("order.layout.partitions: local must have fs ext4, it keeps the journal and the stage")
    if name == "bios" and part.fs is not None:
        raise ConfigError("order.layout.partitions: bios must have fs null, GRUB's second stage fills it")
    return part


def mail_to_json(mail: Mail) -> dict[str, object]:
    """Return a mail section as orders, the journal and the spool have it."""
    return {"from": mail.sender, "to": list(mail.to), "gateways": [asdict(gateway) for gateway in mail.gateways]}


def mail_from(fields: Fields | None) -> Mail | None:
    """Read a mail section; raises ConfigError naming the first field that breaks a rule."""
    if fields is None:
        return None
    gateways = []
    for child in fields.children("gateways", least=1, most=8):
        gateways.append(Gateway(child.text("host", _GATEWAY, "a mail server's name"), child.integer("port", 1, 65535)))
        child.end()
    mail = Mail(fields.text("from", _MAIL, "a mail address"),
                fields.texts("to", _MAIL, "a mail address", least=1, most=16), tuple(gateways))
    fields.end()
    return mail


def _time(fields: Fields, key: str) -> str:
    text = fields.text(key, _TIME, "a time such as 2026-11-21T12:00:00Z")
    try:
        clock.from_iso(text)
    except ValueError as error:
        raise ConfigError(f"order.{key} is not a time that exists: {text}; issue the order again") from error
    return text
