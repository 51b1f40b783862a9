"""The order: each rule broken once, signatures, time and machine; no clock, no network."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from imaging.keys import order_keys, signer
from plumbing import clock
from plumbing.errors import ConfigError, TrustError
from recovery.order import Order
from recovery.signed_order import PAYLOAD_TYPE, check_machine, sign, verify

MAC = "52:54:00:12:34:56"
NOW = clock.from_iso("2026-11-21T12:00:00Z")
GUIDS = [f"0000000{n}-1111-2222-3333-444444444444" for n in range(3)]
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
KEYS = order_keys([signer(KEY).public_key])


def payload(**changes: object) -> dict[str, Any]:
    value: dict[str, Any] = {
        "spec": 1, "id": "6f1d5f0e-5b0b-4d53-9f0b-8f1d6a2c7e11", "host": "alpha.example", "mode": "upgrade",
        "machine": {"macs": [MAC], "serial": None},
        "release": {"target": "releases/debian/13.1/amd64.json", "digest": "sha256:" + "a" * 64},
        "recovery": {"target": "recovery/reroot/1/amd64.json", "digest": "sha256:" + "b" * 64},
        "disks": {
            "root": {"partuuid": GUIDS[0], "disk_serial": "alpha-0", "fstype": "ext4"},
            "local": {"partuuid": GUIDS[1], "disk_serial": "alpha-0", "fstype": "ext4"},
            "boot": {"partuuid": GUIDS[2], "disk_serial": "alpha-0", "fstype": "vfat"},
        },
        "layout": None, "precious": {"keep": ["/etc/ssh"]}, "services": ["root-dump"],
        "control": "http://10.77.1.1:8080", "content": ["http://10.77.1.1:8080"],
        "mail": {"from": "reroot@example.org", "to": ["ops@example.org"],
                 "gateways": [{"host": "mail.example.org", "port": 25}]},
        "attempts": 3, "level": "debian13-1", "issued": "2026-11-21T11:00:00Z", "expires": "2026-11-22T11:00:00Z",
        "nonce": "n" * 22,
    }
    return value | changes


def install(**changes: object) -> dict[str, Any]:
    layout = {"disk": {"serial": "alpha-0"}, "firmware": "bios", "group": "vg0", "partitions": [
        {"name": "bios", "size": "1MiB", "fs": None}, {"name": "esp", "size": "128MiB", "fs": "vfat"},
        {"name": "root", "size": "2GiB", "fs": "ext4"}, {"name": "local", "size": "rest", "fs": "ext4"}]}
    return payload(mode="install", disks=None, layout=layout, **changes)


def read(value: dict[str, Any]) -> Order:
    return Order.from_json(json.dumps(value))


def envelope_of(data: bytes, *keys: Ed25519PrivateKey, kind: str = PAYLOAD_TYPE) -> bytes:
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner

    envelope = Envelope(data, kind, {})
    for key in keys:
        envelope.sign(CryptoSigner(key))
    return json.dumps(envelope.to_dict()).encode()


@pytest.mark.parametrize("value", [
    payload(), install(), payload(mode="rescue", disks=None, release=None, recovery=None, content=[], mail=None,
                                  level=None),
    payload(machine={"macs": [], "serial": "board 7"}), payload(control="https://[fd00::1]:8443/x/"),
], ids=["upgrade", "install", "rescue", "serial", "ipv6"])
def test_what_is_written_reads_back_equal(value: dict[str, Any]) -> None:
    order = read(value)
    assert Order.from_json(order.to_json()) == order
    assert json.loads(order.to_json()) == value


def test_sizes_are_bytes() -> None:
    layout = read(install()).layout
    assert layout is not None
    assert [part.size_bytes for part in layout.partitions] == [1 << 20, 128 << 20, 2 << 30, None]


def change(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def apply(document: dict[str, Any]) -> None:
        *way, last = path.split(".")
        for word in way:
            document = document[int(word)] if isinstance(document, list) else document[word]
        document[int(last) if isinstance(document, list) else last] = value
    apply.__name__ = f"{path}={value!r}"[:60]
    return apply


BROKEN = [
    change("spec", 2), change("spec", True), change("id", "ABC"), change("host", "Alpha"), change("host", "a" * 64),
    change("host", "alpha\nset root=x"), change("host", "alpha."), change("host", "-a"), change("mode", "wipe"),
    change("mode", ["upgrade"]), change("machine", {"macs": [], "serial": None}), change("machine.macs", [MAC, MAC]),
    change("machine.macs.0", MAC.replace(":", "-")), change("machine.extra", 1), change("machine.serial", "a\nb"),
    change("release", None), change("release.target", "recovery/debian/13/amd64.json"),
    change("release.target", "releases/../13/amd64.json"), change("release.digest", "sha256:" + "A" * 64),
    change("recovery", None), change("disks", None), change("disks.root.partuuid", "1234-01"),
    change("disks.boot.partuuid", GUIDS[0]), change("disks.root.disk_serial", 7), change("disks.local.fstype", "EXT4!"),
    change("precious", []), change("services", ["a b"]), change("control", "ftp://x"), change("content", []),
    change("control", "http://u:p@x"), change("control", "http://x/?q"), change("control", "http://x/ init=/bin/sh"),
    change("control", "http://x\n"), change("content.0", "http://$(reboot)"), change("mail.to", []),
    change("mail.from", "a@b\r\nRCPT TO:<c>"), change("mail.gateways.0.port", 0), change("mail.gateways.0.port", 25.0),
    change("attempts", 0), change("attempts", 21), change("attempts", "3"), change("level", "a/b"),
    change("issued", "2026-13-01T00:00:00Z"), change("expires", "2026-11-21T11:00:00Z"), change("expires", 5),
    change("nonce", "short"), change("surprise", 1), change("layout", install()["layout"]),
]


@pytest.mark.parametrize("spoil", BROKEN, ids=lambda spoil: spoil.__name__)
def test_a_broken_field_is_named(spoil: Callable[[dict[str, Any]], None]) -> None:
    value = copy.deepcopy(payload())
    spoil(value)
    with pytest.raises(ConfigError) as caught:
        read(value)
    assert spoil.__name__.split("=")[0].split(".")[0] in caught.value.sentence
    assert "\n" not in caught.value.sentence


@pytest.mark.parametrize("spoil", [
    change("layout.partitions.2.name", "local"), change("layout.partitions.1.fs", "ext4"),
    change("layout.partitions.0.fs", "ext4"), change("layout.partitions.2.size", "rest"),
    change("layout.partitions.2.size", "0MiB"), change("layout.partitions.2.size", "2GB"),
    change("layout.partitions.0", {"name": "esp", "size": "1MiB", "fs": "vfat"}), change("layout.firmware", "efi"),
    change("layout.group", "a-b"),
    change("layout.disk.serial", None), change("layout.disk.device", "/dev/vda"), change("layout.partitions", []),
], ids=lambda spoil: spoil.__name__)
def test_a_broken_layout_is_refused(spoil: Callable[[dict[str, Any]], None]) -> None:
    value = copy.deepcopy(install())
    spoil(value)
    with pytest.raises(ConfigError, match=r"order\.layout"):
        read(value)


def test_every_key_is_needed() -> None:
    for key in payload():
        value = payload()
        del value[key]
        with pytest.raises(ConfigError, match=f"order.{key} is missing"):
            read(value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a":NaN}', '{"spec":1,"spec":1}', "[" * 100_000])
def test_what_is_not_an_object_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Order.from_json(text)


@given(st.binary(max_size=200))
def test_noise_is_an_error_of_ours(noise: bytes) -> None:
    with pytest.raises(ConfigError):
        Order.from_json(noise)
    with pytest.raises(TrustError):
        verify(noise, KEYS, host_macs=[MAC], now=NOW)


def test_a_good_order_is_accepted() -> None:
    order = read(payload())
    assert verify(sign(order, KEY), KEYS, host_macs=["00:00:00:00:00:01", MAC.upper()], now=NOW) == order


@pytest.mark.parametrize("keys", [(), (OTHER,)], ids=["unsigned", "another key"])
def test_a_wrong_signature_is_refused(keys: tuple[Ed25519PrivateKey, ...]) -> None:
    with pytest.raises(TrustError, match="not signed by 1 of the 1"):
        verify(sign(read(payload()), *keys), KEYS, host_macs=[MAC], now=NOW)


def test_a_changed_payload_is_refused() -> None:
    envelope = json.loads(sign(read(payload()), KEY))
    envelope["payload"] = base64.b64encode(read(payload(host="beta")).to_json()).decode()
    with pytest.raises(TrustError, match="not signed"):
        verify(json.dumps(envelope).encode(), KEYS, host_macs=[MAC], now=NOW)


def test_the_signature_comes_before_the_content() -> None:
    with pytest.raises(TrustError, match="not signed"):
        verify(envelope_of(b"not even JSON", OTHER), KEYS, host_macs=[MAC], now=NOW)
    with pytest.raises(ConfigError):
        verify(envelope_of(b"not even JSON", KEY), KEYS, host_macs=[MAC], now=NOW)


def test_a_signed_document_of_another_kind_is_refused() -> None:
    data = envelope_of(read(payload()).to_json(), KEY, kind="application/vnd.reroot.ticket+json")
    with pytest.raises(TrustError, match="is no order"):
        verify(data, KEYS, host_macs=[MAC], now=NOW)


def test_the_threshold_counts_different_keys() -> None:
    both = order_keys([signer(KEY).public_key, signer(OTHER).public_key], threshold=2)
    order = read(payload())
    assert verify(sign(order, KEY, OTHER), both, host_macs=[MAC], now=NOW) == order
    with pytest.raises(TrustError, match="2 of the 2"):
        verify(sign(order, KEY), both, host_macs=[MAC], now=NOW)
    twice = json.loads(sign(order, KEY))
    twice["signatures"] *= 2
    with pytest.raises(TrustError):
        verify(json.dumps(twice).encode(), both, host_macs=[MAC], now=NOW)


def test_one_key_under_two_ids_is_refused() -> None:
    document = json.loads(KEYS) | {"threshold": 2}
    document["keys"]["f" * 64] = next(iter(document["keys"].values()))
    with pytest.raises(TrustError, match="one key under two ids"):
        verify(sign(read(payload()), KEY), json.dumps(document).encode(), host_macs=[MAC], now=NOW)


@pytest.mark.parametrize("keys", [b"", b"{}", b'{"threshold":0,"keys":{}}', b'{"threshold":1,"keys":{}}',
                                  b'{"threshold":1,"keys":{"a":7}}', b'{"threshold":1,"keys":{"a":{"keytype":"rsa"}}}'])
def test_a_broken_key_list_is_refused(keys: bytes) -> None:
    with pytest.raises(TrustError):
        verify(sign(read(payload()), KEY), keys, host_macs=[MAC], now=NOW)


def test_a_huge_envelope_is_refused() -> None:
    with pytest.raises(TrustError, match="more than"):
        verify(b" " * 300_000, KEYS, host_macs=[MAC], now=NOW)


@pytest.mark.parametrize(("now", "word"), [
    ("2026-11-22T11:00:00Z", "expired"), ("2030-01-01T00:00:00Z", "expired"), ("2026-11-21T10:54:59Z", "set the clock"),
    ("1970-01-01T00:00:01Z", "set the clock"),
])
def test_time_fails_closed(now: str, word: str) -> None:
    with pytest.raises(TrustError, match=word):
        verify(sign(read(payload()), KEY), KEYS, host_macs=[MAC], now=clock.from_iso(now))


def test_another_machine_is_refused() -> None:
    data = sign(read(payload()), KEY)
    with pytest.raises(TrustError, match="this machine has 00:00:00:00:00:01"):
        verify(data, KEYS, host_macs=["00:00:00:00:00:01"], now=NOW)
    with pytest.raises(TrustError, match="no network card"):
        verify(data, KEYS, host_macs=[], now=NOW)


def test_a_serial_that_is_named_must_hold() -> None:
    order = read(payload(machine={"macs": [MAC], "serial": "board-7"}))
    check_machine(order, [MAC], "board-7")
    for serial in (None, "board-8"):
        with pytest.raises(TrustError, match="with serial board-7"):
            check_machine(order, [MAC], serial)
