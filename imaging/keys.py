"""Ed25519 key files: made, loaded, and listed for hosts. I/O: reads and writes key files.

A key file is PKCS8 PEM with mode 0600, so openssl and age-old backup habits can deal with it. It is not encrypted:
a key that must be protected better than its folder belongs on a medium that is taken out (docs/protocols/trust.md).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from plumbing.durable import write_file
from plumbing.errors import ConfigError, DiskError, RefusedError

KEY_MODE = 0o600


def make_key(path: Path) -> CryptoSigner:
    """Make a new key file and return its signer; raises RefusedError when the file is there already."""
    if path.exists():
        raise RefusedError(f"{path} exists, and a lost key cannot be had back; move it away first")
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        write_file(path, pem, KEY_MODE)
    except OSError as error:
        raise DiskError(f"{path} cannot be written ({error.strerror}); check its folder's owner and space") from error
    return signer(private)


def load_private(path: Path) -> Ed25519PrivateKey:
    """Read a key file; raises ConfigError when it is missing, readable by others or not an Ed25519 key."""
    try:
        status = path.stat()
        pem = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"the key {path} is not here; bring it back from where it is kept") from error
    except OSError as error:
        raise ConfigError(f"the key {path} cannot be read ({error.strerror}); check who owns it") from error
    if status.st_mode & 0o077:
        raise ConfigError(f"the key {path} can be read by others; run chmod 600 on it, and consider rotating it")
    try:
        private = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is not an unencrypted PKCS8 key in PEM form; bring back the right file") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError(f"{path} is a key of another kind than Ed25519; bring back the right file")
    return private


def signer(private: Ed25519PrivateKey) -> CryptoSigner:
    """Return the signer of a key; its id is the SHA-256 of its public half, as TUF computes it."""
    return CryptoSigner(private, SSlibKey.from_crypto(private.public_key()))


def load_signer(path: Path) -> CryptoSigner:
    """Read a key file as a signer; raises ConfigError like `load_private`."""
    return signer(load_private(path))


def order_keys(keys: Sequence[Key], threshold: int = 1) -> bytes:
    """Return the catalogue target orders/keys.json: whose signatures make an order valid. Pure."""
    listed = {key.keyid: key.to_dict() for key in keys}
    if not 1 <= threshold <= len(listed):
        raise ConfigError(f"{threshold} of {len(listed)} order keys cannot sign an order; choose a lower threshold")
    return json.dumps({"threshold": threshold, "keys": listed}, sort_keys=True, separators=(",", ":")).encode()
