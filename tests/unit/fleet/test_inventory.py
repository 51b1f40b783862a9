"""What a host says of itself, read from this machine's own /proc and /sys."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import pytest

from fleet import inventory
from plumbing.errors import DiskError
from plumbing.run import run
from recovery import network


def test_links_are_those_the_kernel_lists() -> None:
    listed = {link["ifname"]: link for link in json.loads(run(["ip", "-json", "address"]).text)}
    for link in inventory.links():
        assert listed[link.name]["address"] == link.mac
        addresses: set[str | None] = {f"{one['local']}/{one['prefixlen']}" for one in listed[link.name]["addr_info"]
                                      if one["family"] == "inet"}
        assert link.address in (addresses or {None})
    routes = {route["dev"]: route.get("gateway") for route in json.loads(run(["ip", "-json", "route"]).text)
              if route["dst"] == "default"}
    assert inventory._gateways() == {name: gateway or "0.0.0.0" for name, gateway in routes.items()}


def test_what_it_says_of_links_is_what_recovery_reads() -> None:
    described = {"spec": 1, "links": [link.to_json() for link in inventory.links()],
                 "nameservers": list(inventory.nameservers())}
    read = network.parse(json.dumps(described).encode())
    assert [link.mac for link in read.links] == [link.mac for link in inventory.links()]


def test_mounts_and_memory_are_this_machines() -> None:
    mounted = inventory._mounted("/proc")
    assert mounted is not None and mounted[1] == "proc"
    assert inventory._mounted("/nothing/is/here") is None
    try:
        facts = inventory.facts()
    except DiskError as error:  # a container: its root is no partition, and that is what it says
        assert "/ lies on" in error.sentence
        return
    assert isinstance(facts["memory_bytes"], int) and facts["memory_bytes"] > 1 << 24
    assert facts["firmware"] in {"bios", "uefi"}


@pytest.mark.parametrize(("text", "found"), [
    ("nameserver 10.1.0.1\nnameserver 2001:db8::1\n", ("10.1.0.1", "2001:db8::1")),
    ("# nameserver 10.1.0.9\nnameserver\n\n  nameserver   10.1.0.1 # first\nnameserver 10.1.0.1\n", ("10.1.0.1",)),
    ("nameserver 127.0.0.53\noptions edns0\n", ()),
    ("nameserver evil;reboot\nnameserver 10.1.0.256\nnameserver 0.0.0.0\nsearch 10.1.0.1\n", ()),
    ("nameserver fe80::1%eth0\nnameserver 224.0.0.251\n", ()),
    ("nameserver 10.1.0.1\x00\nnameserver \xff\n", ()),
])
def test_only_addresses_another_system_can_use_are_nameservers(
        tmp_path: Path, text: str, found: tuple[str, ...]) -> None:
    (tmp_path / "resolv.conf").write_bytes(text.encode("latin-1"))
    assert inventory.nameservers([tmp_path / "absent", tmp_path / "resolv.conf"]) == found
    assert all(ipaddress.ip_address(server) for server in found)


def test_the_resolvers_behind_a_stub_are_asked(tmp_path: Path) -> None:
    (tmp_path / "stub").write_text("nameserver 127.0.0.53\n")
    (tmp_path / "real").write_text("nameserver 10.1.0.1\n")
    assert inventory.nameservers([tmp_path / "stub", tmp_path / "real"]) == ("10.1.0.1",)
