"""What a release leaves out of the tree it was made from. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from plumbing.errors import UsageError
from plumbing.spelling import hint


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
    the tree's top, one without against the last name alone, at any depth. `reason` says why, for a person.
    """

    pattern: str
    what: What = What.TREE
    reason: str = field(default="", compare=False)

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


_RUNNING = "a running system fills it; the mount point stays"
_LOG, _PACKAGES = "only weight: logs", "only weight: packages are downloaded again, lists are made again"
_HOST_KEY = "who this host is: precious puts the keys back, or the first boot makes new ones"
_SWAP = "only weight: swap is made anew"

DEFAULT_EXCLUDES: tuple[Exclude, ...] = (
    *(Exclude(f"/{folder}/*", reason=_RUNNING) for folder in ("proc", "sys", "dev", "run", "tmp", "var/tmp")),
    Exclude("/etc/machine-id", What.CONTENT,
            "who this host is; empty, not absent: systemd then fills it on a read-only root too"),
    Exclude("/var/lib/dbus/machine-id", reason="who this host is; dbus makes it anew from /etc/machine-id"),
    Exclude("/etc/ssh/ssh_host_*_key", reason=_HOST_KEY), Exclude("/etc/ssh/ssh_host_*_key.pub", reason=_HOST_KEY),
    Exclude("/var/lib/systemd/random-seed", reason="a secret of this host; shared it is worse than none"),
    Exclude("/var/lib/systemd/credential.secret", reason="a secret of this host; systemd makes a new one"),
    Exclude("/local/*", reason="what stays on a host when its root is replaced; never part of a root"),
    Exclude("/var/log", What.FILES, _LOG),
    Exclude("/var/cache/apt/archives", What.FILES, _PACKAGES),
    Exclude("/var/cache/apt/pkgcache.bin", reason=_PACKAGES),
    Exclude("/var/cache/apt/srcpkgcache.bin", reason=_PACKAGES),
    Exclude("/swapfile", reason=_SWAP), Exclude("/swap.img", reason=_SWAP), Exclude("/swap/*", reason=_SWAP),
    Exclude("lost+found", reason="part of one filesystem; mkfs makes a new one"),
)


def effective(
    more: Sequence[Exclude] = (), keep: Sequence[str] = (), *, defaults: bool = True,
) -> tuple[Exclude, ...]:
    """Return what is left out: the defaults without those in `keep`, then `more`.

    `keep` names defaults by their pattern, with or without its `content:` or `files:`. Raises UsageError for one that
    is no default, as it would not do what was meant.
    """
    if keep and not defaults:
        raise UsageError("there are no defaults to keep something of; leave out one of the two options")
    words = {word: exclude for exclude in DEFAULT_EXCLUDES for word in (exclude.pattern, str(exclude))}
    for pattern in keep:
        if pattern not in words:
            patterns = [exclude.pattern for exclude in DEFAULT_EXCLUDES]
            near = hint(pattern, patterns, "`reroot image excludes` lists them")
            raise UsageError(f"{pattern!r} is no default exclude; {near}")
    kept = {words[pattern] for pattern in keep}
    return (*(exclude for exclude in DEFAULT_EXCLUDES if defaults and exclude not in kept), *more)


def parse_file(text: str, name: str) -> tuple[Exclude, ...]:
    """Read a file of excludes: one a line as `Exclude.parse` takes them, empty lines and `#` lines left out.

    Comments right above a line are its reason. Raises UsageError that names the line of the file `name`.
    """
    found, said = [], list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            said.clear()
        elif line.startswith("#"):
            said.append(line.lstrip("#").strip())
        else:
            try:
                found.append(replace(Exclude.parse(line.strip()), reason=" ".join(said) or f"{name}, line {number}"))
            except UsageError as error:
                raise UsageError(f"{name}, line {number}: {error.sentence}") from error
            said.clear()
    return tuple(found)


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
