"""X25519 key files of those who read second copies: made, loaded, listed for hosts. I/O: reads and writes key files.

Private halves are PKCS8 PEM with mode 0600, public ones SubjectPublicKeyInfo PEM, so that openssl can deal with both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from plumbing import durable
from plumbing.errors import ConfigError, TrustError
from precious.sealed import KEY_BYTES, MAX_RECIPIENTS, key_id

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

TARGET = "precious/keys.json"
"""Where the catalogue lists the site's recovery keys."""
MOST = MAX_RECIPIENTS - 1
"""So many, for the host's own comes to them."""


def make(path: Path) -> X25519PrivateKey:
    """Make a key and its file, which must not be there yet; raises FileExistsError, OSError."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    if os.path.lexists(path):
        raise FileExistsError(path)
    key = X25519PrivateKey.generate()
    durable.write_file(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    return key


def load(path: Path) -> X25519PrivateKey:
    """Read a private key; raises ConfigError when it is missing, readable by others or another kind of key."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    if _read(path)[1] & 0o077:
        raise ConfigError(f"the key {path} can be read by others; run chmod 600 on it, and consider making another")
    key = _parsed(path)
    if not isinstance(key, X25519PrivateKey):
        raise ConfigError(f"{path} is no private X25519 key; bring the recovery key that `reroot init` made")
    return key


def public(path: Path) -> bytes:
    """Return the 32 bytes of the public key in a file that holds either half; raises ConfigError."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    key = _parsed(path)
    if isinstance(key, X25519PrivateKey):
        key = key.public_key()
    if not isinstance(key, X25519PublicKey):
        raise ConfigError(f"{path} is no X25519 key; `openssl genpkey -algorithm X25519` makes one")
    return key.public_bytes_raw()


def listing(keys: Iterable[bytes]) -> bytes:
    """Return the catalogue target that lists `keys`, 32 raw bytes each. Pure."""
    found = {key_id(key): {"keytype": "x25519", "public": key.hex()} for key in keys}
    if not 1 <= len(found) <= MOST:
        raise ConfigError(f"a site has 1 to {MOST} recovery keys, not {len(found)}")
    return json.dumps({"keys": found}, sort_keys=True, separators=(",", ":")).encode()


def listed(data: bytes) -> tuple[bytes, ...]:
    """Read what `listing` wrote; raises TrustError. Pure."""
    try:
        raw = json.loads(data)["keys"]
        keys = tuple(bytes.fromhex(one["public"]) for one in raw.values() if one["keytype"] == "x25519")
        right = [name for name in raw] == [key_id(key) for key in keys] and 1 <= len(keys) <= MOST  # noqa: C416
        if not right or any(len(key) != KEY_BYTES for key in keys):
            raise ValueError("keys and ids do not belong together")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrustError(f"the catalogue's {TARGET} does not list recovery keys ({error}); publish them again with "
                         "`reroot trust recovery-key --replace`") from error
    return keys


def _read(path: Path) -> tuple[bytes, int]:
    try:
        with path.open("rb") as stream:
            return stream.read(1 << 16), os.fstat(stream.fileno()).st_mode
    except OSError as error:
        raise ConfigError(f"the key {path} cannot be read ({error.strerror}); bring it here") from error


def _parsed(path: Path) -> object:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

    pem, _ = _read(path)
    try:
        return load_pem_public_key(pem) if b"PUBLIC KEY" in pem else load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is not an unencrypted key in PEM form; bring the right file") from error
