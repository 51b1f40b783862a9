"""Providers abreast: shared by speed, ranges joined, and one that misbehaves costs nothing but itself."""

from __future__ import annotations

import hashlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from blake3 import blake3
from loopback import Handler, Server, drip
from trees import noise

from imaging import fetch
from imaging.ahead import AHEAD_BYTES, Ahead
from imaging.fetch import FrameFetcher
from imaging.index import Frame
from imaging.sources import HttpSource
from plumbing.errors import NetworkError, NotFoundError

SIZE, COUNT = 20_000, 100
LAYER = noise(1, SIZE * COUNT)
DIGEST = "sha256:" + hashlib.sha256(LAYER).hexdigest()
BLOB = f"/v2/reroot/blobs/{DIGEST}"
FRAMES = [Frame(start, SIZE, SIZE, blake3(LAYER[start:start + SIZE]).digest()) for start in range(0, len(LAYER), SIZE)]
SPAN = 4 * SIZE


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Server]]:
    (tmp_path / BLOB.lstrip("/")).parent.mkdir(parents=True)
    (tmp_path / BLOB.lstrip("/")).write_bytes(LAYER)
    with ExitStack() as stack:
        yield [stack.enter_context(Server(tmp_path)) for _ in range(3)]


def abreast(servers: list[Server], notes: list[str] | None = None) -> FrameFetcher:
    # the first is the one that may be slow on purpose; a busy machine must not make the others seem so
    sources = tuple(HttpSource(server.url, DIGEST, timeout_s=20 if number else 0.3)
                    for number, server in enumerate(servers))
    return FrameFetcher([sources], patience_s=0, pause_s=0, note=None if notes is None else notes.append)


def everything(fetcher: FrameFetcher, **options: int) -> bytes:
    with Ahead(fetcher, FRAMES, span_bytes=SPAN, **options) as ahead:
        return b"".join(ahead.frame(frame) for frame in FRAMES)


def paced(bytes_per_s: int) -> Callable[[Handler], None]:
    """A server whose line carries so much."""
    def answer(handler: Handler) -> None:
        with handler.server.line:
            handler.server.stop.wait(SPAN / bytes_per_s)
            handler.ranged(LAYER)

    return answer


def test_neighbours_are_one_range_and_every_byte_is_asked_for_once(servers: list[Server]) -> None:
    assert everything(abreast(servers[:1])) == LAYER
    asked = sorted(tuple(map(int, str(span).removeprefix("bytes=").split("-"))) for _, span in servers[0].requests)
    assert asked == [(start, start + SPAN - 1) for start in range(0, len(LAYER), SPAN)]


def test_frames_that_are_no_neighbours_are_ranges_of_their_own(servers: list[Server]) -> None:
    wanted = [FRAMES[0], FRAMES[1], FRAMES[3], FRAMES[9]]
    with Ahead(abreast(servers[:1]), wanted, span_bytes=SPAN) as ahead:
        for frame in wanted:
            assert ahead.frame(frame) == LAYER[frame.offset:frame.offset + SIZE]
    assert sorted(str(span) for _, span in servers[0].requests) == [
        "bytes=0-39999", "bytes=180000-199999", "bytes=60000-79999"]


def test_a_frame_that_was_not_announced_is_fetched_all_the_same(servers: list[Server]) -> None:
    with Ahead(abreast(servers[:1]), FRAMES[:2]) as ahead:
        assert ahead.frame(FRAMES[50]) == LAYER[FRAMES[50].offset:][:SIZE]
        assert ahead.frame(FRAMES[1]) == LAYER[SIZE:2 * SIZE]


def test_without_a_source_the_first_frame_says_so() -> None:
    told: list[str] = []

    def ask() -> None:
        with Ahead(FrameFetcher([]), FRAMES) as ahead:
            try:
                ahead.frame(FRAMES[0])
            except NetworkError as error:
                told.append(error.sentence)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(30)
    assert told and "there is no source at all" in told[0]


def test_any_order_of_asking_ends(servers: list[Server]) -> None:
    """Even the last frame first, with room for one range only."""
    with Ahead(abreast(servers[:2]), FRAMES, span_bytes=SPAN, ahead_bytes=1) as ahead:
        pieces = [ahead.frame(frame) for frame in reversed(FRAMES)]
    assert b"".join(reversed(pieces)) == LAYER


def test_what_lies_ready_is_bounded(servers: list[Server]) -> None:
    room = 10 * SIZE
    with Ahead(abreast(servers[:1]), FRAMES, span_bytes=SPAN, ahead_bytes=room) as ahead:
        ahead.frame(FRAMES[0])
        for frame in FRAMES[1:]:
            assert ahead.held <= room + 2 * SPAN
            ahead.frame(frame)
        assert ahead.held == 0
    assert AHEAD_BYTES <= 32 << 20


def test_providers_carry_what_their_speed_allows(servers: list[Server]) -> None:
    for server, speed in zip(servers, (8_000_000, 4_000_000, 1_000_000), strict=True):
        server.answers[BLOB] = paced(speed)
    fetcher = abreast(servers)
    assert everything(fetcher) == LAYER
    fast, medium, slow = (report.size for report in fetcher.report())
    assert fast > medium > slow > 0
    assert fast >= 3 * slow


def test_the_next_group_is_for_what_the_first_lacks(servers: list[Server]) -> None:
    def half(handler: Handler) -> None:
        handler.ranged(LAYER[:len(LAYER) // 2])

    servers[0].answers[BLOB] = lambda handler: (
        half(handler) if int(str(handler.headers["Range"])[6:].split("-")[0]) < len(LAYER) // 2 - SPAN
        else handler.send(404, b""))
    near, far = (HttpSource(server.url, DIGEST) for server in servers[:2])
    fetcher = FrameFetcher([near, far], patience_s=0, pause_s=0)
    assert everything(fetcher) == LAYER
    first, second = fetcher.report()
    assert first.frames > 40 and second.frames == COUNT - first.frames
    assert first.dropped is None and first.failures == 0


def _truncated(handler: Handler) -> None:
    handler.send_response(206)
    handler.send_header("Content-Length", str(SIZE))
    handler.end_headers()
    handler.wfile.write(b"x" * 100)
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)



def _endless(handler: Handler) -> None:
    handler.send_response(206)
    handler.end_headers()
    while not handler.server.stop.is_set():
        handler.wfile.write(b"x" * 65536)


def _wrong(handler: Handler) -> None:
    handler.ranged(bytes(len(LAYER)))


def _one_bit(handler: Handler) -> None:
    first, last = map(int, str(handler.headers["Range"])[6:].split("-"))
    handler.send(206, bytes([LAYER[first] ^ 1]) + LAYER[first + 1:last + 1])


def _reset(handler: Handler) -> None:
    handler.close_connection = True
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def _silent(handler: Handler) -> None:
    handler.server.stop.wait()


MISBEHAVIOUR = [_wrong, _one_bit, _truncated, _endless, _reset, _silent, drip, lambda handler: handler.send(503, b"")]


@pytest.mark.parametrize("misbehave", MISBEHAVIOUR)
@pytest.mark.parametrize("after", [0, 3])
def test_one_that_misbehaves_is_dropped_and_named_and_the_others_finish(
    servers: list[Server], monkeypatch: pytest.MonkeyPatch, misbehave: Callable[[Handler], None], after: int,
) -> None:
    monkeypatch.setattr(fetch, "RETRY_S", 0.0)  # it is asked again at once: nothing hides behind a pause

    def sometimes(handler: Handler) -> None:
        (misbehave if len(handler.server.requests) > after else Handler.file)(handler)

    servers[0].answers[BLOB] = sometimes
    for server in servers[1:]:  # they must not be through before it had its three chances
        server.answers[BLOB] = paced(2_000_000 if misbehave in (_silent, drip) else 8_000_000)
    notes: list[str] = []
    fetcher = abreast(servers, notes)
    with Ahead(fetcher, FRAMES, span_bytes=SIZE) as ahead:
        assert b"".join(ahead.frame(frame) for frame in FRAMES) == LAYER
    bad, *good = fetcher.report()
    assert bad.dropped is not None and servers[0].url in bad.dropped
    assert [note for note in notes if "is not asked any more" in note] == [
        f"{servers[0].url} is not asked any more: {bad.dropped}"]
    assert all(report.dropped is None and report.lies == report.failures == 0 for report in good)
    assert len(servers[0].requests) <= after + 3 + 6, "bounded: what was under way when it was dropped"


def test_when_all_are_dead_every_frame_says_so_and_nothing_hangs(servers: list[Server]) -> None:
    for server in servers:
        server.answers[BLOB] = lambda handler: handler.send(503, b"")
    fetcher = abreast(servers)
    with Ahead(fetcher, FRAMES, span_bytes=SPAN) as ahead:
        for frame in (FRAMES[0], FRAMES[-1]):
            with pytest.raises(NetworkError) as caught:
                ahead.frame(frame)
            assert all(server.url in caught.value.sentence for server in servers)


def test_leaving_with_an_error_ends_the_lanes(servers: list[Server]) -> None:
    fetcher = FrameFetcher([HttpSource(servers[0].url, DIGEST)], patience_s=3600, pause_s=3600)
    servers[0].answers[BLOB] = lambda handler: handler.send(503, b"")
    before = threading.active_count()
    with pytest.raises(NotFoundError), Ahead(fetcher, FRAMES):
        raise NotFoundError("something else went wrong")
    assert threading.active_count() <= before + 4, "only the server's own threads may be left"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead-")]
