"""Debian's docker-registry on the loopback, with or without a token server, for the tests of what reads from one."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
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
from plumbing.digest import sha256
from plumbing.errors import NetworkError
from plumbing.http import Client

REPOSITORY = "site/reroot"
LOGIN = ("reader", "s3cret: with a colon")
SERVICE, ISSUER = "the registry", "the token server"


class TokenServer(ThreadingHTTPServer):
    """Gives LOGIN a token for what it asks; `given` counts them."""

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
        self.given = 0
        self.lifetime_s = 60

    def token(self, scope: str) -> str:
        kind, name, actions = scope.split(":")
        now = int(datetime.now(UTC).timestamp())
        claims = {"iss": ISSUER, "aud": SERVICE, "sub": LOGIN[0], "iat": now - 600, "nbf": now - 600,
                  "exp": now + self.lifetime_s, "jti": str(self.given),
                  "access": [{"type": kind, "name": name, "actions": actions.split(",")}]}
        self.given += 1
        text = ".".join(map(_base64, (json.dumps({"typ": "JWT", "alg": "RS256", "x5c": self.chain}).encode(),
                                      json.dumps(claims).encode())))
        return text + "." + _base64(self.key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))


class _TokenHandler(BaseHTTPRequestHandler):
    server: TokenServer

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        expected = "Basic " + base64.b64encode(":".join(LOGIN).encode()).decode()
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


class Registry:
    """A running docker-registry: where it is, and its token server if it has one."""

    def __init__(self, url: str, tokens: TokenServer | None) -> None:
        self.url, self.tokens = url, tokens

    def upload(self, blob: bytes) -> str:
        """Store a blob in REPOSITORY and return its digest."""
        sent = {} if self.tokens is None else {
            "Authorization": "Bearer " + self.tokens.token(f"repository:{REPOSITORY}:pull,push")}
        client = Client(self.url)
        begun = client.request("POST", f"/v2/{REPOSITORY}/blobs/uploads/", headers=sent)
        assert begun.status == 202, begun
        place = urlsplit(begun.headers["location"])
        digest = sha256(blob)
        done = client.request("PUT", f"{place.path}?{place.query}&digest={digest}", body=blob,
                              headers={**sent, "Content-Type": "application/octet-stream"})
        assert done.status == 201, done
        client.close()
        return digest


@contextmanager
def registry(folder: Path, *, tokens: bool = False) -> Iterator[Registry]:
    """Run a registry that keeps its blobs below `folder`."""
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = TokenServer(folder) if tokens else None
    auth = {} if server is None else {"auth": {"token": {
        "realm": server.url, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": str(server.bundle)}}}
    settings = folder / "config.yml"
    settings.write_text(json.dumps({  # JSON is YAML
        "version": "0.1", "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "blobs")}}, "http": {"addr": f"127.0.0.1:{port}"},
        **auth}))
    if server is not None:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    with (folder / "log").open("wb") as log, subprocess.Popen(
            ["docker-registry", "serve", settings], stdout=log, stderr=log) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(url, process, folder / "log")
            yield Registry(url, server)
        finally:
            process.terminate()
            if server is not None:
                server.shutdown()
                server.server_close()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = clock.monotonic() + 30
    while True:
        try:
            Client(url, timeout_s=5).request("GET", "/v2/")
        except NetworkError:
            assert process.poll() is None and clock.monotonic() < until, log.read_text()
            threading.Event().wait(0.02)
        else:
            return
