"""The second copy's format: its bytes, and that nothing but the right key and the whole, unchanged copy opens it."""

from __future__ import annotations

import io
import os
import stat
import struct
import uuid
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbing.errors import ConfigError, CorruptError, TrustError, UsageError
from precious import sealed, sealing, sealkeys
from precious.keep import ARCHIVE, SUMMARY
from precious.sealed import CHUNK_BYTES, Header, Stream

GOLDEN = Path(__file__).parent / "second-copy.golden"
ORDER, HOST = "6ba7b810-9dad-41d1-80b4-00c04fd430c8", "alpha.example.org"
KEYS = [X25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2)]
PUBLIC = [key.public_key().public_bytes_raw() for key in KEYS]
LENGTHS = st.sampled_from([0, 1, 100, CHUNK_BYTES - 6, CHUNK_BYTES - 5, CHUNK_BYTES, 2 * CHUNK_BYTES - 6, 200_000])


def archived(folder: Path, archive: bytes, summary: bytes = b"{}") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / ARCHIVE).write_bytes(archive)
    (folder / SUMMARY).write_bytes(summary)
    return folder


def copy_of(folder: Path, order: str = ORDER, host: str = HOST) -> bytes:
    made = sealing.Sealed(folder, order, host, PUBLIC)
    try:
        data = made.read(0, made.size + 10)
    finally:
        made.close()
    assert len(data) == made.size
    return data


def plain(data: bytes, key: X25519PrivateKey = KEYS[0], host: str = "", order: str = "") -> bytes:
    return b"".join(sealing.opened(io.BytesIO(data), key, host=host, order=order))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A copy of three chunks, two of them full."""
    return copy_of(archived(tmp_path_factory.mktemp("whole") / "a", bytes(range(256)) * 600))


def refused(data: bytes) -> bool:
    """Whether nobody gets a whole plaintext out of it, by whichever key."""
    for key in KEYS:
        try:
            plain(data, key)
        except (CorruptError, TrustError):
            continue
        return False
    return True


def test_the_golden_copy_opens_and_its_chunks_are_sealed_to_the_same_bytes() -> None:
    """Made once by the code of version 1: another byte here is another version."""
    data = GOLDEN.read_bytes()
    header = Header.decode(data)
    assert (header.order, header.host) == (ORDER, HOST)
    assert header.encoded == data[:len(header.encoded)]
    assert data[:24] == b"reroot 2nd copy\n\x01\x02\x11\x00\x00\x01\x00\x00"
    expected = struct.pack(">I", 2) + b"{}" + b"an archive"
    for key in KEYS:
        assert plain(data, key) == expected
        assert header.unwrap(key).seal(0, expected, last=True) == data[len(header.encoded):]


@given(LENGTHS, st.integers(0, 300))
@settings(max_examples=30, deadline=None)
def test_any_archive_comes_back_from_any_cut_into_pieces(length: int, noise: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = archived(Path(name) / "a", os.urandom(length), b"x" * noise)
        made = sealing.Sealed(folder, ORDER, HOST, PUBLIC)
        data = made.read(0, made.size)
        step = 1 + noise * 733
        pieces = [made.read(start, step) for start in range(0, made.size, step)]
        assert b"".join(pieces) == data and len(data) == made.size
        for key in KEYS:
            sealing.unseal(io.BytesIO(data), key, Path(name) / "b", host=HOST, order=ORDER)
            assert (Path(name) / "b" / ARCHIVE).read_bytes() == (folder / ARCHIVE).read_bytes()
            assert (Path(name) / "b" / SUMMARY).read_bytes() == b"x" * noise
        made.close()


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_a_flipped_bit_anywhere_is_refused(whole: bytes, data: st.DataObject) -> None:
    header = len(Header.decode(whole).encoded)
    place = data.draw(st.one_of(st.integers(0, header - 1), st.integers(header, len(whole) - 1)))
    bent = bytearray(whole)
    bent[place] ^= 1 << data.draw(st.integers(0, 7))
    assert refused(bytes(bent))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_copy_that_ends_early_or_late_is_refused(whole: bytes, data: st.DataObject) -> None:
    header = len(Header.decode(whole).encoded)
    ends = [header, header + CHUNK_BYTES + 16, header + 2 * (CHUNK_BYTES + 16)]
    end = data.draw(st.one_of(st.sampled_from(ends), st.integers(0, len(whole) - 1)))
    assert refused(whole[:end])
    assert refused(whole + data.draw(st.binary(min_size=1, max_size=40)))


def test_chunks_that_are_swapped_doubled_dropped_or_of_another_copy_are_refused(whole: bytes, tmp_path: Path) -> None:
    size = len(Header.decode(whole).encoded)
    head, step = whole[:size], CHUNK_BYTES + 16
    a, b, c = whole[size:size + step], whole[size + step:size + 2 * step], whole[size + 2 * step:]
    other = copy_of(archived(tmp_path / "a", bytes(range(256)) * 600))
    assert not refused(head + a + b + c)
    for mixed in (b + a + c, a + a + b + c, a + c, b + c, a + b + c + c, c, a + b + c + a,
                  a + other[size + step:size + 2 * step] + c):
        assert refused(head + mixed)
    assert refused(other[:size] + a + b + c)


def test_a_copy_is_for_its_recipients_its_order_and_its_host(whole: bytes, tmp_path: Path) -> None:
    with pytest.raises(TrustError, match=sealed.key_id(PUBLIC[0])[:16]):
        plain(whole, X25519PrivateKey.generate())
    for host, order in (("beta", ""), ("", str(uuid.uuid4()))):
        with pytest.raises(TrustError, match="put it in another's place"):
            plain(whole, host=host, order=order)
    # who renames it inside breaks it
    renamed = whole.replace(HOST.encode(), b"omega.example.org", 1)
    with pytest.raises(CorruptError):
        plain(renamed)
    with pytest.raises(CorruptError):
        sealing.unseal(io.BytesIO(whole[:-1]), KEYS[0], tmp_path / "half")
    assert not (tmp_path / "half" / SUMMARY).exists(), "what was cut off is no archive"


def test_two_copies_of_the_same_archive_share_no_key(tmp_path: Path) -> None:
    folder = archived(tmp_path / "a", b"the same")
    first, second = copy_of(folder), copy_of(folder)
    size = len(Header.decode(first).encoded)
    assert first[size:] != second[size:]
    assert len({one.ephemeral for data in (first, second) for one in Header.decode(data).wrapped}) == 4


def test_what_cannot_be_sealed_for_is_said() -> None:
    bad: list[tuple[list[bytes], str]] = [([], "recipients"), ([bytes(32)], "no X25519 key"),
                                         ([bytes([n]) * 32 for n in range(1, 10)], "not 9")]
    for recipients, why in bad:
        with pytest.raises(UsageError, match=why):
            sealed.begin(ORDER, HOST, recipients)
    with pytest.raises(UsageError):
        Stream(Header.decode(GOLDEN.read_bytes()), bytes(32)).seal(0, b"short", last=False)


def test_the_length_of_a_copy_is_known_before_it_is_made(whole: bytes) -> None:
    header = Header.decode(whole)
    assert sealed.sealed_bytes(256 * 600 + 6, header) == len(whole)


def test_an_endless_summary_is_refused(tmp_path: Path) -> None:
    stream = sealed.begin(ORDER, HOST, PUBLIC)
    for text in (b"\xff\xff\xff\xff", b"\x00\x00\x00\x09{}"):
        data = stream.header.encoded + stream.seal(0, text, last=True)
        with pytest.raises(CorruptError):
            sealing.unseal(io.BytesIO(data), KEYS[0], tmp_path / "x")


def test_key_files_are_private_and_of_one_kind(tmp_path: Path) -> None:
    path = tmp_path / "recovery.pem"
    key = sealkeys.make(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sealkeys.load(path).private_bytes_raw() == key.private_bytes_raw()
    assert sealkeys.public(path) == key.public_key().public_bytes_raw()
    with pytest.raises(FileExistsError):
        sealkeys.make(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        sealkeys.load(path)
    from imaging.keys import make_key

    make_key(tmp_path / "ed.pem")
    (tmp_path / "none.pem").write_text("hello")
    (tmp_path / "none.pem").chmod(0o600)
    for name in ("ed.pem", "none.pem", "missing.pem"):
        for read in (sealkeys.load, sealkeys.public):
            with pytest.raises(ConfigError, match=name):
                read(tmp_path / name)


def test_the_list_of_recovery_keys_is_read_as_it_was_written() -> None:
    assert sorted(sealkeys.listed(sealkeys.listing(PUBLIC))) == sorted(PUBLIC)
    with pytest.raises(ConfigError):
        sealkeys.listing([])
    swapped = sealkeys.listing(PUBLIC).replace(PUBLIC[0].hex().encode(), PUBLIC[1].hex().encode())
    for bad in (b"", b"[]", b'{"keys": {}}', b'{"keys": {"a": {"keytype": "x25519", "public": "00"}}}', swapped,
                b'{"keys": {"a": 3}}'):
        with pytest.raises(TrustError, match="recovery-key"):
            sealkeys.listed(bad)
