"""What this host is made of (I/O), in the stable names that an order uses: PARTUUIDs, serials, MACs.

Read from /proc and /sys alone, so it works on any Linux; the control server copies these facts into orders.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import platform
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fleet.health import os_release
from plumbing.errors import DiskError
from recovery import disks
from recovery.disks import Partition
from recovery.gpt import ESP_TYPE
from recovery.phases.begin import machine_serial

SYS = Path("/sys")
RESOLVERS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
"""The second is what systemd-resolved asks; the first names only itself then."""
_OS_KEYS = {"ID", "ID_LIKE", "VERSION_ID"}
"""What of os-release(5) the control server chooses by: which shipped rules say what is precious."""
_SIOCGIFADDR, _SIOCGIFNETMASK = 0x8915, 0x891B


@dataclass(frozen=True)
class Link:
    """One network interface with its first IPv4 address; `address` is ADDRESS/PREFIX."""

    name: str
    mac: str
    address: str | None
    gateway: str | None

    def to_json(self) -> dict[str, object]:
        """Return what /local/recover/agent/network.json holds."""
        return {"name": self.name, "mac": self.mac, "address": self.address, "gateway": self.gateway}


def _interface_address(name: str) -> str | None:
    request = struct.pack("256s", os.fsencode(name)[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            address = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24]
            mask = fcntl.ioctl(probe.fileno(), _SIOCGIFNETMASK, request)[20:24]
        except OSError:
            return None
    prefix = int.from_bytes(mask, "big").bit_count()
    return f"{ipaddress.IPv4Address(address)}/{prefix}"


def _gateways() -> dict[str, str]:
    """Return interface -> default gateway from /proc/net/route (little-endian hexadecimal)."""
    rows = (line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:])
    return {row[0]: str(ipaddress.IPv4Address(int(row[2], 16).to_bytes(4, "little")))
            for row in rows if len(row) > 2 and row[1] == "00000000"}


def links() -> tuple[Link, ...]:
    """Return the interfaces that have hardware behind them, by name."""
    gateways = _gateways()
    found = []
    for folder in sorted((SYS / "class/net").iterdir()):
        if (folder / "device").exists():
            mac = (folder / "address").read_text().strip().lower()
            found.append(Link(folder.name, mac, _interface_address(folder.name), gateways.get(folder.name)))
    return tuple(found)


def nameservers(places: Sequence[Path] = RESOLVERS) -> tuple[str, ...]:
    """Return the resolvers of the first file that names any; not those on this host itself, which recovery lacks."""
    for path in places:
        try:
            lines = path.read_text("utf-8", "replace").splitlines()
        except OSError:
            continue
        found = [word for line in lines for word in line.split()[1:2] if line.split()[0] == "nameserver"]
        usable = tuple(dict.fromkeys(word for word in found if _is_server(word)))
        if usable:
            return usable
    return ()


def _is_server(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified)


def _mounted(point: str) -> tuple[str, str] | None:
    """Return (device number "major:minor", filesystem type) of what is mounted at `point`."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if fields[4] == point:
            found = fields[2], right.split()[0]
    return found


def _place(point: str, known: Mapping[str, Partition]) -> tuple[Partition, str] | None:
    """Return what is mounted at `point`, and its filesystem's type."""
    mounted = _mounted(point)
    if mounted is None:
        return None
    number, fstype = mounted
    name = (SYS / "dev/block" / number).resolve().name
    part = known.get(name)
    if part is None:
        raise DiskError(f"{point} lies on {name}, which is no partition of a GPT disk and no plain logical volume; "
                        "this version upgrades hosts whose / and /local are such")
    return part, fstype


def _named(place: tuple[Partition, str] | None) -> dict[str, object] | None:
    if place is None:
        return None
    part, fstype = place
    return {"partuuid": part.partuuid, "disk_serial": part.disk_serial, "fstype": fstype}


def facts() -> dict[str, object]:
    """Return the inventory as JSON values; raises DiskError when / is not on a partition.

    Sizes are in bytes. The boot area is the ESP of the disk that / is on, mounted or not. `disks`
    has the keys of an order's `disks`: root, local (or null), boot (or null).
    """
    known = {part.device.name: part for disk in disks.inventory() for part in disk.places}
    memory = int(next(line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines()
                      if line.startswith("MemTotal:"))) * 1024
    root = _place("/", known)
    boot = next((part for part in known.values() if part.type_guid == ESP_TYPE and root is not None
                 and part.disk_device == root[0].disk_device), None)
    return {
        "os_release": {name: value for name, value in os_release().items() if name in _OS_KEYS},
        "arch": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        "firmware": "uefi" if (SYS / "firmware/efi").is_dir() else "bios",
        "memory_bytes": memory,
        "serial": machine_serial(SYS) or "",
        "links": [link.to_json() for link in links()],
        "disks": {"root": _named(root), "local": _named(_place("/local", known)),
                  "boot": _named((boot, "vfat") if boot is not None else None)},
    }
