"""What the kernel command line tells recovery. Pure: text in, a value and complaints out.

The line is untrusted: whoever answers DHCP first can write it. It says where to look, never what to do to a disk.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

_LOCAL = re.compile(r"PARTUUID=([0-9a-fA-F-]{8,36})|(LVM-[A-Za-z0-9]{64})")
_CONSOLE = re.compile(r"[A-Za-z]{2,8}[0-9]{0,3}(?:,[0-9]{1,7}[a-z0-9]{0,3})?")
_URL = re.compile(r"https?://(?:[A-Za-z0-9._-]{1,120}|\[[0-9a-fA-F:.]{2,45}\])(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/-]*)?")
LONGEST = 16384
"""More than any kernel's COMMAND_LINE_SIZE; what is beyond is not read."""


@dataclass(frozen=True)
class CommandLine:
    """The words meant for recovery; None where there was none or it was malformed."""

    local: str | None = None
    control: str | None = None
    rescue: bool = False
    consoles: tuple[str, ...] = ()
    """Values of `console=`, as the kernel took them."""
    complaints: tuple[str, ...] = ()


def parse(text: str) -> CommandLine:
    """Read /proc/cmdline. A repeated word counts the first time, so nothing appended to the line can replace one."""
    line = CommandLine()
    seen: set[str] = set()
    for word in text[:LONGEST].split():
        name, _, value = word.partition("=")
        if name == "console" and _CONSOLE.fullmatch(value) and value not in line.consoles:
            line = replace(line, consoles=(*line.consoles, value)[:8])
        if not name.startswith("reroot.") or name in seen:
            continue
        seen.add(name)
        if name == "reroot.local" and (found := _LOCAL.fullmatch(value)):
            line = replace(line, local=found[2] or found[1].lower())
        elif name == "reroot.control" and len(value) <= 200 and _URL.fullmatch(value):
            line = replace(line, control=value.rstrip("/"))
        elif word == "reroot.rescue":
            line = replace(line, rescue=True)
        else:
            line = replace(line, complaints=(*line.complaints, f"{name} on the kernel command line is not usable "
                                                               "and is ignored"))
    return line
