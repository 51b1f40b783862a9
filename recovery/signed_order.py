"""Pure: who signed an order, and whether it is in time and for this machine.

An envelope, keys, this machine's identity and `now` in; an Order or one clear error out. What is checked in which order
is docs/protocols/order.md's; securesystemslib is imported late because it is slow to load.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, cast

from plumbing import clock
from plumbing.errors import ConfigError, TrustError
from recovery.fields import Fields, parse_object
from recovery.order import Order

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from securesystemslib.signer import Key

PAYLOAD_TYPE = "application/vnd.reroot.order+json"
MAX_ENVELOPE_BYTES = 262_144
CLOCK_SKEW_S = 300
"""How far `issued` may lie ahead of this machine's clock, in seconds."""


def sign(order: Order, *keys: Ed25519PrivateKey) -> bytes:
    """Return the DSSE envelope of `order` signed by each of `keys`."""
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner

    envelope = Envelope(order.to_json(), PAYLOAD_TYPE, {})
    for key in keys:
        envelope.sign(CryptoSigner(key))
    return json.dumps(envelope.to_dict(), sort_keys=True).encode()


def verify(
    envelope: bytes, keys_json: bytes, *, host_macs: Collection[str], now: float, host_serial: str | None = None,
) -> Order:
    """Return the order in `envelope` when it is signed, well-formed, in time and for this machine.

    `keys_json` is the verified target orders/keys.json; `now` is in wall seconds. Raises TrustError or
    ConfigError with one sentence for the first check that fails; nothing is looked at before the signatures.
    """
    order = Order.from_json(signed_payload(envelope, keys_json, PAYLOAD_TYPE, "order"))
    check_time(order, now)
    check_machine(order, host_macs, host_serial)
    return order


def check_time(order: Order, now: float) -> None:
    """Raise TrustError when `order` is expired at `now`, or issued in what this clock thinks is the future."""
    if now >= order.expires_s:
        raise TrustError(f"the order for {order.host} expired at {order.expires} and it is {clock.iso(now)}; "
                         "issue a new one")
    if clock.from_iso(order.issued) > now + CLOCK_SKEW_S:
        raise TrustError(f"the order for {order.host} was issued at {order.issued} but this machine's clock says "
                         f"{clock.iso(now)}; set the clock")


def check_machine(order: Order, host_macs: Collection[str], host_serial: str | None) -> None:
    """Raise TrustError unless one of the order's MACs, and its serial if it names one, are this machine's."""
    here = {mac.lower() for mac in host_macs}
    if order.machine.macs and here.isdisjoint(order.machine.macs):
        raise TrustError(f"the order is for {order.host} with {' or '.join(order.machine.macs)} but this machine has "
                         f"{', '.join(sorted(here)) or 'no network card'}; correct the host's entry or the cable")
    if order.machine.serial is not None and order.machine.serial != host_serial:
        raise TrustError(f"the order is for {order.host} with serial {order.machine.serial} but this machine has "
                         f"{host_serial or 'none'}; correct the host's entry")


def signed_payload(data: bytes, keys_json: bytes, payload_type: str, what: str) -> bytes:
    """Return what the DSSE envelope `data` holds when as many order keys as there must be have signed it as that type.

    `what` is a word for the sentences. Raises TrustError.
    """
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import FormatError, VerificationError

    if len(data) > MAX_ENVELOPE_BYTES:
        raise TrustError(f"the {what} has {len(data)} bytes, more than {MAX_ENVELOPE_BYTES}; the server sent "
                         "something else")
    keys, threshold = _order_keys(keys_json)
    try:
        envelope = Envelope.from_dict(json.loads(data))
        pae_ready = isinstance(envelope.payload_type, str)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FormatError) as error:
        raise TrustError(f"the {what} is not a signed envelope (DSSE); the server sent something else") from error
    if not pae_ready or envelope.payload_type != payload_type:
        raise TrustError(f"the envelope holds {envelope.payload_type!r:.80}, which is no {what}; the server sent "
                         "something else")
    try:
        envelope.verify(keys, threshold)
    except (VerificationError, ValueError) as error:
        raise TrustError(f"the {what} is not signed by {threshold} of the {len(keys)} keys in orders/keys.json; "
                         "sign it with keys/orders.pem of this site") from error
    return envelope.payload


def _order_keys(keys_json: bytes) -> tuple[list[Key], int]:
    from securesystemslib.signer import SSlibKey

    try:
        document = parse_object(keys_json, "orders/keys.json")
        fields = Fields(document, "orders/keys.json")
        threshold = fields.integer("threshold", 1, 32)
        keys: list[Key] = []
        for keyid, value in fields.mapping("keys").items():
            inside = Fields(cast("dict[str, object]", value), f"orders/keys.json.{keyid:.16}")
            inside.choice("keytype", ("ed25519",))
            inside.choice("scheme", ("ed25519",))
            public = inside.child("keyval").text("public", re.compile("[0-9a-f]{64}"), "64 hex digits")
            keys.append(SSlibKey(keyid, "ed25519", "ed25519", {"public": public}))
        fields.end()
    except (ConfigError, TypeError) as error:
        raise TrustError(f"the catalogue's list of order keys cannot be read ({error}); publish it again") from error
    if len({key.keyval["public"] for key in keys}) != len(keys):
        raise TrustError("orders/keys.json lists one key under two ids; publish it again with each key once")
    if len(keys) < threshold:
        raise TrustError(f"orders/keys.json wants {threshold} signatures and lists {len(keys)} keys; publish it again")
    return keys, threshold
