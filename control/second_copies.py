"""Second copies of precious files as they lie on the server; I/O: the folder state/precious and what is below.

A copy is whole when its name says so, ORDER.BLAKE3.copy; one that is under way is ORDER.BLAKE3.BYTES.part, and its
length is how far it came. No database is asked, so a restart forgets nothing, and what a host announced is reserved
from the first request on. Names of hosts and orders are checked by whoever calls.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from plumbing import durable
from plumbing.errors import CorruptError, DiskError, NotFoundError, RefusedError
from precious.second_copy import DAY_S, Copy, outlived

MAX_PIECE_BYTES = 1 << 20
"""The most that one request brings."""
THREADS = 3
"""So many copies are written, or read back whole, at once: what else the server does has threads of its own."""
ABANDONED_S = DAY_S
"""A part that nobody wrote to for so long is removed, in seconds."""

_COPY = re.compile(r"([0-9a-f-]{36})\.([0-9a-f]{64})\.copy")
_PART = re.compile(r"([0-9a-f-]{36})\.([0-9a-f]{64})\.([1-9][0-9]{0,14})\.part")


class NoRoomError(DiskError):
    """The server's disk does not take it (HTTP 507)."""


@dataclass(frozen=True)
class Limits:
    """How much there may be: in bytes of each host, in bytes that stay free, in days, in copies of each host."""

    host_bytes: int
    reserve_bytes: int
    keep_days: float
    keep_orders: int


@dataclass(frozen=True)
class Came:
    """How much of a copy is here, in bytes, and whether it is whole, read back and kept."""

    offset: int
    stored: bool


class SecondCopies:
    """All copies of one site; used from several threads, and by several processes but for the reserving."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder = folder
        self.limits = limits
        self._booking = threading.Lock()
        self.threads = ThreadPoolExecutor(THREADS, "reroot-copies")
        """For whoever calls from an event loop."""

    # -- from a host ------------------------------------------------------------------------------------------

    def begin(self, host: str, order: str, size: int, digest: str) -> Came:
        """Say what is here of the copy of `size` bytes with this BLAKE3 (hex), and reserve room for the rest.

        Another unfinished copy of the host is dropped. Raises RefusedError for more than a host may have, NoRoomError
        when the disk does not take it.
        """
        home = self.folder / host
        with self._booking, durable.told(str(home), "no second copy was taken"):
            whole = home / f"{order}.{digest}.copy"
            if whole.is_file():
                return Came(whole.stat().st_size, stored=True)
            part = home / f"{order}.{digest}.{size}.part"
            durable.make_folder(home, 0o700)
            for other in _matching(home, _PART):
                if other.name != part.name:
                    other.unlink(missing_ok=True)
            self._require_quota(host, order, size)
            here = part.stat().st_size if part.exists() else 0
            self._require_room(part, size - here)
            os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            if here < size:
                return Came(here, stored=False)
            with _locked(part):  # all of it came, and the server ended before it looked
                return self._finish(part, home, order, digest)

    def write(self, host: str, order: str, digest: str, offset: int, data: bytes) -> Came:
        """Write a piece where it belongs; one that does not begin where the part ends is not written.

        With the last piece the copy is synced, read back and kept. Raises NotFoundError when nothing was announced,
        CorruptError when the whole is not what was announced (it is gone then), NoRoomError.
        """
        home = self.folder / host
        with durable.told(str(home), "the second copy is not whole"):
            if (whole := home / f"{order}.{digest}.copy").is_file():
                return Came(whole.stat().st_size, stored=True)
            part = next((path for path in _matching(home, _PART) if path.name.startswith(f"{order}.{digest}.")), None)
            if part is None:
                raise NotFoundError(f"no second copy with this digest was announced for order {order}; announce it")
            size = int(part.name.split(".")[2])
            with _locked(part) as handle:
                here = os.fstat(handle).st_size
                if offset == here and here + len(data) <= size:
                    _append(handle, data, here)
                    here += len(data)
                elif offset == here:
                    raise CorruptError(f"the second copy is longer than the {size} bytes that were announced")
                return Came(here, stored=False) if here < size else self._finish(part, home, order, digest)

    def _require_quota(self, host: str, order: str, size: int) -> None:
        had = sum(copy.bytes for copy in self.copies(host) if copy.order != order)
        if had + size > self.limits.host_bytes:
            raise RefusedError(f"{host} has {had} bytes of second copies here and this one has {size}, together "
                               f"{had + size - self.limits.host_bytes} bytes more than a host may have: keep less, or "
                               "raise precious.host_bytes of the control server")

    def _require_room(self, part: Path, wanted: int) -> None:
        room = os.statvfs(self.folder)
        promised = sum(int(path.name.split(".")[2]) - path.stat().st_size
                       for home in self._homes() for path in _matching(home, _PART) if path != part)
        missing = wanted + promised + self.limits.reserve_bytes - room.f_bavail * room.f_frsize
        if missing > 0:
            raise NoRoomError(f"the control server has no room for this second copy: {wanted} bytes are to come, "
                              f"{promised} are promised to others, {self.limits.reserve_bytes} stay free, and "
                              f"{missing} bytes are missing on the disk of {self.folder}; make room there")

    def _finish(self, part: Path, home: Path, order: str, digest: str) -> Came:
        """Keep a part that has all its bytes, when the disk gives them back as they were announced."""
        hasher = blake3()
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while piece := stream.read(1 << 20):
                hasher.update(piece)
        if hasher.hexdigest() != digest:
            part.unlink()
            raise CorruptError("the second copy is not what was announced, by its BLAKE3; it was dropped, send it anew")
        os.utime(part)
        part.rename(whole := home / f"{order}.{digest}.copy")
        durable.sync_folder(home)
        for other in _matching(home, _COPY):
            if other.name.startswith(order) and other != whole:
                other.unlink(missing_ok=True)
        return Came(whole.stat().st_size, stored=True)

    # -- for those who may read -----------------------------------------------------------------------------------

    def copies(self, host: str | None = None) -> list[Copy]:
        """Return the whole copies, of one host or of all."""
        found = []
        for home in [self.folder / host] if host is not None else self._homes():
            for path in _matching(home, _COPY):
                order, digest, _ = path.name.split(".")
                status = path.stat()
                found.append(Copy(home.name, order, status.st_size, digest, status.st_mtime))
        return sorted(found, key=lambda copy: (copy.host, copy.stored_s))

    def find(self, host: str, order: str) -> tuple[Path, Copy]:
        """Return a whole copy and its file; raises NotFoundError."""
        for copy in self.copies(host):
            if copy.order == order:
                return self.folder / host / f"{order}.{copy.blake3}.copy", copy
        raise NotFoundError(f"there is no second copy of order {order[:40]!r} of {host}; `reroot precious list {host}` "
                            "shows those there are")

    def prune(self, needed: Collection[str], now: float, *, dry_run: bool = False) -> list[tuple[Copy, str]]:
        """Remove what outlived its time at `now` (wall seconds), and abandoned parts; return the copies with reasons.

        The copies of the orders `needed` stay. Raises DiskError.
        """
        with self._booking, durable.told(str(self.folder), "what was not removed stays"):
            gone = list(outlived(self.copies(), needed, now, keep_days=self.limits.keep_days,
                                 keep_orders=self.limits.keep_orders))
            if dry_run:
                return gone
            for copy, _ in gone:
                (self.folder / copy.host / f"{copy.order}.{copy.blake3}.copy").unlink(missing_ok=True)
            for home in self._homes():
                for part in _matching(home, _PART):
                    if now - part.stat().st_mtime > ABANDONED_S:
                        part.unlink(missing_ok=True)
            return gone

    def _homes(self) -> list[Path]:
        return [path for path in sorted(self.folder.iterdir()) if path.is_dir()] if self.folder.is_dir() else []


def _matching(home: Path, names: re.Pattern[str]) -> list[Path]:
    return [path for path in sorted(home.iterdir()) if names.fullmatch(path.name)] if home.is_dir() else []


@contextmanager
def _locked(part: Path) -> Iterator[int]:
    """Open a part for writing while nobody else does; raises NotFoundError when it is gone by then."""
    try:
        handle = os.open(part, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFoundError("the second copy was kept or dropped meanwhile; announce it again") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink == 0 or not part.exists():
            raise NotFoundError("the second copy was kept or dropped meanwhile; announce it again")
        yield handle
    finally:
        os.close(handle)


def _append(handle: int, data: bytes, place: int) -> None:
    """Write all of `data`, or nothing of it."""
    try:
        view = memoryview(data)
        while view:
            count = os.pwrite(handle, view, place + len(data) - len(view))
            view = view[count:]
    except OSError as error:
        os.ftruncate(handle, place)
        raise NoRoomError(f"the control server cannot write the second copy ({error.strerror}); it goes on from byte "
                          f"{place} when there is room: look at the disk of its state") from error


def usable(folder: Path) -> None:
    """Raise DiskError unless second copies can be written to `folder`; makes it."""
    with durable.told(str(folder), "no second copies are taken"):
        durable.make_folder(folder, 0o700)
        shutil.disk_usage(folder)
