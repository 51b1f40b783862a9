"""SHA-256 digests as OCI and the orders write them: `sha256:` and 64 hex digits in lower case. Pure."""

from __future__ import annotations

import hashlib
import re

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def sha256(data: bytes) -> str:
    """Return the digest of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def hex_of(digest: str) -> str | None:
    """Return the 64 digits of `digest`, None when it is not one."""
    return digest.partition(":")[2] if DIGEST.fullmatch(digest) else None
