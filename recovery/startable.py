"""Whether a release holds something that the boot menu can start. Pure: asked of its index, before anything is wiped.

What is looked for is what `recovery.bootloader.find_system` looks for on the root that was restored.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping

from imaging.entry import Entry, EntryType
from plumbing.errors import RefusedError
from recovery.bootloader import SAFE_WORD

MOST_LINKS = 40
"""Links that are followed on the way to one file, as Linux does."""


def require_startable(entries: Iterable[Entry], ref: str, *, volumes: bool = False) -> None:
    """Raise RefusedError when neither a kernel nor a grub.cfg is where the boot menu can find it.

    With `volumes` the root lies on a logical volume, which the release's initramfs finds by its own lvm.
    """
    tree = {entry.path: entry for entry in entries}
    kernels = (path for path in tree if path.startswith(b"boot/vmlinuz-") and path.count(b"/") == 1)
    named = any(SAFE_WORD.fullmatch(name) and "rescue" not in name and is_file(tree, path)
                for path in kernels for name in [path[5:].decode("utf-8", "replace")])
    if not (named or is_file(tree, b"vmlinuz") or is_file(tree, b"boot/grub/grub.cfg")):
        raise RefusedError(f"release {ref} has no kernel: neither /vmlinuz nor /boot/vmlinuz-*, and no grub.cfg of its "
                           "own; nothing was touched: put a kernel package into the release")
    if volumes and not any(is_file(tree, path) for path in (b"usr/sbin/lvm", b"sbin/lvm", b"usr/bin/lvm")):
        raise RefusedError(f"release {ref} has no lvm, and the root of this host lies on a logical volume; nothing was "
                           "touched: put the package lvm2 into the release")


def is_file(tree: Mapping[bytes, Entry], path: bytes) -> bool:
    """Whether `path` (relative to the top) comes to a file of the tree, links followed inside it."""
    done, todo, links = b"", path.split(b"/"), 0
    while todo:
        here = posixpath.normpath(posixpath.join(done, todo.pop(0))).lstrip(b"/")
        if here in {b".", b"..", b""}:  # above the top there is only the top
            done = b""
            continue
        entry = tree.get(here)
        if entry is None:
            return False
        if entry.type is not EntryType.SYMLINK:
            done = here
            continue
        links += 1
        if links > MOST_LINKS:
            return False
        done = b"" if entry.link.startswith(b"/") else posixpath.dirname(here)
        todo = [*entry.link.split(b"/"), *todo]
    found = tree.get(done)
    return found is not None and found.type in {EntryType.FILE, EntryType.LINK}
