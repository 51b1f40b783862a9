"""SSH host keys for a system that was installed (I/O): a release carries none, or all hosts would have the same.

Written as ssh-keygen would; nothing of the new root is run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

FOLDER = "etc/ssh"

Write = Callable[[str, bytes, int], None]
"""(path below the root, content, mode): replaces a file of the new root durably."""


def wanted(root: Path) -> bool:
    """Whether the root has an SSH server and no host key."""
    folder = root / FOLDER
    return (folder / "sshd_config").is_file() and not any(folder.glob("ssh_host_*_key"))


def make(host: str, write: Write) -> tuple[str, ...]:
    """Make an Ed25519 and an ECDSA key; returns their fingerprints, to be compared at the first login.

    The private key is written last: where it is, its public half is too.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    told = []
    for name, key in (("ed25519", Ed25519PrivateKey.generate()), ("ecdsa", ec.generate_private_key(ec.SECP256R1()))):
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH,
                                    serialization.NoEncryption())
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        write(f"{FOLDER}/ssh_host_{name}_key.pub", public + f" root@{host}\n".encode(), 0o644)
        write(f"{FOLDER}/ssh_host_{name}_key", private, 0o600)
        told.append(f"{name} {_fingerprint(public)}")
    return tuple(told)


def _fingerprint(public: bytes) -> str:
    import base64
    import hashlib

    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
