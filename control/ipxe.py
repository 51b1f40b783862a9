"""iPXE scripts (pure): validated words in, a script out; nothing a host says can add a line or expand.

Protocol: docs/protocols/boot.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from imaging.recovery_image.bootline import line as boot_line
from imaging.recovery_image.bootline import word


def recovery_script(kernel_url: str, initrd_url: str, arguments: Sequence[str]) -> str:
    """Return the script that boots the recovery image with these kernel command line words.

    `initrd=` names the initramfs for the EFI stub; BIOS kernels ignore it.
    """
    line = boot_line(arguments)
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
