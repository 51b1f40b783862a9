"""The second copy's format: headers and chunks, sealed and opened (pure; docs/protocols/second-copy.md has every byte).

Keys and bytes in, bytes out. Who may read is decided when the header is made; what was changed, cut, moved or mixed is
a CorruptError, a key that is no recipient's a TrustError.
"""

from __future__ import annotations

import hashlib
import os
import struct
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from plumbing.errors import CorruptError, TrustError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

MAGIC, VERSION = b"reroot 2nd copy\n", 1
CHUNK_BYTES = 1 << 16
"""Plaintext of every chunk but the last."""
TAG_BYTES, KEY_BYTES = 16, 32
MAX_RECIPIENTS = 8

_FIXED = struct.Struct(">16sBBBBI16s")
_ENTRY = struct.Struct(f">{KEY_BYTES}s{KEY_BYTES}s{KEY_BYTES + TAG_BYTES}s")
MAX_HEADER_BYTES = _FIXED.size + 253 + MAX_RECIPIENTS * _ENTRY.size


@dataclass(frozen=True)
class Wrapped:
    """The content key for one recipient: his public key, an ephemeral one, and the key encrypted."""

    recipient: bytes
    ephemeral: bytes
    key: bytes


@dataclass(frozen=True)
class Header:
    """Whose copy it is, of which order (a UUID), and for whom."""

    order: str
    host: str
    wrapped: tuple[Wrapped, ...]

    @cached_property
    def _head(self) -> bytes:
        return _head(self.order, self.host, len(self.wrapped))

    @cached_property
    def encoded(self) -> bytes:
        """The header's bytes."""
        return self._head + b"".join(_ENTRY.pack(one.recipient, one.ephemeral, one.key) for one in self.wrapped)

    @classmethod
    def decode(cls, data: bytes) -> Header:
        """Read the header that `data` begins with; raises CorruptError when it is none of this version."""
        if len(data) < _FIXED.size:
            raise _bad("it is too short")
        magic, version, recipients, length, zero, chunk, order = _FIXED.unpack_from(data)
        if magic != MAGIC:
            raise _bad("it does not begin like one")
        if version != VERSION:
            raise _bad(f"it has version {version}; use the reroot that made it, or a newer one")
        if not (1 <= recipients <= MAX_RECIPIENTS and 1 <= length <= 253 and zero == 0 and chunk == CHUNK_BYTES):
            raise _bad("its header holds numbers that cannot be")
        start = _FIXED.size + length
        name = data[_FIXED.size:start]
        if len(data) < start + recipients * _ENTRY.size or not name.isascii():
            raise _bad("its header is cut off or names no host")
        wrapped = tuple(Wrapped(*_ENTRY.unpack_from(data, start + number * _ENTRY.size))
                        for number in range(recipients))
        return cls(str(uuid.UUID(bytes=order)), name.decode("ascii"), wrapped)

    def unwrap(self, key: X25519PrivateKey) -> Stream:
        """Return what opens the chunks; raises TrustError when `key` is no recipient's, CorruptError for a bent one."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        mine = key.public_key().public_bytes_raw()
        for one in self.wrapped:
            if one.recipient != mine:
                continue
            try:
                shared = key.exchange(X25519PublicKey.from_public_bytes(one.ephemeral))
                cipher = ChaCha20Poly1305(_wrap_key(shared, one.ephemeral, mine))
                return Stream(self, cipher.decrypt(bytes(12), one.key, self._head))
            except (InvalidTag, ValueError) as error:
                raise _bad("its key was changed") from error
        raise TrustError(f"this key does not open the copy of {self.host}: it is for {', '.join(self.recipients)}; "
                         "take the key with one of these ids")

    @property
    def recipients(self) -> tuple[str, ...]:
        """The beginnings of the ids of the keys that open it."""
        return tuple(key_id(one.recipient)[:16] for one in self.wrapped)


class Stream:
    """The chunks of one copy: `seal` and `opened` take their number and whether it is the last."""

    def __init__(self, header: Header, content_key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        self.header = header
        self._cipher = ChaCha20Poly1305(_derive(content_key, hashlib.sha256(header.encoded).digest(), b"stream"))

    def seal(self, number: int, plain: bytes, *, last: bool) -> bytes:
        """Return a chunk. The same number must never be sealed with two plaintexts."""
        if not 0 < len(plain) <= CHUNK_BYTES or (not last and len(plain) != CHUNK_BYTES):
            raise UsageError(f"a chunk cannot have {len(plain)} bytes")
        return self._cipher.encrypt(_nonce(number, last), plain, None)

    def opened(self, number: int, chunk: bytes, *, last: bool) -> bytes:
        """Return a chunk's plaintext; raises CorruptError unless it is this copy's, in this place, last or not."""
        from cryptography.exceptions import InvalidTag

        if TAG_BYTES < len(chunk) <= CHUNK_BYTES + TAG_BYTES:
            try:
                return self._cipher.decrypt(_nonce(number, last), chunk, None)
            except InvalidTag:
                pass
        raise _bad(f"chunk {number} was changed, moved or cut off")


def begin(order: str, host: str, recipients: Iterable[bytes]) -> Stream:
    """Return a new copy's stream, for the X25519 public keys `recipients` (32 raw bytes each); its key is random.

    Raises UsageError for no recipient, too many, or a key that is none.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    content = os.urandom(KEY_BYTES)
    keys = tuple(dict.fromkeys(recipients))
    head = _head(order, host, len(keys))
    return Stream(Header(order, host, tuple(
        _wrap(content, key, X25519PrivateKey.generate(), head) for key in keys)), content)


def sealed_bytes(plain_bytes: int, header: Header) -> int:
    """Return how long a copy of so many bytes is."""
    chunks = -(-plain_bytes // CHUNK_BYTES)
    return len(header.encoded) + plain_bytes + chunks * TAG_BYTES


def key_id(public: bytes) -> str:
    """Return the id of a public key."""
    return hashlib.sha256(public).hexdigest()


def _wrap(content: bytes, recipient: bytes, ephemeral: X25519PrivateKey, head: bytes) -> Wrapped:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    public = ephemeral.public_key().public_bytes_raw()
    try:
        shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(recipient))
    except ValueError as error:  # also for points of small order, whose secret everybody knows
        raise UsageError(f"the key {recipient.hex()} is no X25519 key that can be sealed for") from error
    cipher = ChaCha20Poly1305(_wrap_key(shared, public, recipient))
    return Wrapped(recipient, public, cipher.encrypt(bytes(12), content, head))


def _wrap_key(shared: bytes, ephemeral: bytes, recipient: bytes) -> bytes:
    return _derive(shared, ephemeral + recipient, b"wrap")


def _derive(secret: bytes, salt: bytes, purpose: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), KEY_BYTES, salt, b"reroot second copy 1: " + purpose).derive(secret)


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _head(order: str, host: str, recipients: int) -> bytes:
    name = host.encode("ascii", "replace")
    if not 1 <= recipients <= MAX_RECIPIENTS or not 1 <= len(name) <= 253:
        raise UsageError(f"a second copy has 1 to {MAX_RECIPIENTS} recipients and a host's name, not {recipients} and "
                         f"{host!r:.80}")
    return _FIXED.pack(MAGIC, VERSION, recipients, len(name), 0, CHUNK_BYTES, uuid.UUID(order).bytes) + name


def _bad(why: str) -> CorruptError:
    return CorruptError(f"the second copy cannot be opened: {why}; fetch it again, or take the archive on the host")
