"""Who this machine is (I/O): its name, key, trust root and servers, as they lie in /local/recover/agent.

Read by every recovery of an enrolled host; written once, when a machine is installed. The files outlive every root.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plumbing import clock, durable
from plumbing.errors import ConfigError, DiskError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from plumbing.http import Client

AGENT = Path("recover/agent")
"""The folder, relative to /local."""


@dataclass(frozen=True)
class Identity:
    """An enrolled host."""

    host: str
    control: str
    content: tuple[str, ...]
    key: Ed25519PrivateKey

    def sign(self, method: str, target: str, body: bytes) -> dict[str, str]:
        """Sign one request to the control server; a plumbing.http.Signer."""
        from plumbing import hostauth

        return hostauth.sign(self.key, self.host, clock.wall(), method, target, body)

    def client(self, *, timeout_s: float = 30.0) -> Client:
        """Return a client of the control server whose requests this host signs."""
        from plumbing.http import Client

        return Client(self.control, timeout_s=timeout_s, signer=self.sign)


def load(local: Path) -> Identity | None:
    """Read the identity under the mounted /local; None where there is none.

    Raises ConfigError naming the file that is there and wrong.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    folder = local / AGENT
    if not (folder / "agent.json").exists():
        return None
    try:
        raw = json.loads((folder / "agent.json").read_bytes())
        host, control, content = raw["host"], raw["control_url"], raw["content_urls"]
        key = serialization.load_pem_private_key((folder / "host.key").read_bytes(), None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder} does not say who this host is ({error}); enrol the host again") from error
    if not (isinstance(host, str) and isinstance(control, str) and isinstance(content, list)
            and all(isinstance(url, str) for url in content)):
        raise ConfigError(f"{folder / 'agent.json'} must hold host, control_url and content_urls; enrol the host again")
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{folder / 'host.key'} is not an Ed25519 key; enrol the host again")
    return Identity(host, control, tuple(content), key)


def create(local: Path, host: str, control: str, content: Iterable[str], trust_root: bytes, network: bytes) -> Identity:
    """Write the identity of a machine that is being installed. An identity of the same host keeps its key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    known = load(local)
    key = known.key if known is not None and known.host == host else Ed25519PrivateKey.generate()
    folder = local / AGENT
    durable.make_folder(folder.parent)
    durable.make_folder(folder, 0o700)
    durable.write_file(folder / "host.key", key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()), 0o600)
    durable.write_file(folder / "root.json", trust_root)
    durable.write_file(folder / "network.json", network)
    words = {"host": host, "control_url": control, "content_urls": list(content)}
    # last, because its presence says that the others are there
    durable.write_file(folder / "agent.json", json.dumps(words, indent=1).encode() + b"\n")
    return Identity(host, control, tuple(words["content_urls"]), key)


def precious_key(local: Path) -> bytes:
    """Return the public half of the key with which this host opens second copies of its own; makes it if it is missing.

    It is not the key that signs requests: one key has one purpose. Raises ConfigError for a file that is none,
    DiskError when it cannot be written.
    """
    from precious import sealkeys

    path = local / AGENT / "precious.key"
    try:
        return sealkeys.make(path).public_key().public_bytes_raw()
    except FileExistsError:
        return sealkeys.load(path).public_key().public_bytes_raw()
    except OSError as error:
        raise DiskError(f"{path} cannot be written ({error.strerror}); look at /local") from error
