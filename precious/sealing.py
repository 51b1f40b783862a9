"""An archive as a second copy, and back (I/O: reads and writes files; the format is precious.sealed).

Both ways in constant memory. A `Sealed` makes any piece of the copy from the archive whenever it is asked, so nothing
encrypted is kept on the host.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from blake3 import blake3

from plumbing import durable
from plumbing.errors import CorruptError, DiskError, TrustError
from precious import sealed
from precious.keep import ARCHIVE, SUMMARY
from precious.sealed import CHUNK_BYTES, TAG_BYTES, Header

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

MAX_SUMMARY_BYTES = 64 << 20
"""The longest kept.json that is believed."""
_PREFIX = 4
_WHOLE = CHUNK_BYTES + TAG_BYTES


class Sealed:
    """The second copy of the finished archive in `folder`, readable anywhere; the archive must not change meanwhile.

    Raises DiskError when it cannot be read, UsageError for recipients that cannot be sealed for.
    """

    def __init__(self, folder: Path, order: str, host: str, recipients: Iterable[bytes]) -> None:
        self._stream = sealed.begin(order, host, recipients)
        self._head = self._stream.header.encoded
        self._path = folder / ARCHIVE
        try:
            summary = (folder / SUMMARY).read_bytes()
            self._handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DiskError(f"the archive in {folder} cannot be read ({error.strerror})") from error
        self._first = len(summary).to_bytes(_PREFIX, "big") + summary
        self._plain = len(self._first) + os.fstat(self._handle).st_size
        self.size = sealed.sealed_bytes(self._plain, self._stream.header)
        """The copy's length in bytes."""

    def digest(self) -> str:
        """Return the BLAKE3 of the whole copy in hex; it is made once for that."""
        hasher = blake3()
        for start in range(0, self.size, 1 << 20):
            hasher.update(self.read(start, 1 << 20))
        return hasher.hexdigest()

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes of the copy from `offset`, up to `length` of them; fewer at its end."""
        end = min(offset + length, self.size)
        found = [self._head[offset:end]] if offset < len(self._head) else []
        place = max(offset - len(self._head), 0)
        beyond = end - len(self._head)
        while place < beyond:
            number, within = divmod(place, _WHOLE)
            piece = self._chunk(number)[within:within + beyond - place]
            found.append(piece)
            place += len(piece)
        return b"".join(found)

    def _chunk(self, number: int) -> bytes:
        start = number * CHUNK_BYTES
        end = min(start + CHUNK_BYTES, self._plain)
        plain = self._first[start:end]
        if len(plain) < end - start:
            shift = len(self._first)
            plain += self._pread(max(start - shift, 0), end - max(start, shift))
        return self._stream.seal(number, plain, last=end == self._plain)

    def _pread(self, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self._handle, length, offset)
        except OSError as error:
            raise DiskError(f"{self._path} cannot be read ({error.strerror}); look at the disk") from error
        if len(data) != length:
            raise CorruptError(f"{self._path} became shorter while it was copied; nothing was wiped")
        return data

    def close(self) -> None:
        """Let go of the archive."""
        os.close(self._handle)


def opened(stream: BinaryIO, key: X25519PrivateKey, *, host: str = "", order: str = "") -> Iterator[bytes]:
    """Yield the plaintext of the copy in `stream`, chunk by chunk, each checked.

    With `host` or `order` a copy of another one is refused (TrustError). Raises CorruptError at the first byte that is
    not as it was sealed, and at an end that came too early: what was yielded until then is right, and not all.
    """
    begin = stream.read(sealed.MAX_HEADER_BYTES)
    header = Header.decode(begin)
    for asked, told in ((host, header.host), (order, header.order)):
        if asked and asked != told:
            raise TrustError(f"this is the copy of order {header.order} of {header.host}, not of {asked}; somebody "
                             "put it in another's place")
    keyed = header.unwrap(key)
    number, buffer = 0, begin[len(header.encoded):]
    while True:
        while len(buffer) <= _WHOLE and (more := stream.read(_WHOLE)):  # one byte more tells that it is not the last
            buffer += more
        last = len(buffer) <= _WHOLE
        yield keyed.opened(number, buffer[:_WHOLE], last=last)
        if last:
            return
        number, buffer = number + 1, buffer[_WHOLE:]


def unseal(stream: BinaryIO, key: X25519PrivateKey, into: Path, *, host: str = "", order: str = "") -> None:
    """Write the archive that the copy in `stream` holds into the folder `into`, which precious.keep can load then.

    Raises as `opened` does, and DiskError; what there is of an archive then has no summary, so nobody takes it for one.
    """
    durable.make_folder(into, 0o700)
    pieces = opened(stream, key, host=host, order=order)
    with durable.told(str(into), "the copy was not opened"):
        (into / SUMMARY).unlink(missing_ok=True)
        buffer = b""
        while len(buffer) < _PREFIX or len(buffer) < _PREFIX + _length(buffer):
            piece = next(pieces, None)
            if piece is None:
                raise CorruptError("the second copy holds no archive; take the archive on the host")
            buffer += piece
        end = _PREFIX + _length(buffer)
        handle = os.open(into / ARCHIVE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as archive:
            archive.write(buffer[end:])
            for piece in pieces:
                archive.write(piece)
            archive.flush()
            os.fsync(archive.fileno())
        durable.write_file(into / SUMMARY, buffer[_PREFIX:end], 0o600)


def _length(buffer: bytes) -> int:
    length = int.from_bytes(buffer[:_PREFIX], "big")
    if length > MAX_SUMMARY_BYTES:
        raise CorruptError("the second copy says that its summary is endless; take the archive on the host")
    return length
