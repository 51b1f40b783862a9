"""LVM2 as it lies on disks. Pure: the first bytes of a physical volume in, a group and its volumes out; and back.

Recovery needs two things of LVM: to find plain volumes, and to lay out a new group on one partition. Both are small
beside the lvm program with its libraries (2.6 MB compressed, docs/adr/0016). The layout is that of lvm2's
lib/format_text/layout.h and lib/label/label.c; a test holds both directions against the real tools.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from plumbing.errors import CorruptError

SECTOR = 512
HEAD_BYTES = 1 << 20
"""What LVM keeps for itself at the beginning: labels, metadata, and up to the first extent."""
EXTENT_BYTES = 4 << 20
"""The unit of the volumes of a group that is made here."""

_LABEL = struct.Struct("<8sQII8s")
_MDA = struct.Struct("<I16sIQQ")
_RAW = struct.Struct("<QQII")
_AREA = struct.Struct("<QQ")
_MAGIC = b" LVM2 x[5A%r0N*>"
_MDA_START, _HEADER_BYTES = 4096, 512
_FIRST_CRC = 0xF597A6CF
_MOST_TEXT = HEAD_BYTES
_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TOKEN = re.compile(r'\s+|#[^\n]*|(?P<word>[A-Za-z0-9_.+-]+)|"(?P<text>(?:[^"\\]|\\.)*)"|(?P<sign>[{}\[\]=,])')

Value = str | int | list["Value"] | dict[str, "Value"]


@dataclass(frozen=True)
class Segment:
    """A run of extents, striped over (physical volume's id, its first extent); `chunk_bytes` matters for several."""

    start: int
    count: int
    stripes: tuple[tuple[str, int], ...]
    chunk_bytes: int


@dataclass(frozen=True)
class Volume:
    """A logical volume that is nothing but runs of extents."""

    name: str
    ident: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Group:
    """A volume group as one version of its metadata has it; ids without dashes.

    `starts` has the byte at which the extents of each physical volume begin. Volumes of other kinds are left out.
    """

    name: str
    ident: str
    version: int
    extent_bytes: int
    starts: Mapping[str, int]
    volumes: tuple[Volume, ...]


@dataclass(frozen=True)
class Physical:
    """What a physical volume says of itself; `group` is None when it belongs to none."""

    ident: str
    group: Group | None


def crc(data: bytes) -> int:
    """Return LVM's checksum: CRC-32 from a start of its own, not inverted at the end."""
    return zlib.crc32(data, _FIRST_CRC ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


# -- reading -------------------------------------------------------------------------------------------------------


def read(head: bytes) -> Physical | None:
    """Return what the first HEAD_BYTES of a partition or disk say; None when it is no physical volume.

    Raises CorruptError for one that cannot be believed.
    """
    for sector in range(4):
        at = sector * SECTOR
        if head[at:at + 8] == b"LABELONE" and head[at + 24:at + 32] == b"LVM2 001":
            return _physical(head, at)
    return None


def _physical(head: bytes, at: int) -> Physical:
    _, number, checksum, offset, _ = _LABEL.unpack_from(head, at)
    if number * SECTOR != at or crc(head[at + 20:at + SECTOR]) != checksum or not _LABEL.size <= offset <= SECTOR - 40:
        raise CorruptError("its LVM label has a wrong checksum")
    ident = head[at + offset:at + offset + 32].decode("ascii", "replace")
    place, lists = at + offset + 40, list[list[tuple[int, int]]]()
    for _ in range(2):  # where data lies, where metadata lies
        areas: list[tuple[int, int]] = []
        while place + _AREA.size <= at + SECTOR:
            area = _AREA.unpack_from(head, place)
            place += _AREA.size
            if area[0] == 0:
                break
            areas.append((area[0], area[1]))
        lists.append(areas)
    for start, _size in lists[1][:1]:
        return Physical(ident, _group(head, start))
    return Physical(ident, None)


def _group(head: bytes, start: int) -> Group | None:
    header = head[start:start + _HEADER_BYTES]
    if len(header) < _HEADER_BYTES or header[4:20] != _MAGIC or crc(header[4:]) != _MDA.unpack_from(header)[0]:
        raise CorruptError("its LVM metadata header has a wrong checksum")
    size = _MDA.unpack_from(header)[4]
    offset, length, checksum, ignored = _RAW.unpack_from(header, _MDA.size)
    if offset == 0 or ignored & 1:
        return None
    if not _HEADER_BYTES <= offset < size <= _MOST_TEXT or not 0 < length < size or start + size > len(head):
        raise CorruptError("its LVM metadata lies where none can be")
    text = head[start + offset:start + min(offset + length, size)]  # a ring: what does not fit goes on at its beginning
    text += head[start + _HEADER_BYTES:start + _HEADER_BYTES + length - len(text)]
    if crc(text) != checksum:
        raise CorruptError("its LVM metadata has a wrong checksum")
    return parse(text.rstrip(b"\0").decode("utf-8", "replace"))


def parse(text: str) -> Group:
    """Return the group that a metadata text describes; raises CorruptError."""
    try:
        (name, body), = ((name, value) for name, value in _sections(text).items() if isinstance(value, dict))
        physical = {key: _dict(value) for key, value in _dict(body["physical_volumes"]).items()}
        idents = {key: _ident(value["id"]) for key, value in physical.items()}
        volumes = [_volume(key, _dict(value), idents) for key, value in _dict(body.get("logical_volumes", {})).items()]
        exported = "EXPORTED" in _list(body["status"])
        return Group(name, _ident(body["id"]), _int(body["seqno"]), _int(body["extent_size"]) * SECTOR,
                     {idents[key]: _int(value["pe_start"]) * SECTOR for key, value in physical.items()},
                     () if exported else tuple(volume for volume in volumes if volume is not None))
    except (KeyError, ValueError, TypeError, IndexError, RecursionError) as error:
        raise CorruptError(f"its LVM metadata cannot be understood ({error!r:.80})") from error


def _volume(name: str, body: Mapping[str, Value], idents: Mapping[str, str]) -> Volume | None:
    segments = [_dict(body[f"segment{number}"]) for number in range(1, _int(body["segment_count"]) + 1)]
    if "VISIBLE" not in _list(body["status"]) or not segments or any(one["type"] != "striped" for one in segments):
        return None
    made = []
    for one in segments:
        pairs = _list(one["stripes"])
        stripes = tuple((idents[str(pairs[at])], _int(pairs[at + 1])) for at in range(0, len(pairs), 2))
        made.append(Segment(_int(one["start_extent"]), _int(one["extent_count"]), stripes,
                            _int(one.get("stripe_size", 0)) * SECTOR))
    return Volume(name, _ident(body["id"]), tuple(made))


def _sections(text: str) -> dict[str, Value]:
    tokens: list[str | int] = []
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"character {at}")
        at = found.end()
        if found["sign"]:
            tokens.append(found["sign"])
        elif found["text"] is not None:
            tokens.append('"' + re.sub(r"\\(.)", r"\1", found["text"]))
        elif found["word"]:
            tokens.append(int(found["word"]) if found["word"].isdigit() else found["word"])
    tokens.reverse()
    return _body(tokens, None)


def _body(tokens: list[str | int], end: str | None) -> dict[str, Value]:
    found: dict[str, Value] = {}
    while tokens and tokens[-1] != end:
        key, sign = str(tokens.pop()), tokens.pop()
        found[key] = _body(tokens, "}") if sign == "{" else _value(tokens)
    if end is not None:
        tokens.pop()
    return found


def _value(tokens: list[str | int]) -> Value:
    first = tokens.pop()
    if first != "[":
        return _plain(first)
    items: list[Value] = []
    while (word := tokens.pop()) != "]":
        if word != ",":
            items.append(_plain(word))
    return items


def _plain(token: str | int) -> str | int:
    return token.removeprefix('"') if isinstance(token, str) else token


def _dict(value: Value) -> dict[str, Value]:
    if not isinstance(value, dict):
        raise TypeError("not a section")
    return value


def _list(value: Value) -> list[Value]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


def _int(value: Value) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 60:
        raise TypeError("not a number")
    return value


def _ident(value: Value) -> str:
    plain = str(value).replace("-", "")
    if not re.fullmatch(r"[A-Za-z0-9]{32}", plain):
        raise ValueError("not an id")
    return plain


# -- writing -------------------------------------------------------------------------------------------------------


def ident(*words: str) -> str:
    """Return the 32 characters of an id that follows from these words."""
    number = int.from_bytes(hashlib.sha256("/".join(words).encode()).digest(), "big")
    letters = []
    for _ in range(32):
        number, rest = divmod(number, len(_LETTERS))
        letters.append(_LETTERS[rest])
    return "".join(letters)


def extents(size: int) -> int:
    """Return how many extents a physical volume of `size` bytes has."""
    return max(0, size - HEAD_BYTES) // EXTENT_BYTES


def head(group: str, group_ident: str, physical: str, size: int,
         volumes: Sequence[tuple[str, str, int]]) -> bytes:
    """Return the first HEAD_BYTES of a partition of `size` bytes that becomes the only one of a new group.

    `physical` is its id; `volumes` are (name, id, extents), one after the other.
    """
    rows, first = [], 0
    for name, volume, count in volumes:
        rows.append(f'{name} {{\nid = "{_dashed(volume)}"\nstatus = ["READ", "WRITE", "VISIBLE"]\nflags = []\n'
                    f'creation_time = 0\ncreation_host = "reroot"\nsegment_count = 1\n\nsegment1 {{\n'
                    f'start_extent = 0\nextent_count = {count}\n\ntype = "striped"\nstripe_count = 1\n\n'
                    f'stripes = [\n"pv0", {first}\n]\n}}\n}}\n')
        first += count
    text = (f'{group} {{\nid = "{_dashed(group_ident)}"\nseqno = 1\nformat = "lvm2"\n'
            'status = ["RESIZEABLE", "READ", "WRITE"]\nflags = []\n'
            f"extent_size = {EXTENT_BYTES // SECTOR}\nmax_lv = 0\nmax_pv = 0\nmetadata_copies = 0\n\n"
            f'physical_volumes {{\n\npv0 {{\nid = "{_dashed(physical)}"\ndevice = "/dev/none"\n\n'
            f'status = ["ALLOCATABLE"]\nflags = []\ndev_size = {size // SECTOR}\npe_start = {HEAD_BYTES // SECTOR}\n'
            f"pe_count = {extents(size)}\n}}\n}}\n\nlogical_volumes {{\n\n{''.join(rows)}}}\n}}\n"
            '# Generated by reroot\n\ncontents = "Text Format Volume Group"\nversion = 1\n\ndescription = ""\n\n'
            'creation_host = "reroot"\ncreation_time = 0\n\n').encode() + b"\0"
    mda_size = HEAD_BYTES - _MDA_START
    rest = _MDA.pack(0, _MAGIC, 1, _MDA_START, mda_size)[4:] + _RAW.pack(_HEADER_BYTES, len(text), crc(text), 0)
    rest = rest.ljust(_HEADER_BYTES - 4, b"\0")
    areas = (_AREA.pack(HEAD_BYTES, 0) + bytes(_AREA.size) + _AREA.pack(_MDA_START, mda_size) + bytes(_AREA.size)
             + struct.pack("<II", 2, 1) + bytes(_AREA.size))  # the extension: version 2, in use, no bootloader's area
    label = struct.pack("<I8s", _LABEL.size, b"LVM2 001") + physical.encode() + struct.pack("<Q", size) + areas
    label = label.ljust(SECTOR - 20, b"\0")
    made = bytearray(HEAD_BYTES)
    made[SECTOR:2 * SECTOR] = struct.pack("<8sQI", b"LABELONE", 1, crc(label)) + label
    made[_MDA_START:_MDA_START + _HEADER_BYTES] = struct.pack("<I", crc(rest)) + rest
    made[_MDA_START + _HEADER_BYTES:_MDA_START + _HEADER_BYTES + len(text)] = text
    return bytes(made)


def _dashed(ident: str) -> str:
    cuts = (0, 6, 10, 14, 18, 22, 26, 32)
    return "-".join(ident[start:end] for start, end in pairwise(cuts))
