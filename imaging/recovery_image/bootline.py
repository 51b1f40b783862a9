"""What a kernel is told at its start: words that no boot program or script reads as anything else. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from plumbing.errors import UsageError

_WORD = re.compile(r"[A-Za-z0-9._:/=,@%+\-\[\]]+")
LONGEST = 1024
"""Characters of a whole line: well below every kernel's COMMAND_LINE_SIZE (2048 on x86)."""


def word(text: str) -> str:
    """Return `text` when it can stand in a boot script as it is; raises UsageError otherwise."""
    if not _WORD.fullmatch(text):
        raise UsageError(f"{text[:60]!r} cannot stand in a boot script; use letters, digits and ._:/=,@%+-")
    return text


def line(words: Iterable[str]) -> str:
    """Return the words as one kernel command line; raises UsageError."""
    made = " ".join(word(one) for one in words)
    if len(made) > LONGEST:
        raise UsageError(f"a kernel command line of {len(made)} characters is too long; {LONGEST} are the most")
    return made
