"""A layer read from a registry: its tokens, its redirects and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import docker_registry
import pytest
from loopback import Handler, Server
from trees import noise

from imaging import registry_source
from imaging.registry import Place, Registry
from imaging.registry_auth import Credentials
from imaging.registry_source import RegistrySource
from plumbing.digest import sha256
from plumbing.errors import ConfigError, NetworkError, NotFoundError, RerootError

LAYER = noise(1, 300_000)
DIGEST = "sha256:" + "ab" * 32
BLOB = f"/v2/r/blobs/{DIGEST}"
KNOWN = Credentials(*docker_registry.TOKEN_LOGIN)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as server:
        yield server


def reading(server: Server, known: Credentials | None = None) -> RegistrySource:
    return RegistrySource(Place(server.url, "r"), DIGEST, known)


def test_a_token_is_got_once_and_again_when_it_has_expired(tmp_path: Path) -> None:
    with docker_registry.guarded(tmp_path / "r") as (host, tokens):
        place = Place.parse(f"http://{host}/os/debian")
        Registry(place, KNOWN).upload(sha256(LAYER), len(LAYER), BytesIO(LAYER))
        source, before = RegistrySource(place, sha256(LAYER), KNOWN), len(tokens.given)
        for start in range(0, 100_000, 10_000):
            assert source.read(start, 1000) == LAYER[start:start + 1000]
        assert len(tokens.given) == before + 1
        tokens.lifetime_s = -300  # beyond the leeway that a registry gives
        stale = RegistrySource(place, sha256(LAYER), KNOWN)
        with pytest.raises(ConfigError, match="cannot be used with the credentials given"):
            stale.read(0, 10)
        tokens.lifetime_s = 60
        assert stale.read(0, 10) == LAYER[:10]
        source.close()
        for known in (None, Credentials("reader", "wrong")):
            with pytest.raises(ConfigError, match="cannot be used with"):
                RegistrySource(place, sha256(LAYER), known).read(0, 10)
        with pytest.raises(NotFoundError, match="is not there"):
            RegistrySource(place, DIGEST, KNOWN).read(0, 10)


def test_a_redirect_to_the_storage_is_followed_without_the_login(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, str | None]] = []

    def storage(handler: Handler) -> None:
        seen.append((handler.path, handler.headers.get("Authorization")))
        handler.ranged(LAYER)

    with Server(tmp_path) as bucket:
        def registry_answer(handler: Handler) -> None:
            seen.append((handler.path, handler.headers.get("Authorization")))
            if handler.headers.get("Authorization") is None:
                handler.send_response(401)
                handler.send_header("WWW-Authenticate", 'Basic realm="x"')
            else:
                handler.send_response(307)
                handler.send_header("Location", f"{bucket.url}/blob?signature=1")
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        server.answers, bucket.answers = {BLOB: registry_answer}, {"/blob?signature=1": storage}
        source = reading(server, KNOWN)
        assert source.read(5, 1000) == LAYER[5:1005]
        assert [path for path, _ in seen] == [BLOB, BLOB, "/blob?signature=1"]
        assert seen[1][1] == KNOWN.basic() and seen[2][1] is None
        assert source.read(0, 3) == LAYER[:3], "the login is sent at once from now on"
        assert len(seen) == 5


def test_a_longer_range_has_more_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    length = 6 << 20

    def paced(handler: Handler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        for _ in range(6):
            handler.server.stop.wait(0.5)
            handler.wfile.write(bytes(1 << 20))

    monkeypatch.setattr(registry_source, "PATIENCE_S", 0.0)
    monkeypatch.setattr(registry_source, "SLOWEST", 1 << 20)
    server.answers[BLOB] = paced
    assert reading(server).read(0, length) == bytes(length)
    monkeypatch.setattr(registry_source, "SLOWEST", 4 << 20)
    with pytest.raises(NetworkError, match="does not answer"):
        reading(server).read(0, length)


@pytest.mark.parametrize(("status", "name", "value", "match"), [
    (307, "Location", BLOB, "redirects without end"),
    (307, "Location", "file:///etc/passwd", "not a server's URL"),
    (307, "Location", "http://[", "no address"),
    (307, "Location", "/\u00e4", "does not answer"),
    (307, "Location", f"http://{'a' * 64}.example/", "does not answer"),
    (401, "WWW-Authenticate", 'Bearer realm="http://["', "no address"),
    (401, "WWW-Authenticate", 'Bearer realm="http://127.0.0.1:x/"', "not a server's URL"),
    (401, "WWW-Authenticate", 'Bearer realm="file:///etc/passwd"', "not a server's URL"),
    (401, "WWW-Authenticate", 'Bearer realm="http://127.0.0.1:9/"', "does not answer"),
    (401, "WWW-Authenticate", "Digest x", "no credentials"),
    (401, "X", "y", "no credentials"),
    (403, "X", "y", "no credentials"),
    (200, "X", "y", "does not send parts"),
])
def test_answers_that_lead_nowhere_are_bounded(server: Server, status: int, name: str, value: str, match: str) -> None:
    def answer(handler: Handler) -> None:
        handler.send_response(status)
        handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.answers[BLOB] = answer
    with pytest.raises(RerootError, match=match):
        reading(server).read(0, 10)
    assert len(server.requests) <= 5


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"token": 5}', b'{"token": "a\\r\\nX: y"}', b"<html>"])
def test_a_token_server_that_sends_no_token(server: Server, body: bytes) -> None:
    def challenge(handler: Handler) -> None:
        handler.send_response(401)
        handler.send_header("WWW-Authenticate", f'Bearer realm="{server.url}/token",service="s"')
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    scope = "repository%3Ar%3Apull%2Cpush"
    server.answers = {BLOB: challenge, f"/token?service=s&scope={scope}": lambda handler: handler.send(200, body)}
    with pytest.raises(RerootError, match=r"gave no token|not JSON"):
        reading(server).read(0, 10)
