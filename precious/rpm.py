"""What rpm says of the files of a living host (I/O: runs rpm). A root that dpkg keeps, or one without rpm, is dpkg's.

The database has had three formats, so the host's own rpm is asked; recovery, which must not run what a disk brought,
never asks it. What rpm does not answer is not known, which keeps more and asks more, never less.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from plumbing.errors import CommandError
from plumbing.run import Argument, run
from precious import packages
from precious.packages import Packages

TIMEOUT_S = 300.0
DATABASES = ("usr/lib/sysimage/rpm", "var/lib/rpm")
_CONFIG, _GHOST = 1, 1 << 6
"""RPMFILE_CONFIG and RPMFILE_GHOST of rpmfiles.h: a file that administrators edit, one that is not in the package."""
_QUERY = r"[%{=NAME}\t%{=INSTALLTIME}\t%{FILEFLAGS}\t%{FILEDIGESTS}\t%{FILENAMES}\n]"


def read(root: Path) -> Packages:
    """Return what dpkg knows below `root`, or rpm where dpkg knows nothing."""
    known = packages.read(root)
    database = next((place for place in DATABASES if (root / place).is_dir()), None)
    if known.known or database is None or shutil.which("rpm") is None:
        return known
    where: list[Argument] = ["--dbpath", f"/{database}", *(() if root == Path("/") else ("--root", root))]
    try:
        told = run(["rpm", *where, "--query", "--all", "--queryformat", _QUERY], timeout_s=TIMEOUT_S,
                   env={**os.environ, "LC_ALL": "C"})
    except CommandError:
        return known
    return parse(root, told.stdout)


def parse(root: Path, text: bytes) -> Packages:
    """Return what an answer of rpm says; a line that is none, for its path holds a newline or a tab, is passed over."""
    owned: dict[bytes, str] = {}
    conffiles, digests, unpacked = dict[bytes, bytes](), dict[bytes, bytes](), dict[str, int]()
    for line in text.splitlines():
        words = line.split(b"\t")
        if len(words) != 5 or not words[1].isdigit() or not words[2].isdigit() or not words[4].startswith(b"/"):
            continue
        name, path = words[0].decode("utf-8", "replace"), words[4].lstrip(b"/")
        owned[path] = name
        unpacked[name] = max(int(words[1]) * 10**9, unpacked.get(name, 0))
        flags = int(words[2])
        if len(words[3]) in packages.ALGORITHMS and not flags & _GHOST:
            (conffiles if flags & _CONFIG else digests)[path] = words[3]
    return Packages(root, owned, conffiles, digests, unpacked)
