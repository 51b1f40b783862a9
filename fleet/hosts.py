"""hosts.toml: the machines of the site, as a person wrote them down; pure except `load` and `HostsFile`.

    [[host]]
    name = "alpha"
    macs = ["52:54:00:00:00:01"]
    address = "10.1.0.11/24"      # or: subnet = "10.1.0.0/24"
    class = ["web", "debian"]
    firmware = "bios"             # or "uefi"
    serial = "QX1-…"              # of the machine, as its firmware tells it
    memory = "1GiB"               # optional: for a machine whose agent has not told it yet
    recovery = "recovery/…"       # optional: another recovery image than the release's
    [host.layout]                 # only for installs: what the disk shall become
    disk = "the disk's serial"
    group = "vg0"                 # optional: root and local become logical volumes of it
    partitions = [{ name = "bios", size = "1MiB" }, { name = "esp", size = "256MiB", fs = "vfat" },
                  { name = "root", size = "8GiB", fs = "ext4" }, { name = "local", size = "rest", fs = "ext4" }]

Strict: a key that does not exist, a name twice, a MAC address twice are errors with file, line and key.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from plumbing import durable
from plumbing.errors import ConfigError, DiskError, NotFoundError, RerootError
from plumbing.spelling import hint
from plumbing.tomltext import line_of
from recovery.order import GROUP, HOST_NAME, ROOT_FILESYSTEMS, SIZE

_CLASS = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_MAC = re.compile(r"[0-9a-f]{12}")
_WORD = re.compile(r"[!-~](?:[ -~]{0,126}[!-~])?")
# Printable ASCII that neither iPXE, a shell nor a kernel command line reads as anything but itself.
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/+-]{0,63}")
_KEYS = ("name", "macs", "serial", "address", "subnet", "class", "firmware", "memory", "layout", "recovery", "serves")
_LAYOUT_KEYS = ("disk", "group", "partitions")
_PARTITION_KEYS = ("name", "size", "fs")
_FILESYSTEMS = {"bios": (None,), "esp": ("vfat",), "root": ROOT_FILESYSTEMS, "local": ("ext4",)}


@dataclass(frozen=True)
class Partition:
    """One partition an install makes; `size` as written ("8GiB" or "rest"), `fs` None for the BIOS boot partition."""

    name: str
    size: str
    fs: str | None


@dataclass(frozen=True)
class Layout:
    """What an install makes of the one disk that has this serial; with `group`, root and local are volumes of it."""

    disk: str
    partitions: tuple[Partition, ...]
    group: str | None = None


@dataclass(frozen=True)
class Host:
    """One machine; `address` and `subnet` are as ipaddress writes them, MACs are lower case with colons."""

    name: str
    macs: tuple[str, ...] = ()
    serial: str | None = None
    address: str | None = None
    subnet: str | None = None
    classes: tuple[str, ...] = ()
    firmware: str = "bios"
    layout: Layout | None = None
    recovery: str | None = None
    serves: tuple[str, ...] = ()
    memory: str | None = None
    """As written, such as "1GiB"; what Linux calls MemTotal, which is less than what is plugged in."""


@dataclass(frozen=True)
class Hosts:
    """All machines in the file's order; looked up by name and by MAC address."""

    by_name: Mapping[str, Host] = field(default_factory=dict)
    by_mac: Mapping[str, Host] = field(default_factory=dict)

    def get(self, name: str) -> Host:
        """Return the host called `name`; raises NotFoundError with the nearest name."""
        if name in self.by_name:
            return self.by_name[name]
        ending = hint(name, self.by_name, "`reroot host list` shows what there is")
        raise NotFoundError(f"there is no host {name!r} in hosts.toml; {ending}")

    def with_class(self, name: str) -> tuple[Host, ...]:
        """Return the members of one host class; raises NotFoundError for a class nobody has (never an empty set)."""
        found = tuple(host for host in self.by_name.values() if name in host.classes)
        if not found:
            raise NotFoundError(f"no host in hosts.toml has the class {name!r}; check its spelling")
        return found


def host_of(hosts: Hosts, macs: Collection[str], serial: str | None) -> Host | None:
    """Return the one host that has any of `macs`, unless both it and the machine name a serial and they differ.

    A host that is listed without MAC addresses is known by its serial.
    """
    names = {hosts.by_mac[mac].name for mac in macs if mac in hosts.by_mac}
    if not names and serial:
        names = {host.name for host in hosts.by_name.values() if host.serial == serial and not host.macs}
    if len(names) != 1:
        return None
    host = hosts.by_name[names.pop()]
    return None if host.serial and serial and host.serial != serial else host


def mac(text: str) -> str:
    """Write a MAC address the one way it is compared: lower case, colons. Raises ValueError."""
    digits = re.sub(r"[:.\-]", "", text.strip().lower())
    if not _MAC.fullmatch(digits):
        raise ValueError(f"{text!r} is not a MAC address; write it as 52:54:00:12:34:56")
    return ":".join(digits[at:at + 2] for at in range(0, 12, 2))


def _own_mac(text: str) -> str:
    """Return the MAC address of one machine, as `mac` writes it; raises ValueError when no machine can have it."""
    address = mac(text)
    if address == "00:00:00:00:00:00" or int(address[:2], 16) & 1:
        raise ValueError(f"{text!r} is no machine's MAC address (all zeros, or a group's); write that of its network "
                         "card")
    return address


class _Reader:
    """Turns tables into values and complaints into one sentence with file, line and key."""

    def __init__(self, text: str, file: str) -> None:
        self.text, self.file = text, file

    def fail(self, where: tuple[str | int, ...], complaint: str) -> ConfigError:
        return ConfigError(f"{self.file}, line {line_of(self.text, where)}: {complaint}")

    def check_keys(self, table: Mapping[str, object], valid: tuple[str, ...], where: tuple[str | int, ...]) -> None:
        for key in table:
            if key not in valid:
                raise self.fail((*where, key), f"there is no key {key!r}; {hint(key, valid)}")

    def word(self, table: Mapping[str, object], key: str, where: tuple[str | int, ...]) -> str | None:
        value = table.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not _WORD.fullmatch(value):
            raise self.fail((*where, key), f"{key} must be a string of 1 to 128 printable ASCII characters")
        return value

    def words(self, table: Mapping[str, object], key: str, where: tuple[str | int, ...]) -> tuple[str, ...]:
        value = table.get(key, [])
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(
                isinstance(word, str) and _WORD.fullmatch(word) for word in value):
            raise self.fail((*where, key), f"{key} must be a list of strings of printable ASCII characters")
        return tuple(value)

    def host(self, table: Mapping[str, object], where: tuple[str | int, ...]) -> Host:
        self.check_keys(table, _KEYS, where)
        name = self.word(table, "name", where)
        if name is None or not HOST_NAME.fullmatch(name) or len(name) > 253:
            raise self.fail((*where, "name"), f"name = {name!r} must be a host name: small letters, digits, - and .")
        try:
            macs = tuple(_own_mac(one) for one in self.words(table, "macs", where))
        except ValueError as error:
            raise self.fail((*where, "macs"), str(error)) from error
        serial = self.word(table, "serial", where)
        if serial is not None and not _SERIAL.fullmatch(serial):
            raise self.fail((*where, "serial"), f"serial = {serial!r} may hold letters, digits, spaces and ._:/+- only")
        for one in self.words(table, "class", where):
            if not _CLASS.fullmatch(one):
                raise self.fail((*where, "class"), f"{one!r} cannot be a class; use letters, digits, - _ and .")
        firmware = self.word(table, "firmware", where) or "bios"
        if firmware not in {"bios", "uefi"}:
            raise self.fail((*where, "firmware"), f"firmware = {firmware!r} must be \"bios\" or \"uefi\"")
        memory = self.word(table, "memory", where)
        if memory is not None and (memory == "rest" or not SIZE.fullmatch(memory)):
            raise self.fail((*where, "memory"), f"memory = {memory!r} must be such as \"512MiB\" or \"8GiB\"")
        address, subnet = self.network(table, where)
        return Host(
            name=name, macs=macs, serial=serial, address=address, subnet=subnet, firmware=firmware,
            classes=self.words(table, "class", where), layout=self.layout(table, firmware, where),
            recovery=self.word(table, "recovery", where), serves=self.words(table, "serves", where),
            memory=memory,
        )

    def network(self, table: Mapping[str, object], where: tuple[str | int, ...]) -> tuple[str | None, str | None]:
        address, subnet = self.word(table, "address", where), self.word(table, "subnet", where)
        try:
            network = ipaddress.ip_network(subnet) if subnet else None
        except ValueError as error:
            raise self.fail((*where, "subnet"), f"subnet = {subnet!r} is no network: {error}") from error
        if address is None:
            return None, str(network) if network else None
        try:
            place = ipaddress.ip_interface(address)
        except ValueError as error:
            raise self.fail((*where, "address"), f"address = {address!r} is no address: {error}") from error
        if "/" not in address and network is None:
            raise self.fail((*where, "address"), f"address = {address!r} needs its prefix length, such as {address}/24")
        if network is None:
            network = place.network
        if place.ip not in network:
            raise self.fail((*where, "address"), f"address = {address!r} is not in the subnet {network}")
        return f"{place.ip}/{network.prefixlen}", str(network)

    def layout(self, table: Mapping[str, object], firmware: str, where: tuple[str | int, ...]) -> Layout | None:
        value = table.get("layout")
        if value is None:
            return None
        where = (*where, "layout")
        if not isinstance(value, dict):
            raise self.fail(where, "layout must be a table, [host.layout]")
        self.check_keys(value, _LAYOUT_KEYS, where)
        disk = self.word(value, "disk", where)
        if disk is None:
            raise self.fail(where, "layout needs disk, the serial of the one disk that may be wiped")
        group = self.word(value, "group", where)
        if group is not None and not GROUP.fullmatch(group):
            raise self.fail((*where, "group"), f"group = {group!r} must be a volume group's name of "
                            "letters, digits, _ and .")
        rows = value.get("partitions", default_partitions(firmware))
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise self.fail((*where, "partitions"), "partitions must be a list of tables {name, size, fs}")
        parts = tuple(self.partition(row, (*where, "partitions")) for row in rows)
        self.check_partitions(parts, firmware, (*where, "partitions"))
        return Layout(disk, parts, group)

    def partition(self, row: Mapping[str, object], where: tuple[str | int, ...]) -> Partition:
        self.check_keys(row, _PARTITION_KEYS, where)
        name, size, fs = (self.word(row, key, where) for key in _PARTITION_KEYS)
        if name not in _FILESYSTEMS:
            raise self.fail(where, f"a partition's name must be one of {', '.join(_FILESYSTEMS)}, not {name!r}")
        if size is None or not SIZE.fullmatch(size):
            raise self.fail(where, f"size = {size!r} of {name} must be such as \"256MiB\", \"8GiB\" or \"rest\"")
        if fs not in _FILESYSTEMS[name]:
            wanted = " or ".join(map(repr, _FILESYSTEMS[name]))
            raise self.fail(where, f"fs = {fs!r} will not do for {name}; write {wanted}")
        return Partition(name, size, fs)

    def check_partitions(self, parts: tuple[Partition, ...], firmware: str, where: tuple[str | int, ...]) -> None:
        names = [part.name for part in parts]
        if len(set(names)) != len(names):
            raise self.fail(where, "a partition is named twice")
        # The ESP is where reroot's own GRUB reads its state, whatever the firmware.
        needed = {"root", "esp"} | ({"bios"} if firmware == "bios" else set())
        if missing := sorted(needed - set(names)):
            raise self.fail(where, f"a {firmware} machine also needs the partition {missing[0]!r}")
        if any(part.size == "rest" for part in parts[:-1]):
            raise self.fail(where, "only the last partition can have size = \"rest\"")


def default_partitions(firmware: str) -> list[dict[str, str]]:
    """Return the rows an install uses when hosts.toml names a disk and no partitions."""
    bios = [{"name": "bios", "size": "1MiB"}] if firmware == "bios" else []
    return [*bios, {"name": "esp", "size": "256MiB", "fs": "vfat"}, {"name": "root", "size": "8GiB", "fs": "ext4"},
            {"name": "local", "size": "rest", "fs": "ext4"}]


def parse(text: str, file: str = "hosts.toml") -> Hosts:
    """Read the file's text; raises ConfigError for the first thing that is wrong."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    reader = _Reader(text, file)
    reader.check_keys(data, ("host",), ())
    rows = data.get("host", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise reader.fail(("host",), "hosts are written as [[host]] tables")
    by_name: dict[str, Host] = {}
    by_mac: dict[str, Host] = {}
    for position, row in enumerate(rows):
        host = reader.host(row, ("host", position))
        if host.name in by_name:
            raise reader.fail(("host", position, "name"), f"the host {host.name!r} is there twice")
        by_name[host.name] = host
        for address in host.macs:
            if address in by_mac:
                other = by_mac[address].name
                raise reader.fail(("host", position, "macs"), f"{address} belongs to {other!r} and {host.name!r}")
            by_mac[address] = host
    return Hosts(by_name, by_mac)


def load(path: Path) -> Hosts:
    """Read hosts.toml; raises ConfigError when it cannot be read or is wrong."""
    try:
        return parse(path.read_text("utf-8"), str(path))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; `reroot init DIR` makes a site with one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); it must be a UTF-8 text file") from error


class HostsFile:
    """hosts.toml as a running server sees it: read again when it changes, the last good one kept when it breaks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: str | None = None
        self._hosts = load(path)
        self._stamp = self._stat()

    def current(self) -> Hosts:
        """Return the file's hosts, from memory unless the file was changed."""
        stamp = self._stat()
        if stamp != self._stamp:
            try:
                self._hosts, self.problem = load(self.path), None
            except RerootError as error:
                self.problem = error.sentence
            self._stamp = stamp
        return self._hosts

    def add(self, host: Host) -> Hosts:
        """Append one host durably; the file is checked as a whole before it replaces the old one.

        Raises ConfigError when its name or a MAC address of it is taken.
        """
        before = self.path.read_text("utf-8")
        _must_be_new(host, before, self.path)
        after = before.rstrip("\n") + "\n\n" + write(host) if before.strip() else write(host)
        parse(after, str(self.path))
        try:
            durable.write_file(self.path, after.encode(), mode=self.path.stat().st_mode & 0o777)
        except OSError as error:
            raise DiskError(f"{self.path} cannot be written ({error.strerror}); it is as it was, make room or mend its "
                            "owner") from error
        return self.current()

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def _must_be_new(host: Host, text: str, path: Path) -> None:
    """Raise ConfigError naming the line of `text`, the file as it stands, that has the host's name or address."""
    there = parse(text, str(path))
    lines = {name: line_of(text, ("host", place, "name")) for place, name in enumerate(there.by_name)}
    if host.name in lines:
        raise ConfigError(f"{host.name} is in {path.name} already (line {lines[host.name]}); edit it there, or leave "
                          "out --mac to get a new token")
    for address in host.macs:
        if address in there.by_mac:
            other = there.by_mac[address].name
            raise ConfigError(f"{address} belongs to {other} in {path.name} already (line {lines[other]}); edit it "
                              f"there, or give {host.name} its own --mac")


def from_table(table: Mapping[str, object], origin: str) -> Host:
    """Read one host given as a table (a request's JSON); `origin` takes the file's place in complaints."""
    return _Reader("", origin).host(table, ("host", 0))


def write(host: Host) -> str:
    """Return the host as the [[host]] table that `parse` reads back."""
    lines = ["[[host]]", f"name = {_quote(host.name)}"]
    lines += [f"{key} = [{', '.join(_quote(one) for one in values)}]"
              for key, values in (("macs", host.macs), ("class", host.classes), ("serves", host.serves)) if values]
    lines += [f"{key} = {_quote(value)}" for key, value in (
        ("serial", host.serial), ("address", host.address), ("subnet", host.subnet if not host.address else None),
        ("firmware", host.firmware), ("memory", host.memory), ("recovery", host.recovery)) if value is not None]
    if host.layout is not None:
        lines += ["[host.layout]", f"disk = {_quote(host.layout.disk)}"]
        lines += [f"group = {_quote(host.layout.group)}"] if host.layout.group else []
        lines.append("partitions = [")
        lines += [f"  {{ name = {_quote(part.name)}, size = {_quote(part.size)}"
                  + (f", fs = {_quote(part.fs)}" if part.fs else "") + " }," for part in host.layout.partitions]
        lines.append("]")
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    # TOML's basic strings escape as JSON's do, apart from DEL, which no accepted value holds.
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
