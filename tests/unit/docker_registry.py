"""Debian's docker-registry on a free port of the loopback, open or guarded by a token server."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from plumbing import clock
from plumbing.run import spawn

PASSWORDS = "ops:$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n"
"""An htpasswd file: the password of ops is "secret", as bcrypt writes it."""

TOKEN_LOGIN = ("reader", "s3cret: with a colon")
SERVICE, ISSUER = "the registry", "the token server"


class TokenServer(ThreadingHTTPServer):
    """Gives TOKEN_LOGIN a token for what it asks; `given` counts them."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _TokenHandler)
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ISSUER)])
        now = datetime.now(UTC)
        certificate = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(self.key.public_key())
                       .serial_number(1).not_valid_before(now - timedelta(days=1))
                       .not_valid_after(now + timedelta(days=1)).sign(self.key, hashes.SHA256()))
        self.chain = [base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()]
        self.bundle = folder / "token.pem"
        self.bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.url = f"http://127.0.0.1:{self.server_address[1]}/token?x=y"
        self.given: list[str] = []
        self.lifetime_s = 60

    def token(self, scope: str) -> str:
        kind, name, actions = scope.split(":")
        now = int(datetime.now(UTC).timestamp())
        claims = {"iss": ISSUER, "aud": SERVICE, "sub": TOKEN_LOGIN[0], "iat": now - 600, "nbf": now - 600,
                  "exp": now + self.lifetime_s, "jti": str(len(self.given)),
                  "access": [{"type": kind, "name": name, "actions": actions.split(",")}]}
        self.given.append(scope)
        text = ".".join(map(_base64, (json.dumps({"typ": "JWT", "alg": "RS256", "x5c": self.chain}).encode(),
                                      json.dumps(claims).encode())))
        return text + "." + _base64(self.key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))


class _TokenHandler(BaseHTTPRequestHandler):
    server: TokenServer

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        expected = "Basic " + base64.b64encode(":".join(TOKEN_LOGIN).encode()).decode()
        right = self.headers.get("Authorization") == expected and query["x"] == ["y"] and query["service"] == [SERVICE]
        body = json.dumps({"token": self.server.token(query["scope"][0])} if right else {}).encode()
        self.send_response(200 if right else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@contextmanager
def serving(folder: Path, http: Mapping[str, object] | None = None, auth: object = None) -> Iterator[str]:
    """Run a registry that keeps its data below `folder` and yield its host:port."""
    folder.mkdir(exist_ok=True)
    settings = {"version": 0.1, "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
                "http": {"addr": "127.0.0.1:0", "secret": "one secret for every run", **(http or {})},
                **({"auth": auth} if auth else {})}
    (folder / "config.yml").write_text(json.dumps(settings))  # JSON is YAML
    log = folder / "log"
    with log.open("wb") as out:
        process = spawn(["docker-registry", "serve", folder / "config.yml"], errors=out)
    try:
        until, tick = clock.monotonic() + 60, threading.Event()
        while not (found := re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text())):
            assert process.poll() is None and clock.monotonic() < until, log.read_text()
            tick.wait(0.01)
        yield found[1]
    finally:
        process.kill()
        process.wait()


@contextmanager
def guarded(folder: Path) -> Iterator[tuple[str, TokenServer]]:
    """Run a registry that wants tokens, and the server that gives them; yield its host:port and that server."""
    folder.mkdir()
    tokens = TokenServer(folder)
    threading.Thread(target=tokens.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    auth = {"token": {"realm": tokens.url, "service": SERVICE, "issuer": ISSUER,
                      "rootcertbundle": str(tokens.bundle)}}
    try:
        with serving(folder, auth=auth) as host:
            yield host, tokens
    finally:
        tokens.shutdown()
        tokens.server_close()
