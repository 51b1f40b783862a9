"""What a release leaves out of the tree it was made from. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from plumbing.errors import UsageError


class What(StrEnum):
    """How much of a matching path is left out."""

    NOTHING = "nothing"
    TREE = "tree"
    """The path and everything below it."""
    FILES = "files"
    """Everything below the path except directories: daemons expect those."""
    CONTENT = "content"
    """The file's content: an empty file stays."""


@dataclass(frozen=True, slots=True)
class Exclude:
    """A shell pattern and what it leaves out.

    `*`, `?` and `[…]` do not match a slash. A pattern with a leading slash is matched against the whole path from
    the tree's top, one without against the last name alone, at any depth.
    """

    pattern: str
    what: What = What.TREE

    @classmethod
    def parse(cls, text: str) -> Exclude:
        """Read `PATTERN`, `tree:PATTERN`, `files:PATTERN` or `content:PATTERN`; raises UsageError."""
        head, colon, rest = text.partition(":")
        known = {what.value: what for what in What if what is not What.NOTHING}
        what, pattern = (known[head], rest) if colon and head in known else (What.TREE, text)
        if not pattern.strip("/") or (not pattern.startswith("/") and "/" in pattern) or "//" in pattern:
            raise UsageError(f"{text!r} is no exclude; write /path/from/the/top, /folder/* or a name without slashes")
        return cls(pattern.rstrip("/"), what)

    def __str__(self) -> str:
        return f"{self.what.value}:{self.pattern}"


DEFAULT_EXCLUDES: tuple[Exclude, ...] = (
    # A running system fills these; the mount points stay.
    Exclude("/proc/*"), Exclude("/sys/*"), Exclude("/dev/*"), Exclude("/run/*"), Exclude("/tmp/*"),  # noqa: S108
    Exclude("/var/tmp/*"),  # noqa: S108
    # These make one host that host; precious puts them back, or the first boot makes new ones.
    Exclude("/etc/machine-id", What.CONTENT),  # empty, not absent: systemd then fills it on a read-only root too
    Exclude("/var/lib/dbus/machine-id"),
    Exclude("/etc/ssh/ssh_host_*_key"), Exclude("/etc/ssh/ssh_host_*_key.pub"),
    Exclude("/var/lib/systemd/random-seed"), Exclude("/var/lib/systemd/credential.secret"),
    Exclude("/local/*"),
    # These are only weight.
    Exclude("/var/log", What.FILES),
    Exclude("/var/cache/apt/archives", What.FILES),
    Exclude("/var/cache/apt/pkgcache.bin"), Exclude("/var/cache/apt/srcpkgcache.bin"),
    Exclude("/swapfile"), Exclude("/swap.img"), Exclude("/swap/*"),
    Exclude("lost+found"),  # mkfs makes a new one
)


def _regex(pattern: str) -> str:
    """Translate a shell pattern into a regular expression in which wildcards stop at a slash."""
    out, position = [], 0
    while position < len(pattern):
        letter = pattern[position]
        position += 1
        if letter == "*":
            out.append("[^/]*")
        elif letter == "?":
            out.append("[^/]")
        elif letter == "[" and (close := pattern.find("]", position + 1)) > 0:
            inside = pattern[position:close].replace("\\", "\\\\").replace("[", "\\[")
            out.append(f"(?!/)[{'^' + inside[1:] if inside[0] in '!^' else inside}]")
            position = close + 1
        else:
            out.append(re.escape(letter))
    return "".join(out)


def matcher(excludes: Sequence[Exclude]) -> Callable[[bytes], What]:
    """Return a function that says what to leave out of a path (relative to the top, no leading `./`).

    It is asked about a directory before anything below it, so TREE need not match what lies deeper.
    """
    parts: dict[What, list[str]] = {What.TREE: [], What.FILES: [], What.CONTENT: []}
    for exclude in excludes:
        body = _regex(exclude.pattern.strip("/"))
        anchored = body if exclude.pattern.startswith("/") else f"(?:.*/)?{body}"
        parts[exclude.what].append(f"{anchored}/.*" if exclude.what is What.FILES else anchored)
    try:
        compiled = [(what, re.compile("|".join(bodies).encode("utf-8", "surrogateescape"), re.DOTALL))
                    for what, bodies in parts.items() if bodies]
    except re.error as error:
        raise UsageError(f"an exclude pattern cannot be understood ({error}); check its brackets") from error

    def match(path: bytes) -> What:
        return next((what for what, regex in compiled if regex.fullmatch(path)), What.NOTHING)

    return match
