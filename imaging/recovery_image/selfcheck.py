"""Run by a freshly made host runtime to prove itself: every library it carries is imported and used once.

The builder runs this file's text inside the runtime; a boot test prints its timings from the initramfs. It imports
nothing of reroot but the modules named as arguments. Prints one JSON object: {"what": seconds since the start}.
"""

from __future__ import annotations

import importlib
import json
import sys
import time

_START = time.perf_counter()


def check_libraries(times: dict[str, float]) -> None:
    """Import and use each library a host depends on; anything missing raises."""
    import zstandard

    packed = zstandard.ZstdCompressor().compress(b"reroot" * 99)
    assert zstandard.ZstdDecompressor().decompress(packed) == b"reroot" * 99
    times["zstandard"] = time.perf_counter() - _START
    import blake3

    assert len(blake3.blake3(b"reroot").digest()) == 32
    times["blake3"] = time.perf_counter() - _START
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                            serialization.NoEncryption())
    again = serialization.load_pem_private_key(pem, None)
    assert isinstance(again, Ed25519PrivateKey)
    key.public_key().verify(again.sign(b"order"), b"order")
    try:
        key.public_key().verify(again.sign(b"order"), b"forged")
        raise SystemExit("a forged signature was accepted")
    except InvalidSignature:
        times["cryptography"] = time.perf_counter() - _START
    from securesystemslib.signer import CryptoSigner, SSlibKey
    from tuf.api._payload import Root
    from tuf.api.metadata import Metadata
    from tuf.ngclient.updater import Updater

    signer = CryptoSigner.generate_ed25519()
    public = SSlibKey.from_dict(signer.public_key.keyid, signer.public_key.to_dict())
    root = Root()
    root.add_key(public, "root")
    signed = Metadata(root)
    signed.sign(signer)
    root.verify_delegate("root", Metadata[Root].from_bytes(signed.to_bytes()).signed_bytes, signed.signatures)
    assert issubclass(Updater, object)
    times["tuf"] = time.perf_counter() - _START


def check_interpreter(times: dict[str, float]) -> None:
    """Use what the interpreter imports behind the scenes: names, dates, tracebacks, digests, mail, temporary files."""
    import hashlib
    import logging
    import socket
    import subprocess
    import tempfile
    import traceback
    from datetime import datetime
    from email.message import EmailMessage

    assert hashlib.sha256(b"").hexdigest().startswith("e3b0c442")
    socket.getaddrinfo("127.0.0.1", 80)
    datetime.strptime("2026-11-21T12:00:00Z", "%Y-%m-%dT%H:%M:%SZ")
    assert subprocess and logging and traceback.format_stack()
    letter = EmailMessage()
    letter["To"], letter["Subject"] = "root@example.org", "last gasp"
    letter.set_content("disk full: ümlaut\n")
    assert b"Subject" in bytes(letter)
    with tempfile.TemporaryDirectory() as scratch:
        assert scratch
    times["interpreter"] = time.perf_counter() - _START


def main(names: list[str]) -> None:
    """Check everything, then import the modules of reroot given by name."""
    times: dict[str, float] = {}
    check_libraries(times)
    check_interpreter(times)
    for name in names:
        importlib.import_module(name)
    times["reroot"] = time.perf_counter() - _START
    print(json.dumps(times))


if __name__ == "__main__":
    main(sys.argv[1:])
