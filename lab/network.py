"""A network of the lab's own: one network namespace, a bridge and a gateway address for every subnet, taps.

I/O: netlink through pyroute2; needs root. Several labs run side by side, for each has its own namespace and
every lab can therefore use the same names and addresses inside: subnet N is 10.77.N.0/24, its bridge is
`lanN`, and the namespace itself holds 10.77.N.1 there. It routes between its subnets and nowhere else: no
lab can reach or disturb the machine's real network, so its DHCP server can't either.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import netns
from pyroute2.iproute.linux import NetNS

from lab.keeper import NAMESPACES, PREFIX
from lab.process import Process
from plumbing import run
from plumbing.errors import NotFoundError, RefusedError, UsageError
from plumbing.run import Argument, Completed

CONTROL_ADDRESS = "10.77.1.1"
"""Where the control server of a lab listens: the lab's own address on its first subnet."""

_TUNSETIFF, _TUNSETPERSIST = 0x400454CA, 0x400454CB
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000


@dataclass(frozen=True)
class Subnet:
    """Subnet `number` (1 to 254) of a lab."""

    number: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= 254:
            raise UsageError(f"subnet {self.number} does not exist; a lab's subnets are numbered 1 to 254")

    @property
    def bridge(self) -> str:
        """The bridge's interface name inside the namespace."""
        return f"lan{self.number}"

    @property
    def gateway(self) -> str:
        """The lab's own address on this subnet: gateway, control server, DHCP server."""
        return f"10.77.{self.number}.1"

    @property
    def cidr(self) -> str:
        """The subnet as address/length."""
        return f"10.77.{self.number}.0/24"

    def address(self, host: int) -> str:
        """Return the address of host number 2 to 254."""
        if not 2 <= host <= 254:
            raise UsageError(f"a subnet has no host {host}; hosts are numbered 2 to 254")
        return f"10.77.{self.number}.{host}"

    def mac(self, host: int) -> str:
        """Return the hardware address that belongs to `address(host)`; 52:54:00 is QEMU's own range."""
        return f"52:54:00:77:{self.number:02x}:{host:02x}"


class Network:
    """The namespace of one lab. `name` is the lab's name; made by `up`, removed by `down`."""

    def __init__(self, name: str, subnets: Sequence[int] = (1,)) -> None:
        self.name = name
        self.namespace = PREFIX + name
        self.subnets = {number: Subnet(number) for number in subnets}
        self._taps = 0
        self._lock = threading.Lock()

    @property
    def path(self) -> Path:
        """The namespace's file; setns(2) and nsenter take it."""
        return NAMESPACES / self.namespace

    def up(self) -> None:
        """Make the namespace, its bridges and addresses, and route between them."""
        if os.geteuid() != 0:
            raise RefusedError("a lab needs root for its network namespace; run it with sudo")
        netns.create(self.namespace)
        with NetNS(self.namespace) as link:
            link.link("set", index=1, state="up")
            for subnet in self.subnets.values():
                link.link("add", ifname=subnet.bridge, kind="bridge", address=subnet.mac(1))
                index = link.link_lookup(ifname=subnet.bridge)[0]
                link.addr("add", index=index, address=subnet.gateway, prefixlen=24)
                link.link("set", index=index, state="up")
        with self.inside():
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def down(self) -> None:
        """Remove the namespace; bridges and taps go with it. Removing it twice is no error."""
        with suppress(FileNotFoundError):
            netns.remove(self.namespace)

    def tap(self, subnet: int) -> str:
        """Make a tap on a subnet's bridge and return its name inside the namespace."""
        if subnet not in self.subnets:
            raise NotFoundError(f"lab {self.name} has no subnet {subnet}; it has {sorted(self.subnets)}")
        with self._lock:
            name, self._taps = f"tap{self._taps}", self._taps + 1
        with self.inside():
            _make_tap(name)
        with NetNS(self.namespace) as link:
            bridge = link.link_lookup(ifname=self.subnets[subnet].bridge)[0]
            link.link("set", index=link.link_lookup(ifname=name)[0], master=bridge, state="up")
        return name

    def plug(self, tap: str, *, connected: bool) -> None:
        """Pull a machine's network cable, or put it back."""
        with NetNS(self.namespace) as link:
            link.link("set", index=link.link_lookup(ifname=tap)[0], state="up" if connected else "down")

    def argv(self, argv: Sequence[Argument]) -> list[Argument]:
        """Return the command line that runs `argv` inside the namespace; the process keeps its id."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def run(
        self, argv: Sequence[Argument], *, stdin: bytes | None = None, timeout_s: float | None = 120.0,
        check: bool = True, cwd: Path | None = None, env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a program inside the namespace to its end, as plumbing.run.run does."""
        return run.run(self.argv(argv), stdin=stdin, timeout_s=timeout_s, check=check, cwd=cwd, env=env)

    def spawn(
        self, argv: Sequence[Argument], *, log: Path, name: str | None = None, cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a program inside the namespace that goes on running; it dies with the lab."""
        return Process(self.argv(argv), name=name or Path(os.fsdecode(argv[0])).name, log=log, cwd=cwd, env=env)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Put the calling thread into the namespace: sockets opened in this block belong to the lab."""
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            netns.setns(self.namespace)
            try:
                yield
            finally:
                netns.setns(outside)
        finally:
            os.close(outside)

    def listening(self, address: str, port: int) -> bool:
        """Tell whether something inside accepts TCP connections at this address and port now."""
        with self.inside(), socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex((address, port)) == 0


def _make_tap(name: str) -> None:
    # Persistent, so that the tap is on its bridge before QEMU opens it and outlives a power cut.
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
        fcntl.ioctl(handle, _TUNSETPERSIST, 1)
    finally:
        os.close(handle)
