"""The TFTP server: tftpy's packet codec under our own asyncio server (ADR 9, docs/protocols/boot.md).

Read-only, every request hostile: whatever a datagram holds, the sender gets an ERROR or silence and the server lives.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tftpy.TftpPacketFactory import TftpPacketFactory
from tftpy.TftpPacketTypes import TftpPacketACK, TftpPacketERR, TftpPacketOACK, TftpPacketRRQ, TftpPacketWRQ
from tftpy.TftpShared import TftpException

log = logging.getLogger(__name__)

MAX_BLOCK_BYTES = 1468
"""A data packet of this size fits an Ethernet frame unfragmented."""
MAX_WINDOW = 64
MAX_TIMEOUT_S = 8
"""A longer time-out is not agreed to: with 255 s a handful of packets would hold all transfers for half an hour."""
MAX_PER_ADDRESS = 8
"""Transfers of one machine at once; it needs one, and abandons some when it starts again."""
REPEATS = 6
"""How often a window is sent again before the transfer is given up."""
FIRST_REPEATS, FIRST_TIMEOUT_S = 2, 1.0
"""The same before the client's first acknowledgement, and the seconds between: the request's sender may be made up."""
NOT_FOUND, ACCESS, ILLEGAL = 1, 2, 4
_MALFORMED = (TftpException, ValueError, struct.error, AssertionError, TypeError, IndexError, KeyError)

Address = tuple[str, int]


@dataclass(frozen=True)
class Terms:
    """What both sides agreed on: bytes per block, seconds before a repeat, blocks per acknowledgement."""

    block_bytes: int = 512
    timeout_s: float = 1.0
    window: int = 1
    agreed: tuple[tuple[str, str], ...] = ()


def negotiate(options: dict[str, str], size: int) -> Terms:
    """Pure: take what we can of the asked options for a file of `size` bytes; bad values are left out."""
    def number(name: str, low: int, high: int) -> int | None:
        text = asked.get(name, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 7 and low <= int(text) <= high else None

    asked = {name.lower(): value for name, value in options.items()}
    agreed: list[tuple[str, str]] = []
    block, window = number("blksize", 8, 65464), number("windowsize", 1, 65535)
    timeout = number("timeout", 1, MAX_TIMEOUT_S)
    if block is not None:
        block = min(block, MAX_BLOCK_BYTES)
        agreed.append(("blksize", str(block)))
    if timeout is not None:
        agreed.append(("timeout", str(timeout)))
    if window is not None:
        window = min(window, MAX_WINDOW)
        agreed.append(("windowsize", str(window)))
    if "tsize" in asked:
        agreed.append(("tsize", str(size)))
    return Terms(block or 512, float(timeout or 1), window or 1, tuple(agreed))


def open_below(root: Path, name: str) -> int:
    """Open a regular file below `root` for reading, through no symbolic link; raises OSError."""
    parts = name.lstrip("/").split("/")
    if not name.isascii() or "\\" in name or any(part in {"", ".", ".."} for part in parts):
        raise PermissionError(f"{name!r} is not a name below the boot folder")
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = inner
        handle = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise PermissionError(f"{name!r} is not a file")
    return handle


def _error(code: int) -> bytes:
    packet = TftpPacketERR()
    packet.errorcode = code
    return bytes(packet.encode().buffer)


class _Peer(asyncio.DatagramProtocol):
    """The transfer's own port: acknowledgements of one client, in order of arrival."""

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[bytes] = asyncio.Queue(maxsize=256)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        """Keep one datagram for the transfer; a flood is dropped."""
        if not self.arrived.full():
            self.arrived.put_nowait(data)


class Transfer:
    """One file to one client."""

    def __init__(self, handle: int, size: int, terms: Terms) -> None:
        self._handle, self._terms = handle, terms
        self._last = size // terms.block_bytes + 1
        self._factory = TftpPacketFactory()

    async def run(self, transport: asyncio.DatagramTransport, peer: _Peer) -> bool:
        """Send everything; return whether the client acknowledged the last block."""
        done, repeats, heard = 0, 0, False
        if self._terms.agreed:
            packet = TftpPacketOACK()
            packet.options = dict(self._terms.agreed)
            hello = bytes(packet.encode().buffer)
            done = -1
        while done < self._last:
            if done < 0:
                transport.sendto(hello)
            else:
                for block in range(done + 1, min(done + self._terms.window, self._last) + 1):
                    transport.sendto(self._block(block))
            wait_s = self._terms.timeout_s if heard else min(FIRST_TIMEOUT_S, self._terms.timeout_s)
            reached = await self._acknowledged(peer, done, wait_s)
            if reached is None:
                return False
            heard = heard or reached != done
            repeats = repeats + 1 if reached == done else 0
            if repeats > (REPEATS if heard else FIRST_REPEATS):
                return False
            done = reached
        return True

    def _block(self, number: int) -> bytes:
        data = os.pread(self._handle, self._terms.block_bytes, (number - 1) * self._terms.block_bytes)
        return struct.pack("!HH", 3, number & 0xFFFF) + data

    async def _acknowledged(self, peer: _Peer, done: int, wait_s: float) -> int | None:
        """Wait `wait_s` for news: the block now acknowledged, `done` after a time-out, None when the client gave up.

        An old acknowledgement is ignored, which also keeps a duplicated one from doubling the traffic.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    packet = self._factory.parse(await peer.arrived.get())
            except TimeoutError:
                return done
            except _MALFORMED:
                continue
            if isinstance(packet, TftpPacketERR):
                return None
            if not isinstance(packet, TftpPacketACK):
                continue
            ahead = (packet.blocknumber - max(done, 0)) & 0xFFFF
            if (done < 0 and ahead == 0) or 0 < ahead <= self._terms.window:
                return max(done, 0) + ahead


class TftpServer(asyncio.DatagramProtocol):
    """Port 69: starts a transfer per read request, answers everything else with an ERROR."""

    def __init__(self, root: Path, *, max_transfers: int = 200) -> None:
        self._root, self._max = root, max_transfers
        self._running: dict[Address, tuple[bytes, asyncio.Task[None]]] = {}
        self._factory = TftpPacketFactory()
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the socket that asyncio made."""
        # asyncio's own datagram transport is no DatagramTransport by class before Python 3.12
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        """Start a transfer, or say why not."""
        assert self._transport is not None
        try:
            request = self._factory.parse(data)
        except _MALFORMED:
            self._transport.sendto(_error(ILLEGAL), addr)
            return
        if isinstance(request, TftpPacketWRQ):
            self._transport.sendto(_error(ACCESS), addr)
        elif isinstance(request, TftpPacketRRQ) and request.mode == "octet":
            self._begin(request, data, addr)
        elif not isinstance(request, TftpPacketERR):
            self._transport.sendto(_error(ILLEGAL), addr)

    def _begin(self, request: TftpPacketRRQ, data: bytes, addr: Address) -> None:
        assert self._transport is not None
        name = request.filename or ""
        known = self._running.pop(addr, None)
        if known is not None and known[0] != data:
            known[1].cancel()  # the client gave the old transfer up
        elif known is not None:
            self._running[addr] = known
            return  # a repeated request: the answer is under way
        if len(self._running) >= self._max or sum(addr[0] == other[0] for other in self._running) >= MAX_PER_ADDRESS:
            return  # the client asks again
        try:
            handle = open_below(self._root, name)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else None
            log.info("tftp: %s asked for %.100r: %s", addr[0], name, why or "no name below the boot folder")
            code = ACCESS if isinstance(error, PermissionError) else NOT_FOUND
            self._transport.sendto(_error(code), addr)
            return
        task = asyncio.create_task(self._serve(handle, request, addr))
        self._running[addr] = (data, task)
        task.add_done_callback(lambda _: self._ended(addr, data))

    def _ended(self, addr: Address, data: bytes) -> None:
        if addr in self._running and self._running[addr][0] == data:
            del self._running[addr]

    async def _serve(self, handle: int, request: TftpPacketRRQ, addr: Address) -> None:
        assert self._transport is not None
        local = self._transport.get_extra_info("sockname")
        size = os.fstat(handle).st_size
        try:
            transport, peer = await asyncio.get_running_loop().create_datagram_endpoint(
                _Peer, local_addr=(local[0], 0), remote_addr=addr)
            try:
                complete = await Transfer(handle, size, negotiate(request.options, size)).run(transport, peer)
            finally:
                transport.close()
            log.info("tftp: %s %s %s (%d bytes)", addr[0], "took" if complete else "gave up on", request.filename, size)
        except OSError as error:
            log.warning("tftp: %s could not be served: %s", addr[0], error)
        finally:
            os.close(handle)

    async def close(self) -> None:
        """Stop listening and end every transfer."""
        if self._transport is not None:
            self._transport.close()
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def serve(root: Path, host: str, port: int, *, max_transfers: int = 200) -> TftpServer:
    """Listen on host:port (UDP) and return the running server; raises OSError when the port is taken."""
    _, server = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: TftpServer(root, max_transfers=max_transfers), local_addr=(host, port))
    return server
