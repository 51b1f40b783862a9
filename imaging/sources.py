"""Where the bytes of a layer come from: a file, a server, the stage on /local. I/O.

Every source answers one question, `read(offset, length)` of the layer blob, from any thread. None is believed: what
reads through them checks digests (imaging.fetch, Release.read_index). A source that lacks the bytes raises
NotFoundError, one that is out of reach or failing NetworkError or DiskError, one that answers nonsense CorruptError.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from bisect import bisect_right
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

from plumbing.digest import hex_of
from plumbing.durable import make_folder, sync_folder
from plumbing.errors import BusyError, CorruptError, DiskError, NetworkError, NotFoundError, UsageError
from plumbing.http import Client

PATIENCE_S = 20.0
"""How long a server may take for any range, on top of the time its bytes need at SLOWEST."""
SLOWEST = 64 << 10
"""The slowest useful server, in bytes per second: 130 MB take half an hour from it."""
COMMIT_BYTES = 32 << 20
"""A stage is made durable whenever as many bytes were added: what a power cut can cost."""

_RECORD = struct.Struct("<QII")  # offset, length, frame number
_NO_FRAME = 0xFFFFFFFF


class FrameSource(Protocol):
    """One place that may have a layer's bytes; used from several threads at once."""

    @property
    def name(self) -> str:
        """What a person recognises it by."""

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes of the layer from `offset`; raises a RerootError when it can't."""


class FileSource:
    """A layer that is a whole local file."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFoundError(f"{path} is not there; name a layer of a release") from error
        except OSError as error:
            raise DiskError(f"{path} cannot be read ({error.strerror}); check who owns it") from error

    def read(self, offset: int, length: int) -> bytes:
        """Return a range of the file."""
        return _pread(self._handle, offset, length, self.name)

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


class HttpSource:
    """A layer on a content server: the pull side of an OCI registry, asked for ranges.

    Every thread keeps a connection of its own open. `headers` (a bearer token, say) go with each request.
    """

    def __init__(self, base_url: str, layer_digest: str, headers: Mapping[str, str] | None = None, *,
                 timeout_s: float = PATIENCE_S) -> None:
        layer_hex(layer_digest)
        sent = dict(headers or {})
        self._client = Client(base_url, timeout_s=timeout_s, signer=(lambda *_request: sent) if sent else None)
        self._path = f"/v2/reroot/blobs/{layer_digest}"
        self._timeout_s = timeout_s
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._all: list[Client] = []
        self.name = self._client.base_url

    def read(self, offset: int, length: int) -> bytes:
        """Fetch a range; a server that is slower than SLOWEST counts as dead."""
        client: Client | None = getattr(self._mine, "client", None)
        if client is None:
            client = self._mine.client = self._client.twin()
            with self._lock:
                self._all.append(client)
        span = f"bytes={offset}-{offset + length - 1}"
        answer = client.request("GET", self._path, headers={"Range": span}, max_bytes=max(length, 64 << 10),
                                deadline_s=self._timeout_s + length / SLOWEST)
        if answer.status in {404, 416}:
            raise NotFoundError(f"{self.name} has no {span} of {self._path}; copy the release to it")
        if answer.status != 206:
            raise NetworkError(f"{self.name}{self._path} answered {answer.status} to a request for {span}; use a "
                               "server that knows Range")
        if len(answer.body) != length:
            raise CorruptError(f"{self.name}{self._path} sent {len(answer.body)} bytes for {span}")
        return answer.body

    def close(self) -> None:
        """Drop every connection; no thread may be reading."""
        with self._lock:
            for client in self._all:
                client.close()


class StageSource:
    """What was fetched ahead of a layer: `HEX.part` holds its bytes at their offsets, `HEX.have` says which."""

    def __init__(self, folder: Path, layer_digest: str) -> None:
        stem = layer_hex(layer_digest)
        self.name = f"stage {folder}"
        self._have = _Have.load(folder / f"{stem}.have")
        self._part = folder / f"{stem}.part"
        self._handle = -1
        if self._have.records:
            try:
                self._handle = os.open(self._part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError as error:
                raise DiskError(f"{self._part} cannot be read ({error.strerror}); remove {stem}.have beside it and "
                                "stage again") from error

    def has(self, number: int) -> bool:
        """Whether the frame of that number is here."""
        return number in self._have.frames

    def forget(self, numbers: Collection[int]) -> None:
        """Count frames as absent from now on: somebody read them and found them rotten. Nothing is written."""
        self._have = _Have([record for record in self._have.records if record[2] not in numbers])

    def read(self, offset: int, length: int) -> bytes:
        """Return a range that was staged; raises NotFoundError for any other."""
        if not self._have.covers(offset, length):
            raise NotFoundError(f"{length} bytes at {offset} are not in the {self.name}")
        return _pread(self._handle, offset, length, str(self._part))

    def close(self) -> None:
        """Close the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class StageWriter:
    """Adds to a stage; a context manager, one per stage at a time, used by one thread.

    What `put` was given is promised (in `.have`) only after it is durable, so a power cut costs at most COMMIT_BYTES.
    """

    def __init__(self, folder: Path, layer_digest: str) -> None:
        stem = layer_hex(layer_digest)
        self._folder = folder
        self._pending: list[tuple[int, int, int]] = []
        self._pending_bytes = 0
        make_folder(folder, 0o700)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._list = os.open(folder / f"{stem}.have", flags | os.O_APPEND, 0o600)
            self._part = os.open(folder / f"{stem}.part", flags, 0o600)
            sync_folder(folder)
        except OSError as error:
            raise DiskError(f"the stage {folder} cannot be opened ({error.strerror}); check its disk") from error
        try:
            fcntl.flock(self._list, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._close()
            raise BusyError(f"the stage {folder} is being filled by another process; let it finish") from error
        self._have = _Have.load(folder / f"{stem}.have")
        os.ftruncate(self._list, len(self._have.records) * _RECORD.size)  # a torn record would shift all after it

    def __enter__(self) -> StageWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            if error is None or not isinstance(error, DiskError):
                self.commit()
        finally:
            self._close()

    def has(self, number: int) -> bool:
        """Whether the frame of that number is here already."""
        return number in self._have.frames

    def put(self, offset: int, data: bytes, frame: int | None = None) -> None:
        """Store bytes of the layer: those of the frame number `frame`, or of anything else. The caller checked them."""
        try:
            view, place = memoryview(data), offset
            while view:
                count = os.pwrite(self._part, view, place)
                view, place = view[count:], place + count
        except OSError as error:
            raise self._failed(error) from error
        self._pending.append((offset, len(data), _NO_FRAME if frame is None else frame))
        self._pending_bytes += len(data)
        if self._pending_bytes >= COMMIT_BYTES:
            self.commit()

    def commit(self) -> None:
        """Make everything that was put durable, and then say so in `.have`."""
        if not self._pending:
            return
        try:
            os.fdatasync(self._part)
            os.write(self._list, b"".join(_RECORD.pack(*record) for record in self._pending))
            os.fdatasync(self._list)
        except OSError as error:
            raise self._failed(error) from error
        self._have.add(self._pending)
        self._pending, self._pending_bytes = [], 0

    def _failed(self, error: OSError) -> DiskError:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return DiskError(f"the disk of the stage {self._folder} is full; make room, or install without staging")
        return DiskError(f"the stage {self._folder} cannot be written ({error.strerror}); check its disk")

    def _close(self) -> None:
        os.close(self._list)
        os.close(self._part)


class _Have:
    """Which ranges are staged: in memory, merged; on disk, records of 16 bytes that are only ever appended."""

    def __init__(self, records: list[tuple[int, int, int]]) -> None:
        self.records: list[tuple[int, int, int]] = []
        self.frames: set[int] = set()
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.add(records)

    @classmethod
    def load(cls, path: Path) -> _Have:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return cls([])
        except OSError as error:
            raise DiskError(f"{path} cannot be read ({error.strerror}); remove it and stage again") from error
        whole = len(data) - len(data) % _RECORD.size
        return cls([(offset, length, frame) for offset, length, frame in _RECORD.iter_unpack(data[:whole])])

    def add(self, records: list[tuple[int, int, int]]) -> None:
        self.records += records
        self.frames.update(frame for _, length, frame in records if length and frame != _NO_FRAME)
        self._starts, self._ends = [], []
        for start, length, _ in sorted(self.records):
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], start + length)
            else:
                self._starts.append(start)
                self._ends.append(start + length)

    def covers(self, offset: int, length: int) -> bool:
        place = bisect_right(self._starts, offset) - 1
        return place >= 0 and offset + length <= self._ends[place]


def layer_hex(layer_digest: str) -> str:
    """Return the hex digits of a layer's digest; raises UsageError."""
    digits = hex_of(layer_digest)
    if digits is None:
        raise UsageError(f"{layer_digest[:90]!r} is not a layer's digest; write sha256: and 64 hex digits")
    return digits


def _pread(handle: int, offset: int, length: int, name: str) -> bytes:
    try:
        data = os.pread(handle, length, offset)
        while len(data) < length:
            more = os.pread(handle, length - len(data), offset + len(data))
            if not more:
                raise CorruptError(f"{name} ends before byte {offset + length}; fetch it again")
            data += more
    except OSError as error:
        raise DiskError(f"{name} cannot be read at byte {offset} ({error.strerror}); check its disk") from error
    return data
