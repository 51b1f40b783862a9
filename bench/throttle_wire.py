"""Asking each peer for slots at the lowest cost to the asker: 256 connections in one thread, bytes made by hand. I/O.

`python -m bench.throttle_wire PEER ADDRESS CONNECTIONS WARM_S SECONDS [FILE]` prints `begin`, then one line of JSON.
It is a process of its own, so that what it costs is not the server's, and tells its own CPU time.

etcd is spoken to in gRPC over HTTP/2: unary calls in frames made here, for the client libraries of Python cost several
times what the server does. One pair is a lease, a transaction that puts a key under it if nobody has it, and the
revocation of the lease: the way etcd's own documentation builds locks. Every connection has a key of its own, so
that none ever waits for another: nothing is asked of etcd that a semaphore would add.

PostgreSQL is spoken to by asyncpg: one statement takes a free row of a table FOR UPDATE SKIP LOCKED and writes the
holder into it, another one gives it back.

reroot is spoken to in HTTP/1.1 as docs/protocols/tickets.md has it, each connection a host: in a session that it opens
before it is measured, like a client that asks often, or signing each request.
"""

from __future__ import annotations

import asyncio
import json
import resource
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, cast

import uvloop

TTL_S = 3600


class Asker(Protocol):
    """One connection that gets a slot and gives it back."""

    async def pair(self, lap: Callable[[], None]) -> None:
        """Get, call `lap`, give back."""


# --- etcd -------------------------------------------------------------------------------------------------------------

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return one HTTP/2 frame (RFC 9113, 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def header_block(path: str) -> bytes:
    """Return the request headers of a gRPC call, all literal and never indexed (RFC 7541, 6.2.2)."""
    def word(text: str) -> bytes:
        assert len(text) < 127
        return bytes((len(text),)) + text.encode()

    fields = ((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "etcd"), ("te", "trailers"),
              ("content-type", "application/grpc"))
    return b"".join(b"\0" + word(name) + word(value) for name, value in fields)


def varint(number: int) -> bytes:
    """Return a protobuf varint."""
    out = bytearray()
    number &= (1 << 64) - 1
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def number_field(tag: int, number: int) -> bytes:
    """Return a protobuf integer field."""
    return varint(tag << 3) + varint(number)


def bytes_field(tag: int, value: bytes) -> bytes:
    """Return a protobuf field of bytes or of a message."""
    return varint(tag << 3 | 2) + varint(len(value)) + value


def number_of(message: bytes, tag: int) -> int:
    """Return the integer field `tag` of a message that has only integers and lengths, 0 when it is not there."""
    at = 0

    def read() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = read()
        value = read()
        if key & 7 == 2:
            at += value
        elif key >> 3 == tag:
            return value
    return 0


class Http2(asyncio.Protocol):
    """One HTTP/2 connection with one unary gRPC call at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._stream = 1
        self._body = b""
        self._waiting: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(_PREFACE + frame(_SETTINGS, 0, 0, b"") + frame(_WINDOW, 0, 0, struct.pack(">I", 1 << 30)))

    def call(self, headers: bytes, message: bytes) -> Awaitable[bytes]:
        """Begin a call; the answer is the message."""
        stream, self._stream = self._stream, self._stream + 2
        self._body = b""
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(frame(_HEADERS, _END_HEADERS, stream, headers)
                              + frame(_DATA, _END_STREAM, stream, b"\0" + struct.pack(">I", len(message)) + message))
        return self._waiting

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 9:
            length = int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < 9 + length:
                return
            kind, flags = self._buffer[3], self._buffer[4]
            payload, self._buffer = self._buffer[9:9 + length], self._buffer[9 + length:]
            self._frame(kind, flags, payload)

    def _frame(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == _DATA:
            self._body += payload
        elif kind == _SETTINGS and not flags & _ACK:
            self._transport.write(frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._transport.write(frame(_PING, _ACK, 0, payload))
        elif kind in {_RST, _GOAWAY}:
            self._fail(f"etcd ended the call: {payload!r}")
        if kind in {_DATA, _HEADERS} and flags & _END_STREAM and self._waiting is not None:
            if len(self._body) < 5:
                self._fail(f"etcd answered with an error: {payload!r}")
            else:
                self._waiting.set_result(self._body[5:])

    def _fail(self, sentence: str) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionError(sentence))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("the connection was lost")


_GRANT, _REVOKE, _TXN = map(header_block, (
    "/etcdserverpb.Lease/LeaseGrant", "/etcdserverpb.Lease/LeaseRevoke", "/etcdserverpb.KV/Txn"))


class EtcdAsker:
    """Lease, transaction, revocation."""

    def __init__(self, wire: Http2, key: bytes) -> None:
        self._wire, self._key = wire, key
        self._compare = bytes_field(1, number_field(1, 0) + number_field(2, 0) + bytes_field(3, key)
                                    + number_field(4, 0))  # version(key) = 0: nobody has it

    async def pair(self, lap: Callable[[], None]) -> None:
        lease = number_of(await self._wire.call(_GRANT, number_field(1, TTL_S)), 2)
        put = bytes_field(1, self._key) + bytes_field(2, b"alpha") + number_field(3, lease)
        answer = await self._wire.call(_TXN, self._compare + bytes_field(2, bytes_field(2, put)))
        assert number_of(answer, 2) == 1, "the slot was taken"
        lap()
        await self._wire.call(_REVOKE, number_field(1, lease))


async def etcd(address: str, number: int, _file: Path) -> EtcdAsker:
    """Connect to etcd."""
    host, _, port = address.rpartition(":")
    _, wire = await asyncio.get_running_loop().create_connection(Http2, host, int(port))
    return EtcdAsker(wire, b"slots/%06d" % number)


# --- PostgreSQL -------------------------------------------------------------------------------------------------------

TAKE = """update slots set holder = $1, until = now() + interval '1 hour'
where id = (select id from slots where holder is null limit 1 for update skip locked) returning id"""
GIVE = "update slots set holder = null where id = $1 and holder = $2"


class PostgresAsker:
    """Take a free row, empty it again."""

    def __init__(self, connection: object, holder: str) -> None:
        self._connection, self._holder = connection, holder

    async def prepare(self) -> PostgresAsker:
        self._take = await self._connection.prepare(TAKE)  # type: ignore[attr-defined]
        self._give = await self._connection.prepare(GIVE)  # type: ignore[attr-defined]
        return self

    async def pair(self, lap: Callable[[], None]) -> None:
        slot = await self._take.fetchval(self._holder)
        assert slot is not None, "no slot was free"
        lap()
        await self._give.fetch(slot, self._holder)


async def postgres(address: str, number: int, _file: Path) -> PostgresAsker:
    """Connect to PostgreSQL; `address` is its URL."""
    import asyncpg

    return await PostgresAsker(await asyncpg.connect(address), f"h{number}").prepare()


# --- reroot -----------------------------------------------------------------------------------------------------------


class Http1(asyncio.Protocol):
    """One HTTP/1.1 connection with one request at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._waiting: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes) -> Awaitable[tuple[int, bytes]]:
        """Send a request; the answer is its status and body."""
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._waiting

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or self._waiting is None:
            return
        head = self._buffer[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15:].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._buffer) < end + 4 + length:
            return
        body, self._buffer = self._buffer[end + 4:end + 4 + length], self._buffer[end + 4 + length:]
        self._waiting.set_result((int(head[9:12]), body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionError("the connection was lost"))


_GET, _RETURN = "/api/v1/tickets", "/api/v1/tickets/"
_WISH = b'{"service":"bench"}'


class RerootAsker:
    """A host that gets a ticket and returns it; `proof` makes the header lines that prove who it is."""

    def __init__(self, wire: Http1, proof: Callable[[str, str, bytes], str]) -> None:
        self._wire, self._proof = wire, proof

    def _request(self, method: str, target: str, body: bytes = b"") -> bytes:
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        return (f"{method} {target} HTTP/1.1\r\nHost: x\r\n{self._proof(method, target, body)}{length}\r\n".encode()
                + body)

    async def pair(self, lap: Callable[[], None]) -> None:
        status, answer = await self._wire.ask(self._request("POST", _GET, _WISH))
        assert status == 200, answer
        lap()
        status, answer = await self._wire.ask(self._request("DELETE", _RETURN + json.loads(answer)["ticket"]))
        assert status == 204, answer


async def _reroot(address: str, number: int, file: Path) -> tuple[Http1, Callable[[str, str, bytes], dict[str, str]]]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from plumbing import hostauth

    host, _, port = address.rpartition(":")
    _, wire = await asyncio.get_running_loop().create_connection(Http1, host, int(port))
    name, raw = json.loads(file.read_bytes())[number]
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(raw))
    return wire, lambda method, target, body: hostauth.sign(key, name, time.time(), method, target, body)


async def signing(address: str, number: int, file: Path) -> RerootAsker:
    """Connect to reroot as a host that signs each request; `file` holds hosts and their keys, as JSON."""
    wire, sign = await _reroot(address, number, file)
    return RerootAsker(wire, lambda *words: _lines(sign(*words)))


async def speaking(address: str, number: int, file: Path) -> RerootAsker:
    """Connect to reroot as a host that opens a session, with one signature; `file` as `signing` has it."""
    from plumbing import session

    wire, sign = await _reroot(address, number, file)
    key = session.new_key()
    ours = session.public_of(key)
    body = json.dumps({"public": ours}).encode()
    headers = sign("POST", session.OPENING, body)
    status, answer = await wire.ask(
        f"POST {session.OPENING} HTTP/1.1\r\nHost: x\r\n{_lines(headers)}Content-Length: {len(body)}\r\n\r\n".encode()
        + body)
    assert status == 201, answer
    told = json.loads(answer)
    secret = session.agree(key, told["public"], headers["Reroot-Host"], told["session"], (ours, told["public"]))
    count = 0

    def proof(method: str, target: str, body: bytes) -> str:
        nonlocal count
        count += 1
        return _lines(session.speak(secret, told["session"], count, method, target, body))

    return RerootAsker(wire, proof)


def _lines(headers: dict[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())


PEERS: dict[str, Callable[[str, int, Path], Awaitable[Asker]]] = {
    "etcd": etcd, "PostgreSQL": postgres, "reroot": speaking, "reroot, signing": signing}


async def load(peer: str, address: str, connections: int, warm_s: float, seconds: float, file: Path) -> None:
    """Ask with all connections as fast as the answers come."""
    askers = []
    for number in range(connections):
        askers.append(await PEERS[peer](address, number, file))
        await askers[-1].pair(lambda: None)  # reroot closes connections that ask for nothing
    grants: list[float] = []
    pairs: list[float] = []
    began = time.perf_counter() + warm_s
    ends = began + seconds

    async def keep_asking(asker: Asker) -> None:
        while (start := time.perf_counter()) < ends:
            granted = start

            def lap() -> None:
                nonlocal granted
                granted = time.perf_counter()

            await asker.pair(lap)
            if began <= (done := time.perf_counter()) < ends:
                grants.append(granted - start)
                pairs.append(done - start)

    work = [asyncio.create_task(keep_asking(asker)) for asker in askers]
    await asyncio.sleep(max(0.0, began - time.perf_counter()))
    used = cpu_s()
    print("begin", flush=True)
    await asyncio.sleep(max(0.0, ends - time.perf_counter()))
    used = cpu_s() - used
    print(json.dumps({"pairs": len(pairs), "cpu_s": used, "grant_s": sorted(grants), "pair_s": sorted(pairs)}),
          flush=True)
    await asyncio.gather(*work)


def cpu_s() -> float:
    """Return the CPU seconds of this process."""
    mine = resource.getrusage(resource.RUSAGE_SELF)
    return mine.ru_utime + mine.ru_stime


if __name__ == "__main__":
    uvloop.run(load(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]),
                     Path((sys.argv[6:] or ["/dev/null"])[0])))
