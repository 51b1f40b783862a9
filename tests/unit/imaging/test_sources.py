"""One contract for every source of frames, and what is particular to each."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import docker_registry
import pytest
from loopback import Handler, Server, drip, serving
from trees import noise

from imaging.registry import Place, Registry
from imaging.registry_auth import Credentials
from imaging.registry_source import RegistrySource
from imaging.sources import FileSource, FrameSource, HttpSource, StageSource, StageWriter
from plumbing.digest import sha256
from plumbing.errors import BusyError, CorruptError, DiskError, NetworkError, NotFoundError, RerootError, UsageError

LAYER = noise(1, 300_000)
DIGEST = "sha256:" + "ab" * 32
BLOB = f"/v2/reroot/blobs/{DIGEST}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "www", BLOB, LAYER) as server:
        yield server


@pytest.fixture(scope="module")
def registries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RegistrySource]]:
    """The layer in a registry that anybody may read, and in one that wants a token."""
    folder = tmp_path_factory.mktemp("registries")
    with docker_registry.serving(folder / "open") as host, docker_registry.guarded(folder / "guarded") as (other, _):
        found = []
        for at, known in ((host, None), (other, Credentials(*docker_registry.TOKEN_LOGIN))):
            place = Place.parse(f"http://{at}/os/debian")
            Registry(place, known).upload(sha256(LAYER), len(LAYER), BytesIO(LAYER))
            found.append(RegistrySource(place, sha256(LAYER), known))
        yield found


def file_source(tmp_path: Path, request: pytest.FixtureRequest) -> FrameSource:
    (tmp_path / "layer").write_bytes(LAYER)
    return FileSource(tmp_path / "layer")


def http_source(tmp_path: Path, request: pytest.FixtureRequest) -> FrameSource:
    return HttpSource(request.getfixturevalue("server").url, DIGEST)


def stage_source(tmp_path: Path, request: pytest.FixtureRequest) -> FrameSource:
    with StageWriter(tmp_path / "stage", DIGEST) as writer:
        for number, start in enumerate(range(0, len(LAYER), 70_000)):
            writer.put(start, LAYER[start:start + 70_000], number)
    return StageSource(tmp_path / "stage", DIGEST)


def registry_source(tmp_path: Path, request: pytest.FixtureRequest) -> FrameSource:
    found: list[RegistrySource] = request.getfixturevalue("registries")
    return found[0]


def token_source(tmp_path: Path, request: pytest.FixtureRequest) -> FrameSource:
    found: list[RegistrySource] = request.getfixturevalue("registries")
    return found[1]


Maker = Callable[[Path, pytest.FixtureRequest], FrameSource]


@pytest.fixture(params=[file_source, http_source, stage_source, registry_source, token_source])
def source(tmp_path: Path, request: pytest.FixtureRequest) -> FrameSource:
    """Each kind of source, holding LAYER."""
    maker: Maker = request.param
    return maker(tmp_path, request)


class TestContract:
    def test_any_range(self, source: FrameSource) -> None:
        for offset, length in [(0, 1), (0, len(LAYER)), (123, 4567), (len(LAYER) - 1, 1), (65_536, 131_072)]:
            assert source.read(offset, length) == LAYER[offset:offset + length]

    def test_beyond_the_end_is_an_error(self, source: FrameSource) -> None:
        for offset, length in [(len(LAYER), 1), (len(LAYER) - 1, 2), (1 << 40, 10)]:
            with pytest.raises(RerootError):
                source.read(offset, length)

    def test_many_threads(self, source: FrameSource) -> None:
        with ThreadPoolExecutor(4) as pool:
            pieces = list(pool.map(lambda n: source.read(n * 1000, 1000), range(300)))
        assert b"".join(pieces) == LAYER

    def test_it_has_a_name(self, source: FrameSource) -> None:
        assert source.name


def test_http_keeps_one_connection_per_thread(server: Server) -> None:
    source = HttpSource(server.url, DIGEST, {"Authorization": "Bearer x"})
    for number in range(20):
        source.read(number, 10)
    assert len(server.clients) == 1
    assert server.requests[0] == (BLOB, "bytes=0-9")
    thread = threading.Thread(target=source.read, args=(0, 10))
    thread.start()
    thread.join()
    assert len(server.clients) == 2
    source.close()


def test_http_sends_the_headers_it_was_given(server: Server) -> None:
    seen: list[str | None] = []

    def look(handler: Handler) -> None:
        seen.append(handler.headers.get("Authorization"))
        handler.ranged(LAYER)

    server.answers[BLOB] = look
    HttpSource(server.url, DIGEST, {"Authorization": "Bearer x"}).read(0, 1)
    assert seen == ["Bearer x"]


@pytest.mark.parametrize(("answer", "error", "match"), [
    (lambda handler: handler.send(200, LAYER[:10]), NetworkError, "answered 200"),
    (lambda handler: handler.send(404, b"gone"), NotFoundError, "has no bytes=0-9"),
    (lambda handler: handler.send(503, b""), NetworkError, "answered 503"),
    (lambda handler: handler.send(206, LAYER[:9]), CorruptError, "sent 9 bytes"),
    (lambda handler: handler.send(206, LAYER[:100_000]), CorruptError, "more than"),
    (lambda handler: handler.wfile.write(b"\0" * 100_000), NetworkError, "does not answer"),
    (lambda handler: handler.connection.shutdown(socket.SHUT_RDWR), NetworkError, "does not answer"),
])
def test_http_answers_that_are_none(server: Server, answer: Callable[[Handler], None], error: type[RerootError],
                                    match: str) -> None:
    server.answers[BLOB] = answer
    with pytest.raises(error, match=match):
        HttpSource(server.url, DIGEST).read(0, 10)
    del server.answers[BLOB]
    assert HttpSource(server.url, DIGEST).read(0, 10) == LAYER[:10]


def test_http_that_drips_meets_its_deadline(server: Server) -> None:
    server.answers[BLOB] = drip
    with pytest.raises(NetworkError, match=r"too slowly|timed out"):
        HttpSource(server.url, DIGEST, timeout_s=0.2).read(0, 1000)


def test_http_that_drips_its_head_meets_its_deadline(server: Server) -> None:
    def head(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 206 OK\r\n")
        while not handler.server.stop.wait(0.02):
            handler.wfile.write(b"X: y\r\n")

    server.answers[BLOB] = head
    with pytest.raises(NetworkError, match=r"too slowly|timed out|more than 100 headers"):
        HttpSource(server.url, DIGEST, timeout_s=0.2).read(0, 1000)


def test_http_recovers_after_the_server_closed_the_kept_connection(server: Server) -> None:
    source = HttpSource(server.url, DIGEST)

    def last(handler: Handler) -> None:
        handler.close_connection = True
        handler.ranged(LAYER)

    server.answers[BLOB] = last
    source.read(0, 10)
    del server.answers[BLOB]
    assert source.read(10, 10) == LAYER[10:20]


def test_digest_must_be_one(tmp_path: Path) -> None:
    for digest in ("sha256:../../x", "md5:" + "a" * 32, "sha256:" + "A" * 64):
        with pytest.raises(UsageError, match="not a layer's digest"):
            HttpSource("http://server", digest)
        with pytest.raises(UsageError, match="not a layer's digest"):
            StageSource(tmp_path, digest)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="is not there"):
        FileSource(tmp_path / "none")


def part(tmp_path: Path, suffix: str) -> Path:
    return tmp_path / f"{'ab' * 32}.{suffix}"


def test_an_empty_stage_has_nothing(tmp_path: Path) -> None:
    stage = StageSource(tmp_path / "nowhere", DIGEST)
    assert not stage.has(0)
    with pytest.raises(NotFoundError, match="not in the stage"):
        stage.read(0, 1)
    stage.close()


def test_a_stage_has_what_was_put_and_nothing_else(tmp_path: Path) -> None:
    with StageWriter(tmp_path, DIGEST) as writer:
        writer.put(5000, LAYER[5000:6000], 7)
        writer.put(200, LAYER[200:300])
        assert not writer.has(7), "promised only when durable"
        writer.commit()
        assert writer.has(7)
    stage = StageSource(tmp_path, DIGEST)
    assert stage.has(7) and not stage.has(0)
    assert stage.read(5100, 900) == LAYER[5100:6000]
    for offset, length in [(4999, 10), (5990, 11), (0, 1), (200, 5000)]:
        with pytest.raises(NotFoundError):
            stage.read(offset, length)
    with StageWriter(tmp_path, DIGEST) as writer:
        assert writer.has(7)


def test_a_torn_record_is_cut_off(tmp_path: Path) -> None:
    with StageWriter(tmp_path, DIGEST) as writer:
        writer.put(0, LAYER[:100], 0)
    with part(tmp_path, "have").open("ab") as stream:
        stream.write(b"\x01" * 7)
    assert StageSource(tmp_path, DIGEST).has(0)
    with StageWriter(tmp_path, DIGEST) as writer:
        writer.put(100, LAYER[100:200], 1)
    stage = StageSource(tmp_path, DIGEST)
    assert stage.has(1)
    assert stage.read(0, 200) == LAYER[:200]


def test_a_stage_is_made_durable_before_it_is_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    real = os.fdatasync

    def watched(handle: int) -> None:
        steps.append(f"{Path(f'/proc/self/fd/{handle}').readlink().suffix} {part(tmp_path, 'have').stat().st_size}")
        real(handle)

    monkeypatch.setattr(os, "fdatasync", watched)
    with StageWriter(tmp_path, DIGEST) as writer:
        writer.put(0, LAYER[:100], 0)
    assert steps == [".part 0", ".have 16"]


def test_a_part_that_vanished_or_shrank_is_an_error(tmp_path: Path) -> None:
    with StageWriter(tmp_path, DIGEST) as writer:
        writer.put(0, LAYER[:100], 0)
    os.truncate(part(tmp_path, "part"), 50)
    with pytest.raises(CorruptError, match="ends before"):
        StageSource(tmp_path, DIGEST).read(0, 100)
    part(tmp_path, "part").unlink()
    with pytest.raises(DiskError, match="stage again"):
        StageSource(tmp_path, DIGEST)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with StageWriter(tmp_path, DIGEST), pytest.raises(BusyError, match="another process"):
        StageWriter(tmp_path, DIGEST)


@pytest.mark.root
def test_a_full_stage_says_so(tmp_path: Path) -> None:
    from plumbing.run import run

    disk = tmp_path / "disk"
    disk.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk])
    try:
        with pytest.raises(DiskError, match="full"), StageWriter(disk, DIGEST) as writer:
            writer.put(0, LAYER)
        assert not StageSource(disk, DIGEST).has(0)
    finally:
        run(["umount", disk])
