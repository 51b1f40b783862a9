"""The account files of a new root (I/O): as the image brought them, and as merged ones in their place.

Merging reads what it then replaces. So that a merge that a power cut interrupted finds the same again, and tells the
same, what the image brought is written beside the archive first.
"""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from imaging.folders import Folders
from plumbing import durable
from plumbing.errors import CorruptError
from precious import accounts

RECORD = "accounts.json"
"""Beside the archive: {"image": {name: base64 or null}, "merged": {name: BLAKE3 of what took its place}}."""


def of_image(new_root: Path, archive_folder: Path) -> dict[str, bytes]:
    """Return name -> content of the account files that the image brought; one that it lacks is left out.

    A file that is just what an earlier merge with this archive wrote counts as the one that was there before it.
    """
    image, merged = _record(archive_folder)
    found: dict[str, bytes | None] = {
        name: path.read_bytes() for name in accounts.FILES
        if (path := new_root / "etc" / name).is_file() and not path.is_symlink()}
    for name, data in found.items():
        if data is not None and name in image and blake3(data).hexdigest() == merged.get(name):
            found[name] = image[name]
    return {name: data for name, data in found.items() if data is not None}


def _record(folder: Path) -> tuple[dict[str, bytes | None], dict[str, str]]:
    try:
        record = json.loads((folder / RECORD).read_bytes())
        image = {str(name): None if data is None else base64.b64decode(data) for name, data in record["image"].items()}
        return image, dict(record["merged"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, {}  # none yet; it is whole or not there


def replace(new_root: Path, files: Mapping[str, bytes], archive_folder: Path) -> None:
    """Put merged account files into the new root; each keeps the owner and mode that the image gave it."""
    if not files:
        return
    before = of_image(new_root, archive_folder)
    record = {"image": {name: base64.b64encode(before[name]).decode() if name in before else None for name in files},
              "merged": {name: blake3(data).hexdigest() for name, data in files.items()}}
    durable.write_file(archive_folder / RECORD, json.dumps(record).encode(), 0o600)
    with Folders(new_root) as folders:
        try:
            folder = folders.enter(b"etc")
        except OSError as error:
            raise CorruptError(f"{new_root}/etc is no folder, so the accounts cannot be put there; correct the "
                               "release") from error
        for name, data in files.items():
            _write(folder, name, data)


def _write(folder: int, name: str, data: bytes) -> None:
    secret, fresh = name in {"shadow", "gshadow"}, f".{name}.reroot"
    try:
        owner = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        owner = None
    with suppress(FileNotFoundError):
        os.unlink(fresh, dir_fd=folder)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
        os.fchown(handle, owner.st_uid if owner else 0, owner.st_gid if owner else 0)
        regular = owner is not None and stat.S_ISREG(owner.st_mode)
        os.fchmod(handle, stat.S_IMODE(owner.st_mode) if owner and regular else 0o600 if secret else 0o644)
    os.rename(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)
