"""The network of recovery: descriptions and leases as values, and real links in network namespaces."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbing.errors import ConfigError
from plumbing.run import run
from recovery.network import Link, Network, parse, parse_lease, to_json

# -- values --------------------------------------------------------------------------------------------------


def test_a_description_survives_the_trip() -> None:
    network = Network((Link("52:54:00:00:00:01", "10.1.0.11/24", "10.1.0.1", 1400), Link("52:54:00:00:00:02")),
                      ("10.1.0.1", "fd00::1"))
    assert parse(to_json(network)) == network


def test_what_the_agent_writes_is_read() -> None:
    written = {"links": [{"name": "ens3", "mac": "52:54:00:AA:00:01", "address": "10.1.0.11/24", "gateway": None}],
               "nameservers": []}
    assert parse(json.dumps(written).encode()).links == (Link("52:54:00:aa:00:01", "10.1.0.11/24"),)


@pytest.mark.parametrize("data", [
    b"", b"[]", b"{", b'{"links": 1}', b'{"links": [1]}', b'{"links": [{}]}',
    b'{"links": [{"mac": "x", "address": "10.0.0.1; reboot"}]}', b'{"links": [{"mac": "x", "address": 7, "mtu": 3}]}',
    b'{"links": [{"mac": "x", "address": null, "gateway": "--help"}]}', b'{"nameservers": ["1.2.3.4\\nnameserver x"]}',
    b'{"links": [{"mac": "x", "mtu": "1500 && true"}]}',
])
def test_a_hostile_description_is_one_sentence(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"network\.json"):
        parse(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_description_or_a_sentence(data: bytes) -> None:
    with contextlib.suppress(ConfigError):
        parse(data)


def test_a_lease() -> None:
    text = "udhcpc: started\nip=10.1.0.20\nsubnet=255.255.255.0\nrouter=10.1.0.1 10.1.0.2\ndns=10.1.0.1\n"
    assert parse_lease(text) == (Link("", "10.1.0.20/24", "10.1.0.1"), ("10.1.0.1",))
    assert parse_lease("ip=10.1.0.20\nsubnet=\nrouter=\ndns=\n") == (Link("", "10.1.0.20/24"), ())


@pytest.mark.parametrize("text", ["", "ip=", "ip=127.0.0.1\nsubnet=255.0.0.0", "ip=1.2.3.4\nsubnet=x", "ip=0.0.0.0",
                                  "ip=1.2.3.4\ndns=$(reboot)", "ip=224.0.0.1", "ip=1.2.3.4\nrouter=-h"])
def test_a_bad_lease_is_none(text: str) -> None:
    assert parse_lease(text) is None


@given(st.text(alphabet="ip=subnetrodx.0123456789\n /;$", max_size=120))
def test_whatever_dhcp_says_only_addresses_come_out(text: str) -> None:
    lease = parse_lease("ip=" + text)
    if lease is not None:
        ipaddress.ip_interface(lease[0].address or "")
        for word in (*lease[1], *([lease[0].gateway] if lease[0].gateway else [])):
            ipaddress.ip_address(word)


# -- links ---------------------------------------------------------------------------------------------------


_DRIVER = """
import json, sys
from pathlib import Path
from plumbing.errors import RerootError
from recovery import network
folder = Path(sys.argv[1])
described = folder / "network.json"
try:
    up = network.bring_up(network.parse(described.read_bytes()) if described.exists() else None, say=lambda t: None,
                          resolver=folder / "resolv.conf", script=folder / "script")
    print(json.dumps({"addresses": dict(up.addresses), "how": up.how}))
except RerootError as error:
    print(json.dumps({"error": error.sentence, "kind": error.kind.value}))
"""


@dataclass
class Wire:
    """Two namespaces joined by a cable: the host's, and the one of whoever is at the other end."""

    host: str
    other: str
    folder: Path

    def on_host(self, *words: str) -> str:
        return run(["ip", "netns", "exec", self.host, *words]).text

    def on_other(self, *words: str) -> str:
        return run(["ip", "netns", "exec", self.other, *words]).text

    def bring_up(self) -> dict[str, object]:
        text = run(["ip", "netns", "exec", self.host, sys.executable, "-c", _DRIVER, self.folder],
                   env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}).text
        answer: dict[str, object] = json.loads(text)
        return answer

    @property
    def mac(self) -> str:
        return self.on_host("cat", "/sys/class/net/lan0/address").strip()


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    wire = Wire(f"rr-h-{os.getpid()}", f"rr-o-{os.getpid()}", tmp_path)
    for name in (wire.host, wire.other):
        run(["ip", "netns", "add", name])
    run(["ip", "-n", wire.host, "link", "add", "lan0", "type", "veth", "peer", "name", "far0", "netns", wire.other])
    run(["ip", "-n", wire.other, "addr", "add", "10.9.0.1/24", "dev", "far0"])
    run(["ip", "-n", wire.other, "link", "set", "far0", "up"])
    yield wire
    for name in (wire.host, wire.other):
        run(["ip", "netns", "del", name])


@pytest.fixture
def dhcpd(wire: Wire) -> Iterator[None]:
    config = wire.folder / "udhcpd.conf"
    config.write_text(f"start 10.9.0.50\nend 10.9.0.59\ninterface far0\nlease_file {wire.folder}/leases\n"
                      f"pidfile {wire.folder}/pid\noption subnet 255.255.255.0\noption router 10.9.0.1\n"
                      "option dns 10.9.0.1 10.9.0.2\noption domain evil.example\nsiaddr 10.9.0.1\n")
    (wire.folder / "leases").touch()
    server = subprocess.Popen(["ip", "netns", "exec", wire.other, "busybox", "udhcpd", "-f", config],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield
    server.kill()
    server.wait()


@pytest.mark.root
def test_addresses_from_the_description(wire: Wire) -> None:
    (wire.folder / "network.json").write_bytes(to_json(Network(
        (Link("52:54:99:99:99:99", "10.7.0.1/24"), Link(wire.mac.upper(), "10.9.0.11/24", "10.9.0.1", 1400)),
        ("10.9.0.1",))))
    assert wire.bring_up() == {"addresses": {"lan0": "10.9.0.11/24"}, "how": "network.json"}
    assert "default via 10.9.0.1 dev lan0" in wire.on_host("ip", "route")
    assert "mtu 1400" in wire.on_host("ip", "link", "show", "lan0")
    assert "nameserver 10.9.0.1" in (wire.folder / "resolv.conf").read_text()
    wire.on_host("busybox", "ping", "-c", "1", "-W", "5", "10.9.0.1")
    assert wire.bring_up()["how"] == "network.json", "an attempt that begins anew finds its own work and does it again"
    assert wire.on_host("ip", "-4", "addr", "show", "lan0").count("inet ") == 1


@pytest.mark.root
def test_a_gateway_outside_the_host_s_network(wire: Wire) -> None:
    (wire.folder / "network.json").write_bytes(to_json(Network((Link(wire.mac, "192.0.2.7/32", "10.9.0.1"),))))
    wire.bring_up()
    routes = wire.on_host("ip", "route")
    assert "10.9.0.1 dev lan0" in routes and "default via 10.9.0.1" in routes


@pytest.mark.root
@pytest.mark.usefixtures("dhcpd")
def test_dhcp_where_nothing_is_described(wire: Wire) -> None:
    answer = wire.bring_up()
    assert answer["how"] == "dhcp"
    assert str(answer["addresses"]).startswith("{'lan0': '10.9.0.5")
    assert "default via 10.9.0.1 dev lan0" in wire.on_host("ip", "route")
    resolver = (wire.folder / "resolv.conf").read_text()
    assert "nameserver 10.9.0.1\nnameserver 10.9.0.2" in resolver and "evil" not in resolver


@pytest.mark.root
@pytest.mark.usefixtures("dhcpd")
def test_dhcp_where_the_description_is_of_another_machine(wire: Wire) -> None:
    (wire.folder / "network.json").write_bytes(to_json(Network((Link("52:54:99:99:99:99", "10.7.0.1/24"),))))
    assert wire.bring_up()["how"] == "dhcp"


@pytest.mark.root
def test_nobody_answers_dhcp(wire: Wire) -> None:
    answer = wire.bring_up()
    assert answer["kind"] == "network" and "no DHCP server answered on lan0" in str(answer["error"])


@pytest.mark.root
def test_a_machine_without_links(wire: Wire) -> None:
    run(["ip", "-n", wire.host, "link", "del", "lan0"])
    answer = wire.bring_up()
    assert answer["kind"] == "network" and "no network link" in str(answer["error"])
