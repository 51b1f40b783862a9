"""Files and links of a new root that mergers have a say in (I/O): as the image brought them, and merged ones there.

Merging reads what it then replaces. So that a merge that a power cut interrupted finds the same again, and tells the
same, what the image brought is written beside the archive first.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from imaging.entry import Entry, parent, printable
from imaging.folders import Folders
from plumbing import durable
from plumbing.errors import CorruptError
from precious.mergers.sides import Link, Node, packed, unpacked

RECORD = "merged.json"
"""Beside the archive: {"image": {path: node or null}, "merged": {path: [digest, …]}}.

A node is ["file"|"link", base64], a digest the BLAKE3 of what took its place, "" for nothing; there are several when a
corrected policy made another.
"""

_SECRET = frozenset({b"etc/shadow", b"etc/gshadow"})

Replaced = Mapping[bytes, Node | None]
"""Path -> what takes the place of the image's; None for nothing."""


def of_image(new_root: Path, archive_folder: Path, paths: Iterable[bytes]) -> dict[bytes, Node]:
    """Return the files and links that the image brought at some of `paths`; what it lacks, or is a folder, is left out.

    What is just what an earlier merge with this archive left counts as what was there before it.
    """
    image, merged = _record(archive_folder)
    found = {}
    with Folders(new_root) as folders:
        for path in paths:
            node = _read(folders, path)
            if path in image and _digest(node) in merged.get(path, ()):
                node = image[path]
            if node is not None:
                found[path] = node
    return found


def _read(folders: Folders, path: bytes) -> Node | None:
    name = path.rpartition(b"/")[2]
    try:
        folder = folders.enter(parent(path))
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISLNK(info.st_mode):
            return Link(os.readlink(name, dir_fd=folder))
        if not stat.S_ISREG(info.st_mode):
            return None
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:  # the way leads through a link, which nothing here follows
            return None
        raise
    with os.fdopen(handle, "rb") as stream:
        return stream.read()


def _digest(node: Node | None) -> str:
    if node is None:
        return ""
    return blake3(b"link:" + node.text if isinstance(node, Link) else b"file:" + node).hexdigest()


def _record(folder: Path) -> tuple[dict[bytes, Node | None], dict[bytes, list[str]]]:
    try:
        record = json.loads((folder / RECORD).read_bytes())
        return ({os.fsencode(path): None if node is None else unpacked(node) for path, node in record["image"].items()},
                {os.fsencode(path): list(map(str, digests)) for path, digests in record["merged"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return {}, {}  # none yet; it is whole or not there


def replace(new_root: Path, nodes: Replaced, archive_folder: Path, owners: Mapping[bytes, Entry]) -> None:
    """Put merged files and links into the new root; each keeps the owner and mode that the image gave it.

    What the image lacks gets those of `owners`, folders too: entries of the host as they ought to be here.
    """
    image, merged = _record(archive_folder)
    wanted = {**of_image(new_root, archive_folder, image), **nodes}  # what only an earlier merge made is taken back
    before = of_image(new_root, archive_folder, wanted)
    with Folders(new_root) as folders:
        changed = {path: node for path, node in wanted.items() if _read(folders, path) != node}
    told = {path: [*merged.get(path, []), *([_digest(node)] if node != before.get(path) else [])]
            for path, node in wanted.items()}
    told = {path: digests for path, digests in told.items() if digests}
    if not changed:
        return
    record = {"image": {os.fsdecode(path): packed(before[path]) if path in before else None for path in told},
              "merged": {os.fsdecode(path): sorted({*digests}) for path, digests in told.items()}}
    durable.write_file(archive_folder / RECORD, json.dumps(record).encode(), 0o600)
    with Folders(new_root) as folders:
        for path, node in changed.items():
            try:
                folder = _enter(folders, parent(path), owners)
            except OSError as error:
                raise CorruptError(f"a folder on the way to /{printable(path)} is something else in the new root; what "
                                   "was merged cannot be put there: correct the release") from error
            _write(folder, path, node, owners.get(path))


def _enter(folders: Folders, path: bytes, owners: Mapping[bytes, Entry]) -> int:
    """Return a descriptor of a folder, made with its parents as the host had them where the image lacks it."""
    try:
        return folders.enter(path)
    except FileNotFoundError:
        os.mkdir(path.rpartition(b"/")[2], 0o700, dir_fd=_enter(folders, parent(path), owners))
        found, owner = folders.enter(path), owners.get(path)
        os.fchown(found, *((owner.uid, owner.gid) if owner else (0, 0)))
        os.fchmod(found, owner.mode if owner else 0o755)
        return found


def _write(folder: int, path: bytes, node: Node | None, owner: Entry | None) -> None:
    name = path.rpartition(b"/")[2]
    fresh = b".reroot-merged"
    try:
        there = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        there = None
    with suppress(FileNotFoundError):
        os.unlink(fresh, dir_fd=folder)
    if node is None:
        if there is not None:
            os.unlink(name, dir_fd=folder)
        return
    ids = (there.st_uid, there.st_gid) if there else (owner.uid, owner.gid) if owner else (0, 0)
    if isinstance(node, Link):
        os.symlink(node.text, fresh, dir_fd=folder)
        os.chown(fresh, *ids, dir_fd=folder, follow_symlinks=False)
        os.rename(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)
        return
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    with os.fdopen(handle, "wb") as stream:
        stream.write(node)
        os.fchown(handle, *ids)
        regular = there is not None and stat.S_ISREG(there.st_mode)
        mode = 0o600 if path in _SECRET else owner.mode if owner is not None and owner.is_file else 0o644
        os.fchmod(handle, stat.S_IMODE(there.st_mode) if there and regular else mode)
    os.rename(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)
