"""A layer read from a real OCI registry: its tokens, its redirects and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_registry import LOGIN, REPOSITORY, Registry, registry
from loopback import Handler, Server
from trees import noise

from imaging.registry_source import RegistrySource
from plumbing.errors import NetworkError, NotFoundError, RerootError, TrustError, UsageError

LAYER = noise(1, 300_000)
DIGEST = "sha256:" + "ab" * 32
BLOB = f"/v2/r/blobs/{DIGEST}"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("registry") / "r", tokens=True) as running:
        yield running


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as server:
        yield server


def test_a_token_is_got_once_and_again_when_it_has_expired(guarded: Registry) -> None:
    assert guarded.tokens is not None
    digest = guarded.upload(LAYER)
    source = RegistrySource(guarded.url, REPOSITORY, digest, LOGIN)
    before = guarded.tokens.given
    for start in range(0, 100_000, 10_000):
        assert source.read(start, 1000) == LAYER[start:start + 1000]
    assert guarded.tokens.given == before + 1
    guarded.tokens.lifetime_s = -300  # beyond the leeway that a registry gives
    try:
        stale = RegistrySource(guarded.url, REPOSITORY, digest, LOGIN)
        with pytest.raises(NetworkError, match="check user and password"):
            stale.read(0, 10)
    finally:
        guarded.tokens.lifetime_s = 60
    assert stale.read(0, 10) == LAYER[:10]
    source.close()


def test_a_wrong_password_says_so(guarded: Registry) -> None:
    digest = guarded.upload(LAYER)
    for login in (None, ("reader", "wrong")):
        with pytest.raises(TrustError, match=r"token server .* answered 401; check user and password"):
            RegistrySource(guarded.url, REPOSITORY, digest, login).read(0, 10)


def test_what_a_registry_does_not_have(guarded: Registry) -> None:
    with pytest.raises(NotFoundError, match="has no bytes=0-9; copy the release to it"):
        RegistrySource(guarded.url, REPOSITORY, DIGEST, LOGIN).read(0, 10)


def test_a_redirect_to_the_storage_is_followed_without_the_login(server: Server) -> None:
    seen: list[tuple[str, str | None]] = []

    def registry_answer(handler: Handler) -> None:
        seen.append((handler.path, handler.headers.get("Authorization")))
        if handler.headers.get("Authorization") is None:
            handler.send_response(401)
            handler.send_header("WWW-Authenticate", 'Basic realm="x"')
        else:
            handler.send_response(307)
            handler.send_header("Location", "/bucket/blob?signature=1")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def storage(handler: Handler) -> None:
        seen.append((handler.path, handler.headers.get("Authorization")))
        handler.ranged(LAYER)

    server.answers = {BLOB: registry_answer, "/bucket/blob?signature=1": storage}
    source = RegistrySource(server.url, "r", DIGEST, LOGIN)
    assert source.read(5, 1000) == LAYER[5:1005]
    assert [path for path, _ in seen] == [BLOB, BLOB, "/bucket/blob?signature=1"]
    assert seen[1][1] is not None and seen[1][1].startswith("Basic ")
    assert seen[2][1] is None
    assert source.read(0, 3) == LAYER[:3], "the login is sent at once from now on"
    assert len(seen) == 5


@pytest.mark.parametrize(("status", "name", "value", "match"), [
    (307, "Location", BLOB, "answered 307"),
    (307, "Location", "file:///etc/passwd", "not a server's URL"),
    (307, "Location", "", "answered 307"),
    (401, "WWW-Authenticate", 'Bearer realm="file:///etc/passwd"', "not a server's URL"),
    (401, "WWW-Authenticate", 'Bearer realm="http://127.0.0.1:9/"', "does not answer"),
    (401, "WWW-Authenticate", "Digest x", "wants a login"),
    (401, "X", "y", "wants a login"),
    (403, "X", "y", "does not let this login read"),
    (200, "X", "y", "knows Range"),
])
def test_answers_that_lead_nowhere_are_bounded(server: Server, status: int, name: str, value: str, match: str) -> None:
    def answer(handler: Handler) -> None:
        handler.send_response(status)
        handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.answers[BLOB] = answer
    with pytest.raises(RerootError, match=match):
        RegistrySource(server.url, "r", DIGEST).read(0, 10)
    assert len(server.requests) <= 3


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"token": 5}', b'{"token": "a\\r\\nX: y"}', b"<html>"])
def test_a_token_server_that_sends_no_token(server: Server, body: bytes) -> None:
    def challenge(handler: Handler) -> None:
        handler.send_response(401)
        handler.send_header("WWW-Authenticate", f'Bearer realm="{server.url}/token",service="s"')
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    scope = "repository%3Ar%3Apull"
    server.answers = {BLOB: challenge, f"/token?service=s&scope={scope}": lambda handler: handler.send(200, body)}
    with pytest.raises(RerootError, match=r"sent no token|not JSON"):
        RegistrySource(server.url, "r", DIGEST).read(0, 10)


def test_repository_must_be_one() -> None:
    for name in ("", "../x", "Upper", "a//b", "a/", "a?b", "a b", "x" * 300):
        with pytest.raises(UsageError, match="not a repository's name"):
            RegistrySource("http://server", name, DIGEST)
