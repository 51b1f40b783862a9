"""A program of the site's own for one host's rescue menu: what /local/recover/recover holds. Pure.

It is a DSSE envelope, signed like orders and by the same keys (orders/keys.json of the catalogue), over the program,
the host it is for and its expiry; the bytes that were verified are the bytes that run (docs/protocols/recovery.md).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plumbing import clock
from plumbing.errors import TrustError, UsageError
from recovery.fields import Fields, parse_object
from recovery.order import HOST_NAME
from recovery.signed_order import MAX_ENVELOPE_BYTES, signed_payload

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PAYLOAD_TYPE = "application/vnd.reroot.program.v1+json"
MAX_BYTES = MAX_ENVELOPE_BYTES // 2
"""Of a program: base64 twice must fit into an envelope."""
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@dataclass(frozen=True)
class Program:
    """What one host may run until `expires_s` (wall seconds); `data` begins with #! or is a static executable."""

    host: str
    expires_s: float
    data: bytes


def sign(program: Program, *keys: Ed25519PrivateKey) -> bytes:
    """Return the envelope; raises UsageError for a program that is empty or too long."""
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner

    if not 0 < len(program.data) <= MAX_BYTES:
        raise UsageError(f"a program for the rescue menu has 1 to {MAX_BYTES} bytes, not {len(program.data)}")
    payload = {"spec": 1, "host": program.host, "expires": clock.iso(program.expires_s),
               "program": base64.b64encode(program.data).decode()}
    envelope = Envelope(json.dumps(payload, sort_keys=True).encode(), PAYLOAD_TYPE, {})
    for key in keys:
        envelope.sign(CryptoSigner(key))
    return json.dumps(envelope.to_dict(), sort_keys=True).encode()


def verify(envelope: bytes, keys_json: bytes, *, host: str, now: float) -> Program:
    """Return the program when it is signed, for `host`, and in time; raises TrustError or ConfigError."""
    fields = Fields(parse_object(signed_payload(envelope, keys_json, PAYLOAD_TYPE, "program"), "program"), "program")
    fields.integer("spec", 1, 1)
    found = Program(fields.text("host", HOST_NAME, "a host's name"),
                    clock.from_iso(fields.text("expires", _TIME, "a time such as 2026-11-21T12:00:00Z")),
                    _decoded(fields.text("program", re.compile(r"[A-Za-z0-9+/]+={0,2}"), "base64",
                                         longest=MAX_ENVELOPE_BYTES)))
    fields.end()
    if found.host != host:
        raise TrustError(f"the program is for {found.host} and this host is {host}; sign one for {host}")
    if now >= found.expires_s:
        raise TrustError(f"the program expired at {clock.iso(found.expires_s)} and it is {clock.iso(now)}; sign it "
                         "again")
    return found


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise TrustError("the program is not base64; sign it again") from error
