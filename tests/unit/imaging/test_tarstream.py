"""Tar records, read back by the standard library's reader."""

import io
import os
import struct
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import ACL

from imaging.entry import ROOT, Entry, EntryType
from imaging.tarstream import END, acl_text, header, padding
from plumbing.errors import UsageError

part = st.binary(min_size=1, max_size=70).filter(lambda b: not {0, 47} & set(b))
paths = st.lists(part, min_size=1, max_size=5).map(b"/".join).filter(lambda p: p not in (b".", b".."))


def read(data: bytes) -> tarfile.TarInfo:
    with tarfile.open(fileobj=io.BytesIO(data + END), errors="surrogateescape", encoding="utf-8") as tar:
        (member,) = tar
        return member


@given(paths, st.sampled_from([EntryType.FILE, EntryType.DIRECTORY]), st.integers(0, 0o7777),
       st.integers(0, 0xFFFFFFFE), st.integers(0, 0xFFFFFFFE), st.integers(0, (1 << 63) - 1))
def test_any_name_owner_and_time_is_read_back(
        path: bytes, kind: EntryType, mode: int, uid: int, gid: int, mtime_ns: int) -> None:
    data = header(Entry(path, kind, mode, uid, gid, mtime_ns))
    assert len(data) % 512 == 0
    member = read(data)
    assert member.name.rstrip("/").encode("utf-8", "surrogateescape") == (b"./" + path).rstrip(b"/")
    assert (member.mode, member.uid, member.gid) == (mode, uid, gid)
    assert member.isdir() == (kind is EntryType.DIRECTORY)
    told = member.pax_headers.get("mtime")
    if told is None:
        assert member.mtime * 10**9 == mtime_ns
    else:
        whole, _, rest = told.partition(".")
        assert int(whole) * 10**9 + int(rest.ljust(9, "0") or 0) == mtime_ns
    assert (member.uname, member.gname) == ("", "")


@pytest.mark.parametrize("length", range(90, 270))
def test_names_around_every_limit(length: int) -> None:
    for path in (b"n" * length, b"d" * 50 + b"/" + b"n" * (length - 51), b"d" * (length - 51) + b"/" + b"n" * 50):
        for kind in (EntryType.FILE, EntryType.DIRECTORY):
            assert read(header(Entry(path, kind, 0o755, 0, 0, 0))).name.encode() == b"./" + path


@pytest.mark.parametrize("size", [0, 1, 512, (8 << 30) - 1, 8 << 30, 1 << 40])
def test_sizes_on_both_sides_of_eight_gibibytes(size: int) -> None:
    data = header(Entry(b"x", EntryType.FILE, 0o644, 0, 0, 0, size=size))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.next().size == size  # type: ignore[union-attr]
    assert (size + len(padding(size))) % 512 == 0


@pytest.mark.parametrize("length", [1, 99, 100, 101, 4000])
def test_links(length: int) -> None:
    target = b"t" * length
    assert read(header(Entry(b"s", EntryType.SYMLINK, 0o777, 0, 0, 0, link=target))).linkname.encode() == target
    hard = read(header(Entry(b"h", EntryType.LINK, 0o644, 0, 0, 0, link=target)))
    assert hard.islnk() and hard.linkname.encode() == b"./" + target


def test_top_directory_and_devices() -> None:
    assert read(header(Entry(ROOT, EntryType.DIRECTORY, 0o755, 0, 0, 0))).name == "."
    member = read(header(Entry(b"n", EntryType.BLOCK, 0o600, 0, 0, 0, rdev=os.makedev(259, 70000))))
    assert (member.isblk(), member.devmajor, member.devminor) == (True, 259, 70000)


def test_negative_time() -> None:
    assert read(header(Entry(b"n", EntryType.FIFO, 0o600, 0, 0, -1_500_000_000))).pax_headers["mtime"] == "-1.500000000"


@pytest.mark.parametrize("length", [0, 1, *range(60, 110), *range(960, 1010), 65536])
def test_record_lengths_count_themselves(length: int) -> None:
    value = "v" * length
    entry = Entry(b"x", EntryType.FILE, 0, 0, 0, 0, xattrs=((b"user.a=%", value.encode()),))
    assert read(header(entry)).pax_headers == {"SCHILY.xattr.user.a%3D%25": value}


def test_acl_text() -> None:
    assert acl_text(ACL) == b"user::rw-,user:1234:r--,group::r--,group:4321:r-x,mask::rwx,other::---"


@pytest.mark.parametrize("value", [b"", b"\1\0\0\0", ACL[:-1], struct.pack("<IHHI", 2, 3, 0, 0),
                                   struct.pack("<IHHI", 2, 1, 8, 0)])
def test_acl_of_another_form_is_refused(value: bytes) -> None:
    with pytest.raises(UsageError, match="setfacl -b"):
        acl_text(value)
