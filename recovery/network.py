"""Bringing the network up (I/O): the addresses this host had, or DHCP on every link.

In: network.json from /local, or nothing. Out: configured links and /etc/resolv.conf. Programs are busybox's `ip` and
`udhcpc`; everything that reaches them was parsed as an address first, because DHCP answers are untrusted.
"""

from __future__ import annotations

import ipaddress
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from plumbing import clock, durable
from plumbing.errors import CommandError, ConfigError, NetworkError
from plumbing.run import run

CARRIER_WAIT_S = 15.0
"""How long links may take to find their other end; spanning tree on a switch port takes the most of it."""

LEASE_WAIT_S = 40.0
"""How long all links together may take to get an address by DHCP, in seconds."""

SCRIPT = Path("/run/reroot-udhcpc")
_SCRIPT_TEXT = b"""#!/bin/busybox sh
# udhcpc's events as lines for recovery.network.parse_lease; numbers only, so no value can hold a newline
case "$1" in
bound|renew) printf 'ip=%s\\nsubnet=%s\\nrouter=%s\\ndns=%s\\n' "$ip" "$subnet" "$router" "$dns" ;;
esac
"""


@dataclass(frozen=True)
class Link:
    """How one link is to be configured: `address` is ADDRESS/PREFIX, None for DHCP; `mtu` is in bytes."""

    mac: str
    address: str | None = None
    gateway: str | None = None
    mtu: int | None = None


@dataclass(frozen=True)
class Network:
    """What network.json says."""

    links: tuple[Link, ...] = ()
    nameservers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Up:
    """What came of bringing the network up: link names with their addresses, name servers, and who said so."""

    addresses: Mapping[str, str]
    how: str


def _link(raw: object) -> Link:
    if not isinstance(raw, dict):
        raise ValueError("a link must be an object")
    mac, address, gateway, mtu = raw.get("mac"), raw.get("address"), raw.get("gateway"), raw.get("mtu")
    if not isinstance(mac, str):
        raise ValueError("a link needs its mac")
    if mtu is not None and not (isinstance(mtu, int) and 576 <= mtu <= 65536):
        raise ValueError(f"mtu {mtu!r} is not a number of bytes")
    return Link(
        mac.lower(), None if address is None else str(ipaddress.ip_interface(str(address))),
        None if gateway is None else str(ipaddress.ip_address(str(gateway))), mtu)


def parse(data: bytes) -> Network:
    """Read network.json; raises ConfigError when it is not one."""
    try:
        raw = json.loads(data)
        if not isinstance(raw, dict):
            raise ValueError("it is not an object")
        links, servers = raw.get("links", []), raw.get("nameservers", [])
        if not isinstance(links, list) or not isinstance(servers, list):
            raise ValueError("links and nameservers must be lists")
        return Network(tuple(_link(link) for link in links),
                       tuple(str(ipaddress.ip_address(str(server))) for server in servers))
    except ValueError as error:
        raise ConfigError(f"network.json is not usable ({error}); recovery asks DHCP instead") from error


def to_json(network: Network) -> bytes:
    """Write network.json."""
    links = [{"mac": link.mac, "address": link.address, "gateway": link.gateway, "mtu": link.mtu}
             for link in network.links]
    return json.dumps({"spec": 1, "links": links, "nameservers": list(network.nameservers)}, indent=1).encode() + b"\n"


def parse_lease(text: str) -> tuple[Link, tuple[str, ...]] | None:
    """Read what the udhcpc script printed: the link (its mac left empty) and name servers; None for no usable lease."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, mark, value = line.partition("=")
        if mark:
            found.setdefault(name, value)
    try:
        address = ipaddress.IPv4Interface(f"{found['ip']}/{found.get('subnet') or '24'}")
        routers = [str(ipaddress.IPv4Address(word)) for word in found.get("router", "").split()]
        servers = tuple(str(ipaddress.IPv4Address(word)) for word in found.get("dns", "").split())
    except (KeyError, ValueError):
        return None
    if address.ip.is_loopback or address.ip.is_multicast or address.ip.is_unspecified:
        return None
    return Link("", str(address), routers[0] if routers else None), servers


def links(sysfs: Path = Path("/sys/class/net")) -> dict[str, str]:
    """Return this machine's Ethernet links: hardware address in lower case -> name."""
    found: dict[str, str] = {}
    for folder in sorted(sysfs.iterdir()) if sysfs.is_dir() else []:
        try:
            kind = (folder / "type").read_text().strip()
            mac = (folder / "address").read_text().strip().lower()
        except OSError:
            continue  # a link that just went away, or a file such as bonding_masters
        if kind == "1" and mac != "00:00:00:00:00:00":
            found.setdefault(mac, folder.name)
    return found


def _ip(*words: str) -> None:
    run(["busybox", "ip", *words], timeout_s=20)


def _has_carrier(name: str, sysfs: Path) -> bool:
    try:
        return (sysfs / name / "carrier").read_text().strip() == "1"
    except OSError:
        return False  # EINVAL while the link is down


def wait_carrier(names: Iterable[str], *, wait_s: float = CARRIER_WAIT_S,
                 sysfs: Path = Path("/sys/class/net")) -> list[str]:
    """Set the links up and return those whose other end is there, as soon as one is, after at most `wait_s` seconds."""
    wanted = list(names)
    for name in wanted:
        _ip("link", "set", "dev", name, "up")
    deadline, pause = clock.monotonic() + wait_s, threading.Event()
    while True:
        ready = [name for name in wanted if _has_carrier(name, sysfs)]
        if ready or clock.monotonic() > deadline:
            return ready
        pause.wait(0.05)


def apply(name: str, link: Link, *, metric: int) -> None:
    """Give a link its addresses and route. Doing it again changes nothing."""
    if link.mtu is not None:
        _ip("link", "set", "dev", name, "mtu", str(link.mtu))
    _ip("link", "set", "dev", name, "up")
    if link.address is None:
        return
    family = "-6" if ":" in link.address else "-4"
    run(["busybox", "ip", family, "addr", "del", link.address, "dev", name], check=False, timeout_s=20)
    _ip(family, "addr", "add", link.address, "dev", name)
    if link.gateway is not None:
        family, width = ("-6", 128) if ":" in link.gateway else ("-4", 32)
        if ipaddress.ip_address(link.gateway) not in ipaddress.ip_interface(link.address).network:
            # a provider's router outside the host's own network is reached by a route of its own
            _ip(family, "route", "replace", f"{link.gateway}/{width}", "dev", name)
        _ip(family, "route", "replace", "default", "via", link.gateway, "dev", name, "metric", str(metric))


def write_resolver(servers: Iterable[str], path: Path = Path("/etc/resolv.conf")) -> None:
    """Name the resolvers; short waits, because a dead one must not hold up a last gasp."""
    lines = [f"nameserver {server}" for server in dict.fromkeys(servers)][:3]
    durable.write_file(path, "\n".join(["options timeout:2 attempts:2", *lines, ""]).encode())


def _dhcp(name: str, script: Path) -> tuple[Link, tuple[str, ...]] | None:
    # -o: ask for numbers only; texts from a DHCP server are never needed here
    done = run(["busybox", "udhcpc", "-n", "-q", "-f", "-i", name, "-s", str(script), "-t", "6", "-T", "2", "-A", "1",
                "-o", "-O", "subnet", "-O", "router", "-O", "dns"], check=False, timeout_s=LEASE_WAIT_S)
    return parse_lease(done.text) if done.status == 0 else None


def lease_all(names: Iterable[str], *, say: Callable[[str], None], script: Path = SCRIPT,
              resolver: Path = Path("/etc/resolv.conf"), wait_s: float = LEASE_WAIT_S) -> dict[str, str]:
    """Ask DHCP on every link at once; return the links that got an address, as soon as the first has one.

    The others go on in the background, so that a second network that is slower still comes up.
    """
    durable.write_file(script, _SCRIPT_TEXT, 0o755)
    found: dict[str, str] = {}
    servers: list[str] = []
    change = threading.Condition()
    waiting = list(names)
    left = [len(waiting)]

    def one(name: str, metric: int) -> None:
        try:
            lease = _dhcp(name, script)
            if lease is not None:
                apply(name, lease[0], metric=metric)
        except (CommandError, OSError) as error:
            say(f"{name}: {error}")
            lease = None
        with change:
            left[0] -= 1
            if lease is not None:
                servers.extend(lease[1])
                found[name] = lease[0].address or ""
                write_resolver(servers, resolver)
            change.notify_all()

    for number, name in enumerate(waiting):
        threading.Thread(target=one, args=(name, 100 + number), daemon=True).start()
    with change:
        change.wait_for(lambda: bool(found) or left[0] == 0, timeout=wait_s)
        return dict(found)


def _no_carrier(names: Iterable[str]) -> NetworkError:
    return NetworkError(f"no carrier on {', '.join(names)}; check the cable and the switch port")


def bring_up(network: Network | None, *, say: Callable[[str], None],
             sysfs: Path = Path("/sys/class/net"), resolver: Path = Path("/etc/resolv.conf"),
             script: Path = SCRIPT) -> Up:
    """Bring the network up as `network` says for the links this machine has, else by DHCP on all of them.

    Raises NetworkError when no link has a cable or none gets an address.
    """
    here = links(sysfs)
    if not here:
        raise NetworkError("this machine has no network link that a driver in the recovery image knows; build the "
                           "recovery image with the driver of its network card")
    described = network.links if network else ()
    known = [(here[link.mac], link) for link in described if link.mac in here and link.address]
    if network is not None and known:
        for number, (name, link) in enumerate(known):
            apply(name, link, metric=100 + number)
        if network.nameservers:
            write_resolver(network.nameservers, resolver)
        if not wait_carrier([name for name, _ in known], sysfs=sysfs):
            raise _no_carrier([name for name, _ in known])
        return Up({name: link.address or "" for name, link in known}, "network.json")
    if not wait_carrier(here.values(), sysfs=sysfs):
        raise _no_carrier(here.values())
    got = lease_all(here.values(), say=say, script=script, resolver=resolver)
    if not got:
        raise NetworkError(f"no DHCP server answered on {', '.join(here.values())}; check that `reroot serve` or your "
                           "own DHCP server is on this network")
    return Up(got, "dhcp")
