"""Files that nobody listed (I/O, read-only): no rule keeps them, no package owns them as they are.

Looked for where people put things (the policy's [unlisted] look). They are archived and named in the report,
never put back unasked, so that an upgrade cannot lose what somebody forgot to list.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from precious import packages
from precious.inquiry import Inquiry
from precious.policy import Policy


def walk(root: bytes, below: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield files and symlinks under root/below on one filesystem, never through a link."""
    top = os.path.join(root, below)
    try:
        start = os.lstat(top)
    except OSError:
        return
    if not stat.S_ISDIR(start.st_mode):
        yield below, start
        return
    folders = [below]
    while folders:
        folder = folders.pop()
        with os.scandir(os.path.join(root, folder)) as names:
            for item in sorted(names, key=lambda entry: entry.name):
                info = item.stat(follow_symlinks=False)
                path = os.path.join(folder, item.name)
                if stat.S_ISDIR(info.st_mode):
                    if info.st_dev == start.st_dev:
                        folders.append(path)
                elif stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode):
                    yield path, info


def _starts(policy: Policy) -> list[bytes]:
    """Return the folders that the look globs begin with, none inside another."""
    tops = {os.fsencode(glob.split("*")[0].split("?")[0].rpartition("/")[0].lstrip("/"))
            for glob in policy.unlisted.look}
    return sorted(top for top in tops if not any(top != other and (top + b"/").startswith(other + b"/")
                                                 for other in tops))


def find(root: Path, policy: Policy, inquiry: Inquiry | None = None) -> list[tuple[bytes, int]]:
    """Return (path, size in bytes) of every unlisted file below `root`, sorted by path.

    `inquiry` answers the conditions of rules; without one none of them holds, so that more counts as unlisted.
    """
    known = inquiry.packages if inquiry is not None else packages.read(root)
    found: dict[bytes, int] = {}
    for top in _starts(policy):
        for path, info in walk(os.fsencode(root), top):
            if not policy.looks_at(path):
                continue
            if (policy.rule_for(path, unknown=False) if inquiry is None else inquiry.rule_at(path, info)) is not None:
                continue
            if path in known.conffiles:
                if stat.S_ISREG(info.st_mode) and known.as_shipped(path):
                    continue
            elif path in known.owned:
                continue
            found[path] = info.st_size  # an empty file or a link means something too: cron.deny, sites-enabled
    return sorted(found.items())
