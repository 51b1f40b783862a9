"""Sessions: many requests of one host under one signature. Pure: keys, bytes and counts in, headers or a verdict out.

Both ends make an X25519 key for one session and derive the same secret; each request then carries a count that only
grows and a digest keyed with the secret. The protocol, and what somebody in the middle gains, is in
docs/protocols/host-api.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from typing import TYPE_CHECKING

from plumbing.errors import TrustError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

OPENING = "/api/v1/session"
"""Where a session is opened, by POST."""
HEADER = "Reroot-Session"
KEY_BYTES = 32
DIGEST_BYTES = 16
MAX_LIFETIME_S = 86_400
"""What a server says of a longer life is not believed, in seconds."""
IDENTITY = re.compile(r"[A-Za-z0-9_-]{16}")
"""12 random bytes in base64."""
_VALUE = re.compile(rf"({IDENTITY.pattern}) ([1-9][0-9]{{0,15}}) ([0-9a-f]{{32}})")
_LABEL = b"reroot-session-1"


class Secret:
    """What both ends of one session share, and nobody else."""

    __slots__ = ("_keyed",)

    def __init__(self, key: bytes) -> None:
        """Take KEY_BYTES bytes that nobody else has."""
        self._keyed = hashlib.blake2s(key=key, digest_size=DIGEST_BYTES)

    def digest(self, method: str, target: str, count: str, body: bytes) -> str:
        """Return the digest of one request in lower-case hex; `target` is the path with its query.

        Neither a method nor a target has a blank or an end of line in it, so no two requests make the same message.
        """
        keyed = self._keyed.copy()
        keyed.update(f"{method} {target} {count}\n".encode() + body)
        return keyed.hexdigest()

    def holds(self, digest: str, method: str, target: str, count: str, body: bytes) -> bool:
        """Tell whether `digest` is that of this request; takes the same time whatever was sent."""
        return hmac.compare_digest(digest, self.digest(method, target, count, body))


def new_key() -> X25519PrivateKey:
    """Return a key for one session."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.generate()


def public_of(key: X25519PrivateKey) -> str:
    """Return the public half as it is sent: base64 of its 32 bytes."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def agree(ours: X25519PrivateKey, theirs: str, host: str, identity: str, publics: tuple[str, str]) -> Secret:
    """Return the secret of a session: `publics` are the host's key and the server's, `theirs` is one of them.

    Raises UsageError when `theirs` is not a key that anything can be agreed on with (RFC 7748, 6.1). The secret is
    HKDF-SHA256 (RFC 5869), bound to the host's name, the session's identity and both keys.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    try:
        shared = ours.exchange(X25519PublicKey.from_public_bytes(base64.b64decode(theirs, validate=True)))
    except (ValueError, binascii.Error) as error:
        raise UsageError("the public key of a session must be the base64 of an X25519 key's 32 bytes") from error
    info = b"\n".join([_LABEL, host.encode(), identity.encode(), *(one.encode() for one in publics)])
    return Secret(HKDF(SHA256(), KEY_BYTES, None, info).derive(shared))


def speak(secret: Secret, identity: str, count: int, method: str, target: str, body: bytes) -> dict[str, str]:
    """Return the header that authenticates one request in a session; `count` is more than that of any before it."""
    return {HEADER: f"{identity} {count} {secret.digest(method, target, str(count), body)}"}


def read(value: str) -> tuple[str, str, str]:
    """Return identity, count and digest of a header's value; raises TrustError when it is malformed."""
    found = _VALUE.fullmatch(value)
    if found is None:
        raise TrustError(f"{HEADER} must be IDENTITY COUNT DIGEST; open a session with POST {OPENING}")
    return found[1], found[2], found[3]
