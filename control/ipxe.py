"""iPXE scripts (pure): validated words in, a script out; nothing a host says can add a line or expand.

Protocol: docs/protocols/boot.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from plumbing.errors import UsageError

_WORD = re.compile(r"[A-Za-z0-9._:/=,@%+\-\[\]]+")


def word(text: str) -> str:
    """Return `text` when it can stand in a script as it is; raises UsageError otherwise."""
    if not _WORD.fullmatch(text):
        raise UsageError(f"{text[:60]!r} cannot stand in a boot script; use letters, digits and ._:/=,@%+-")
    return text


def recovery_script(kernel_url: str, initrd_url: str, arguments: Sequence[str]) -> str:
    """Return the script that boots the recovery image with these kernel command line words.

    `initrd=` names the initramfs for the EFI stub; BIOS kernels ignore it.
    """
    line = " ".join(word(argument) for argument in arguments)
    return "\n".join([
        "#!ipxe",
        "echo reroot: fetching the recovery image",
        f"kernel {word(kernel_url)} initrd=initrd.img {line} || goto failed",
        f"initrd --name initrd.img {word(initrd_url)} || goto failed",
        "boot || goto failed",
        ":failed",
        "echo reroot: the recovery image did not load; trying again in 10 s",
        "sleep 10",
        "reboot",
        "",
    ])


def local_disk_script() -> str:
    """Return the script that leaves to the next boot device: nothing to do here.

    UEFI goes on to its next boot option only when iPXE ends with an error, so it ends with one; a BIOS does not care.
    """
    return "#!ipxe\necho reroot: nothing to do; booting this machine's own disk\nexit 1\n"
