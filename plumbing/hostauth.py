"""Signed requests: how a host proves to the control server that a request is its own, and first that it may join.

Pure: keys, bytes and `now` in, headers or a verdict out. The protocol is docs/protocols/host-api.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from plumbing.errors import TrustError

WINDOW_S = 300
"""How far a request's time may lie from the server's, in seconds; nonces are remembered for twice as long."""

_TIME = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True)
class Claim:
    """What the headers of a request say of it, before anyone believed them."""

    host: str
    time_s: int
    nonce: str
    signature: bytes


def _message(method: str, target: str, host: str, time_s: int, nonce: str, body: bytes) -> bytes:
    digest = hashlib.sha256(body).hexdigest()
    return "\n".join(["reroot-request-1", method.upper(), target, host, str(time_s), nonce, digest]).encode()


def sign(key: Ed25519PrivateKey, host: str, now: float, method: str, target: str, body: bytes) -> dict[str, str]:
    """Return the headers that authenticate one request; `target` is the path with its query."""
    nonce = secrets.token_urlsafe(18)
    signature = key.sign(_message(method, target, host, int(now), nonce, body))
    return {
        "Reroot-Host": host,
        "Reroot-Time": str(int(now)),
        "Reroot-Nonce": nonce,
        "Reroot-Signature": base64.b64encode(signature).decode(),
    }


def read_claim(headers: Mapping[str, str]) -> Claim:
    """Parse the four headers (names in any case); raises TrustError when one is missing or malformed."""
    low = {name.lower(): value for name, value in headers.items()}
    try:
        if not _TIME.fullmatch(low["reroot-time"]):  # int() takes a thousand digits, which no float holds
            raise ValueError(low["reroot-time"])
        claim = Claim(low["reroot-host"], int(low["reroot-time"]), low["reroot-nonce"],
                      base64.b64decode(low["reroot-signature"], validate=True))
    except (KeyError, ValueError, binascii.Error) as error:
        raise TrustError("the request is not signed; a host signs with the key it enrolled") from error
    if not 16 <= len(claim.nonce) <= 64:
        raise TrustError("the request's nonce must have 16 to 64 characters")
    return claim


def check_time(claim: Claim, now: float) -> None:
    """Raise TrustError unless the request was made within WINDOW_S of `now`."""
    if abs(now - claim.time_s) > WINDOW_S:
        raise TrustError(f"the request's clock is {abs(now - claim.time_s):.0f} s off; set the host's clock")


def verify(claim: Claim, public: Ed25519PublicKey, now: float, method: str, target: str, body: bytes) -> None:
    """Raise TrustError unless `public` signed exactly this request within WINDOW_S of `now`.

    Replays within the window are the caller's to refuse, by remembering (host, nonce).
    """
    check_time(claim, now)
    try:
        public.verify(claim.signature, _message(method, target, claim.host, claim.time_s, claim.nonce, body))
    except InvalidSignature as error:
        raise TrustError(f"the request is not signed by the key that {claim.host} enrolled") from error


def token_digest(token: str) -> bytes:
    """Return the SHA-256 of an enrolment token: all that the server keeps of it."""
    return hashlib.sha256(token.encode()).digest()


def enrolment_proof(digest: bytes, host: str, public_key: str) -> str:
    """Return in hex what shows that its sender knows the token with this `digest`, for this host and key only.

    Whoever reads it on the way learns nothing that enrols another key. `public_key` is base64, as it is sent.
    """
    return hmac.new(digest, f"reroot-enrol-1\n{host}\n{public_key}".encode(), hashlib.sha256).hexdigest()
