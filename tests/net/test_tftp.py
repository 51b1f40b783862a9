"""TFTP against real clients (busybox tftp, curl where there is one) and hostile datagrams, in network namespaces."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Wire

from control import tftp
from lab.network import Network

pytestmark = pytest.mark.root

OACK, DATA, ERROR = 6, 3, 5


@pytest.fixture
def root(wire: Wire, tmp_path: Path) -> Path:
    folder = tmp_path / "boot"
    folder.mkdir()
    (folder / "ipxe.efi").write_bytes(os.urandom(1_000_003))
    (folder / "exact").write_bytes(os.urandom(1024))
    (folder / "empty").write_bytes(b"")
    (tmp_path / "boot-secret").write_bytes(b"a sibling whose name starts like the folder's")
    (folder / "link").symlink_to(tmp_path / "boot-secret")
    (folder / "up").symlink_to(tmp_path)
    server = wire.serve(tftp.serve(folder, "10.77.1.1", 69))
    wire.closers.append(lambda: wire.serve(server.close()))
    wire.ask("ip", "addr", "add", "10.77.1.200/24", "dev", "eth0")
    return folder


@pytest.fixture
def client(wire: Wire, root: Path) -> Iterator[socket.socket]:
    made: list[socket.socket] = []

    def make() -> None:
        with Network(wire.client.removeprefix("reroot-")).inside():
            made.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            made[0].bind(("10.77.1.200", 0))
            made[0].settimeout(5)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    yield made[0]
    made[0].close()


def rrq(name: bytes, *options: bytes, mode: bytes = b"octet") -> bytes:
    return b"\0\1" + b"\0".join([name, mode, *options]) + b"\0"


def fetch(client: socket.socket, request: bytes, *, ack_every: int = 1) -> bytes:
    """A plain RFC 7440 client: returns the file; expects blocks in order."""
    client.sendto(request, ("10.77.1.1", 69))
    got, block, size, pending = bytearray(), 0, 512, 0
    while True:
        packet, peer = client.recvfrom(65536)
        kind, number = struct.unpack_from("!HH", packet)
        if kind == OACK:
            words = packet[2:].split(b"\0")
            size = int(dict(zip(words[::2], words[1::2], strict=False)).get(b"blksize", b"512"))
            client.sendto(struct.pack("!HH", 4, 0), peer)
            continue
        assert kind == DATA, packet
        if number != (block + 1) & 0xFFFF:
            continue
        block, pending = block + 1, pending + 1
        got += packet[4:]
        last = len(packet) - 4 < size
        if last or pending == ack_every:
            client.sendto(struct.pack("!HH", 4, block & 0xFFFF), peer)
            pending = 0
        if last:
            return bytes(got)


@pytest.mark.parametrize("name", ["ipxe.efi", "exact", "empty"])
def test_busybox_gets_the_file(wire: Wire, root: Path, tmp_path: Path, name: str) -> None:
    wire.ask("busybox", "tftp", "-g", "-b", "1468", "-r", name, "-l", tmp_path / "got", "10.77.1.1")
    assert (tmp_path / "got").read_bytes() == (root / name).read_bytes()


def test_windows_and_block_rollover(root: Path, client: socket.socket) -> None:
    """70,000 blocks of 8 bytes: the block number passes 65535."""
    data = os.urandom(70_000 * 8 + 3)
    (root / "long").write_bytes(data)
    assert fetch(client, rrq(b"long", b"blksize", b"8", b"windowsize", b"32"), ack_every=32) == data


def test_a_lost_window_is_sent_again(root: Path, client: socket.socket) -> None:
    client.sendto(rrq(b"exact", b"timeout", b"1"), ("10.77.1.1", 69))
    _, peer = client.recvfrom(2048)
    client.sendto(struct.pack("!HH", 4, 0), peer)
    first, _ = client.recvfrom(2048)
    again, _ = client.recvfrom(2048)  # never acknowledged, so it comes a second time
    assert first == again
    client.sendto(b"\0\5\0\0enough\0", peer)


@pytest.mark.parametrize(("request_bytes", "codes"), [
    (rrq(b"../boot-secret"), {1, 2}), (rrq(b"link"), {1, 2}), (rrq(b"up/boot-secret"), {1, 2}),
    (rrq(b"/etc/passwd"), {1}),
    (rrq(b"..\\boot-secret"), {1, 2}), (rrq(b"nothing"), {1}), (rrq(b""), {1, 2}), (rrq(b"."), {1, 2}),
    (rrq(b"caf\xc3\xa9"), {4}), (rrq(b"exact", mode=b"netascii"), {4}),
    (b"\0\2exact\0octet\0", {2}), (b"\0\1exact", {4}),
    (b"\0\x09junk\0", {4}), (b"\0", {4}), (rrq(b"a" * 3000), {1, 2}),
])
def test_hostile_requests_get_an_error_and_the_server_lives(
        root: Path, client: socket.socket, request_bytes: bytes, codes: set[int]) -> None:
    """Fault 17."""
    client.sendto(request_bytes, ("10.77.1.1", 69))
    answer, _ = client.recvfrom(2048)
    kind, code = struct.unpack_from("!HH", answer)
    assert kind == ERROR
    assert code in codes
    assert fetch(client, rrq(b"exact")) == (root / "exact").read_bytes()


@pytest.mark.parametrize("value", [b"abc", b"-1", b"0", b"99999999999", b"", b"\xff"])
def test_nonsense_option_values_do_no_harm(root: Path, client: socket.socket, value: bytes) -> None:
    """Fault 17: blksize=abc killed another server; here the option is left out or the request refused."""
    client.sendto(rrq(b"exact", b"blksize", value), ("10.77.1.1", 69))
    answer, peer = client.recvfrom(2048)
    kind = struct.unpack_from("!H", answer)[0]
    assert kind in {DATA, ERROR}
    if kind == DATA:
        assert len(answer) == 4 + 512
        client.sendto(b"\0\5\0\0enough\0", peer)
    assert fetch(client, rrq(b"exact", b"blksize", b"1024")) == (root / "exact").read_bytes()
