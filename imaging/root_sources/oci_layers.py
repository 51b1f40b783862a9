"""Layers of an OCI image, one over the other, into a tree. I/O: writes below the tree only.

OCI image-spec 1.1, "Image Layer Filesystem Changeset": a later layer's file replaces an earlier one's, a directory
keeps what is in it, `.wh.NAME` takes NAME of the layers below away and `.wh..wh..opq` all that the layers below have in
its directory. Neither touches what its own layer brings, in whatever order it does. Attributes are SCHILY.xattr.*
records, as every container builder writes them.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import tarfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, cast

import zstandard

from imaging.entry import printable
from imaging.index import MAX_NAME, MAX_PATH
from imaging.root_sources.inside import Inside
from plumbing.durable import told
from plumbing.errors import CorruptError

WHITEOUT, OPAQUE, RESERVED = b".wh.", b".wh..wh..opq", b".wh..wh."
COPY_BYTES = 1 << 20
MAX_WINDOW_BYTES = 128 << 20
"""The longest zstd window that is unpacked, in bytes: `zstd --long=27`."""

_XATTR = "SCHILY.xattr."
_OVERLAY = (b"trusted.overlay.", b"user.overlay.")
"""What an overlay filesystem noted for itself when the layer was made."""
_SECONDS = re.compile(r"(-?)(\d{1,18})(?:\.(\d*))?")

Names = tuple[bytes, ...]


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _Member(tarfile.TarInfo):
    """tarfile takes a damaged header after the first for the archive's end; here it is an error."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf) or len(buf) not in {0, tarfile.BLOCKSIZE}:
                raise CorruptError("a layer's tar has a damaged header; make the image anew") from error
            raise


class _Hashed:
    """Bytes on their way, and their SHA-256."""

    def __init__(self, source: _Readable) -> None:
        self._source = source
        self.sum = hashlib.sha256()

    def read(self, size: int = COPY_BYTES) -> bytes:
        data = self._source.read(size)
        self.sum.update(data)
        return data


class Applier:
    """Puts layers into the empty directory `tree`; a context manager. Call `finish` after the last; needs root."""

    def __init__(self, tree: Path) -> None:
        self._inside = Inside(tree)
        self._times: dict[Names, int] = {}
        self._placed: set[Names] = set()

    def __enter__(self) -> Applier:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._inside.__exit__(kind, error, trace)

    def apply(self, blob: Path, packing: str, diff_id: str) -> None:
        """Unpack one layer; `packing` is tar, gzip or zstd, `diff_id` the `sha256:HEX` of the tar.

        Raises CorruptError for a name that would leave the tree, a digest that differs and a tar that is none,
        DiskError when the tree cannot be written.
        """
        self._placed = set()
        with told("the tree that the image is unpacked into", "it is thrown away"), blob.open("rb") as packed:
            try:
                stream = _Hashed(_unpacked(packed, packing))
                self._members(stream)
                while stream.read():  # what follows the archive's end belongs to the digest too
                    pass
            except (tarfile.TarError, EOFError, ValueError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
                raise CorruptError(f"the layer {blob.name[:12]} cannot be unpacked ({error}); "
                                   "copy the image again") from error
        if f"sha256:{stream.sum.hexdigest()}" != diff_id:
            raise CorruptError(f"the layer {blob.name[:12]} unpacks to something else than the image's config names; "
                               "copy the image again, or make it anew")

    def finish(self) -> None:
        """Give the directories their times: whatever was put into them changed those."""
        with told("the tree that the image is unpacked into", "it is thrown away"):
            for path, time_ns in {**dict.fromkeys((*self._inside.made, ()), 0), **self._times}.items():
                found = self._inside.folder(path, make=False)
                if found is not None and found[1] == path:  # no symlink has taken its place
                    os.utime(found[0], ns=(time_ns, time_ns))

    def _members(self, stream: _Hashed) -> None:
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|", bufsize=COPY_BYTES, tarinfo=_Member,
                          encoding="utf-8", errors="surrogateescape") as tar:
            for member in tar:
                self._member(member, tar)
                tar.members.clear()  # type: ignore[attr-defined]  # or the archive's length decides how much memory

    def _member(self, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        path = _path(member.name)
        if not path:
            if member.isdir():
                _attributes(self._inside.top, member, ".")
                self._times[()] = _time_ns(member)
            return
        *above, name = path
        if name.startswith(WHITEOUT):
            self._whiteout(tuple(above), name)
            return
        found = self._inside.folder(tuple(above), make=True)
        assert found is not None
        folder, real = os.dup(found[0]), (*found[1], name)
        try:
            there = self._kind(name, folder)
            if there and not (there == "folder" and member.isdir()):
                self._take_away(folder, real, whole=True)
                there = ""
            self._place(member, tar, folder, name, there)
        finally:
            os.close(folder)
        self._placed.add(real)
        if member.isdir():
            self._times[real] = _time_ns(member)

    @staticmethod
    def _kind(name: bytes, folder: int) -> str:
        try:
            mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return ""
        return "folder" if mode & 0o170000 == 0o040000 else "other"

    def _take_away(self, folder: int, path: Names, *, whole: bool) -> None:
        if self._kind(path[-1], folder) == "folder":
            self._times = {known: time for known, time in self._times.items()
                           if known[:len(path)] != path or (not whole and known in self._placed)}
        self._inside.remove(folder, path[:-1], path[-1], lambda found: not whole and found in self._placed)

    def _whiteout(self, above: Names, name: bytes) -> None:
        if name[len(WHITEOUT):] in {b"", b".", b".."}:
            raise _hostile(b"/".join((*above, name)), "takes away a directory from within it")
        found = self._inside.folder(above, make=False)
        if found is None or (name.startswith(RESERVED) and name != OPAQUE):
            return
        folder, real = os.dup(found[0]), found[1]
        try:
            victims = [os.fsencode(one) for one in os.listdir(folder)] if name == OPAQUE else [name[len(WHITEOUT):]]
            for victim in victims:
                self._take_away(folder, (*real, victim), whole=False)
        finally:
            os.close(folder)

    def _place(self, member: tarfile.TarInfo, tar: tarfile.TarFile, folder: int, name: bytes, there: str) -> None:
        shown = f"/{printable(_bytes(member.name))}"
        if member.isdir():
            if not there:
                os.mkdir(name, 0o700, dir_fd=folder)
            handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        elif member.isreg():
            handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600,
                             dir_fd=folder)
        elif member.islnk():
            self._link(member, folder, name)
            return
        else:
            _make_node(member, folder, name)
            return
        try:
            if member.isreg():
                _copy(member, tar, handle)
            _attributes(handle, member, shown)
        finally:
            os.close(handle)

    def _link(self, member: tarfile.TarInfo, folder: int, name: bytes) -> None:
        target = _path(member.linkname)
        found = self._inside.folder(target[:-1], make=False) if target else None
        if found is None or self._kind(target[-1], found[0]) != "other":
            raise CorruptError(f"/{printable(_bytes(member.name))} is a hard link to "
                               f"{printable(_bytes(member.linkname))!r}, which is no file of the image; make it anew")
        os.link(target[-1], name, src_dir_fd=found[0], dst_dir_fd=folder, follow_symlinks=False)


def _unpacked(packed: IO[bytes], packing: str) -> _Readable:
    if packing == "gzip":
        return gzip.GzipFile(fileobj=packed)
    if packing == "zstd":
        return zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(
            packed, read_across_frames=True)
    return packed


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _path(text: str) -> Names:
    """Return a member's path as its names, a leading slash ignored; raises CorruptError for one that would leave."""
    data = _bytes(text)
    parts = tuple(part for part in data.split(b"/") if part not in {b"", b"."})
    if b".." in parts:
        raise _hostile(data, "leads out of the tree")
    if b"\0" in data or len(b"/".join(parts)) > MAX_PATH or any(len(part) > MAX_NAME for part in parts):
        raise _hostile(data, "is no name that a filesystem can hold")
    return parts


def _hostile(path: bytes, why: str) -> CorruptError:
    return CorruptError(f"the image has a name that {why} ({printable(path[:200])!r}); nothing of it was used, do not "
                        "trust who made it")


def _time_ns(member: tarfile.TarInfo) -> int:
    """Return the time of last modification, exactly: tarfile's own number is a float."""
    match = _SECONDS.fullmatch(member.pax_headers.get("mtime", str(int(member.mtime))))
    if match is None:
        return 0
    nanoseconds = int(match[2]) * 10**9 + int((match[3] or "")[:9].ljust(9, "0"))
    limit = (1 << 63) - 1
    return max(-limit, min(limit, -nanoseconds if match[1] else nanoseconds))


def _attributes(handle: int, member: tarfile.TarInfo, shown: str) -> None:
    """Set owner, mode, attributes and time of what is open, in the order in which none undoes another."""
    try:
        os.fchown(handle, member.uid, member.gid)
        os.fchmod(handle, member.mode & 0o7777)
        for key, value in _xattrs(member):
            os.setxattr(handle, key, value)
        os.utime(handle, ns=(_time_ns(member), _time_ns(member)))
    except (OverflowError, ValueError) as error:
        raise CorruptError(f"{shown} of the image has an owner or a time that cannot be; make it anew") from error


def _xattrs(member: tarfile.TarInfo) -> list[tuple[bytes, bytes]]:
    found = [(_bytes(key[len(_XATTR):]).replace(b"%3D", b"=").replace(b"%25", b"%"), _bytes(value))
             for key, value in member.pax_headers.items() if key.startswith(_XATTR)]
    return [(key, value) for key, value in found if not key.startswith(_OVERLAY)]


def _make_node(member: tarfile.TarInfo, folder: int, name: bytes) -> None:
    """Make a symlink, a device or a fifo; anything else that a tar can name is left out, as by every other tool."""
    shown = f"/{printable(_bytes(member.name))}"
    try:
        if member.issym():
            os.symlink(_bytes(member.linkname), name, dir_fd=folder)
        elif member.isfifo():
            os.mkfifo(name, 0o600, dir_fd=folder)
        elif member.isdev():
            kind = 0o020000 if member.ischr() else 0o060000
            os.mknod(name, kind | 0o600, os.makedev(member.devmajor, member.devminor), dir_fd=folder)
        else:
            raise CorruptError(f"{shown} of the image is of a type that no filesystem holds; make the image anew")
        os.chown(name, member.uid, member.gid, dir_fd=folder, follow_symlinks=False)
        if not member.issym():
            os.chmod(name, member.mode & 0o7777, dir_fd=folder)
        for key, value in _xattrs(member):
            os.setxattr(b"/proc/self/fd/%d/%s" % (folder, name), key, value, follow_symlinks=False)
        os.utime(name, ns=(_time_ns(member), _time_ns(member)), dir_fd=folder, follow_symlinks=False)
    except (OverflowError, ValueError) as error:
        raise CorruptError(f"{shown} of the image has an owner, time or number that cannot be; make it anew") from error


def _copy(member: tarfile.TarInfo, tar: tarfile.TarFile, handle: int) -> None:
    """Write a file's content; only what the tar itself says is a hole becomes one."""
    source = tar.extractfile(member)
    assert source is not None
    at = 0
    for offset, length in getattr(member, "sparse", None) or [(0, member.size)]:
        while at < offset:  # the archive is a stream: a hole is read, as zeros, to come behind it
            at += len(_some(source, offset - at, member))
        os.lseek(handle, offset, os.SEEK_SET)
        while at < offset + length:
            view = memoryview(_some(source, offset + length - at, member))
            at += len(view)
            while view:
                view = view[os.write(handle, view):]
    os.ftruncate(handle, member.size)


def _some(source: IO[bytes], wanted: int, member: tarfile.TarInfo) -> bytes:
    data = source.read(min(wanted, COPY_BYTES))
    if not data:
        raise CorruptError(f"/{printable(_bytes(member.name))} of the image is cut short; copy the image again")
    return data
