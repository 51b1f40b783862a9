"""Frames out of sources of which some lie, drip or die."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from loopback import Handler, Server, drip, serving
from trees import noise

from imaging import fetch
from imaging.fetch import FAILURES, LIES, FrameFetcher
from imaging.index import Frame
from imaging.sources import FileSource, FrameSource, HttpSource, StageSource, StageWriter
from plumbing.errors import NetworkError

SIZES = [40_000, 1, 70_000, 30_000]
LAYER = noise(1, sum(SIZES))
DIGEST = "sha256:" + hashlib.sha256(LAYER).hexdigest()
BLOB = f"/v2/reroot/blobs/{DIGEST}"
FRAMES = [Frame(sum(SIZES[:number]), size, size, blake3(LAYER[sum(SIZES[:number]):][:size]).digest())
          for number, size in enumerate(SIZES)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "www", BLOB, LAYER) as server:
        yield server


def impatient(*sources: FrameSource, notes: list[str] | None = None) -> FrameFetcher:
    return FrameFetcher(sources, patience_s=0, pause_s=0, note=None if notes is None else notes.append)


def everything(fetcher: FrameFetcher) -> bytes:
    return b"".join(fetcher.frame(frame) for frame in FRAMES)


def flipped(handler: Handler) -> None:
    data = bytearray(LAYER)
    data[::1000] = bytes(value ^ 1 for value in data[::1000])
    handler.ranged(bytes(data))


def good(tmp_path: Path) -> FileSource:
    path = tmp_path / "good"
    path.write_bytes(LAYER)
    return FileSource(path)


def test_frames_from_one_source(tmp_path: Path) -> None:
    fetcher = impatient(good(tmp_path))
    assert everything(fetcher) == LAYER
    (report,) = fetcher.report()
    assert (report.frames, report.size, report.dropped) == (4, len(LAYER), None)


def test_a_liar_is_dropped_and_named(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "RETRY_S", 0.0)
    server.answers[BLOB] = flipped
    notes: list[str] = []
    fetcher = impatient(HttpSource(server.url, DIGEST), good(tmp_path), notes=notes)
    assert everything(fetcher) == LAYER
    liar, honest = fetcher.report()
    assert liar.frames == 0 and liar.dropped is not None and "other bytes" in liar.dropped
    assert honest.frames == 4
    assert [note.startswith(f"{server.url} is not asked any more: ") for note in notes] == [False, True]
    assert len(server.requests) == LIES


def test_one_flipped_bit_is_asked_for_again(server: Server) -> None:
    def once(handler: Handler) -> None:
        del handler.server.answers[BLOB]
        flipped(handler)

    server.answers[BLOB] = once
    fetcher = impatient(HttpSource(server.url, DIGEST))
    assert everything(fetcher) == LAYER
    assert fetcher.report()[0].lies == 1


def test_the_only_source_lies(server: Server) -> None:
    server.answers[BLOB] = flipped
    with pytest.raises(NetworkError, match=r"no source has .*sent other bytes"):
        impatient(HttpSource(server.url, DIGEST)).frame(FRAMES[0])
    assert len(server.requests) == 2


def test_a_dripping_source_is_passed_over(tmp_path: Path, server: Server) -> None:
    server.answers[BLOB] = drip
    fetcher = impatient(HttpSource(server.url, DIGEST, timeout_s=0.2), good(tmp_path))
    assert everything(fetcher) == LAYER
    assert fetcher.report()[0].failures == 1, "the others come first for a while after a failure"


def test_a_source_that_comes_back_is_used(tmp_path: Path, server: Server) -> None:
    def twice(handler: Handler) -> None:
        if len(handler.server.requests) < FAILURES:
            handler.send(503, b"")
        else:
            handler.ranged(LAYER)

    server.answers[BLOB] = twice
    fetcher = FrameFetcher([HttpSource(server.url, DIGEST)], patience_s=60, pause_s=0.001)
    assert everything(fetcher) == LAYER


def test_dead_sources_are_bounded_and_all_named(server: Server) -> None:
    server.answers[BLOB] = lambda handler: handler.send(503, b"")
    notes: list[str] = []
    fetcher = impatient(HttpSource(server.url, DIGEST), HttpSource("http://127.0.0.1:9", DIGEST), notes=notes)
    with pytest.raises(NetworkError) as caught:
        fetcher.frame(FRAMES[0])
    assert server.url in caught.value.sentence and "127.0.0.1:9" in caught.value.sentence
    assert len(server.requests) == FAILURES
    assert sum("is not asked any more" in note for note in notes) == 2
    with pytest.raises(NetworkError, match="answered 503"):
        fetcher.frame(FRAMES[1])
    assert len(server.requests) == FAILURES


def test_patience_outlasts_failures_until_it_is_cancelled(server: Server) -> None:
    fetcher = FrameFetcher([HttpSource(server.url, DIGEST)], patience_s=3600, pause_s=0.001)

    def broken(handler: Handler) -> None:
        if len(handler.server.requests) > 2 * FAILURES:
            fetcher.cancel()
        handler.send(503, b"")

    server.answers[BLOB] = broken
    with pytest.raises(NetworkError, match="answered 503"):
        fetcher.frame(FRAMES[0])
    assert len(server.requests) > 2 * FAILURES


def test_a_partial_stage_comes_first_and_the_server_fills_in(tmp_path: Path, server: Server) -> None:
    with StageWriter(tmp_path / "stage", DIGEST) as writer:
        for number in (0, 2):
            frame = FRAMES[number]
            writer.put(frame.offset, LAYER[frame.offset:frame.offset + frame.length], number)
    fetcher = impatient(StageSource(tmp_path / "stage", DIGEST), HttpSource(server.url, DIGEST))
    assert everything(fetcher) == LAYER
    stage, remote = fetcher.report()
    assert (stage.frames, remote.frames) == (2, 2)
    assert stage.dropped is None and stage.failures == 0
    with pytest.raises(NetworkError, match="not in the stage"):
        impatient(StageSource(tmp_path / "stage", DIGEST)).frame(FRAMES[1])


def test_a_damaged_stage_is_a_liar(tmp_path: Path, server: Server) -> None:
    with StageWriter(tmp_path / "stage", DIGEST) as writer:
        writer.put(0, b"\0" * len(LAYER), 0)
    fetcher = impatient(StageSource(tmp_path / "stage", DIGEST), HttpSource(server.url, DIGEST))
    assert everything(fetcher) == LAYER


def test_no_source_at_all() -> None:
    with pytest.raises(NetworkError, match="no source at all"):
        impatient().frame(FRAMES[0])
