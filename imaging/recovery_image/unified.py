"""The recovery image as one EFI program, a unified kernel image: kernel, initramfs and command line behind a stub.

I/O: runs objcopy. The stub is systemd-boot's; the format is the UAPI group's "Unified Kernel Image" specification.
Firmware starts the program from an ESP or fetches it by UEFI HTTP boot (docs/protocols/boot.md).
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from imaging.recovery_image import bootline
from imaging.recovery_image.iso import require
from plumbing.errors import CorruptError, NotFoundError
from plumbing.run import Argument, run

STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
PAGE = 4096


def make(vmlinuz: bytes, initrd: bytes, words: Sequence[str], name: str, stub: Path = STUB) -> bytes:
    """Return the program; `name` is the image's NAME/VERSION/ARCH, for people and boot menus.

    Raises NotFoundError naming the Debian package when the stub or objcopy is not installed.
    """
    if not stub.is_file():
        raise NotFoundError(f"{stub} is not on this machine, and a unified kernel image needs it; "
                            "apt-get install systemd-boot-efi")
    require("objcopy", "binutils")
    release = f'ID=reroot\nNAME="reroot recovery"\nPRETTY_NAME="reroot recovery {name}"\nVERSION_ID="{name}"\n'
    # the kernel comes last: started in place, it takes room behind itself
    sections = {".osrel": release.encode(), ".cmdline": bootline.line(words).encode(),
                ".initrd": initrd, ".linux": vmlinuz}
    with tempfile.TemporaryDirectory(prefix="reroot-uki-") as made:
        scratch = Path(made)
        argv: list[Argument] = ["objcopy"]
        for title, at in addresses(end_of_image(stub.read_bytes()), sections).items():
            (scratch / title).write_bytes(sections[title])
            argv += ["--add-section", f"{title}={scratch / title}", "--change-section-vma", f"{title}={at:#x}"]
        run([*argv, stub, scratch / "out.efi"], timeout_s=120)
        return _undated((scratch / "out.efi").read_bytes())


def _undated(program: bytes) -> bytes:
    """Return the program without its time and the checksum over it, so that builds can be compared.

    UEFI looks at neither; a checksum of 0 is how linkers write none.
    """
    (header,) = struct.unpack_from("<I", program, 0x3C)
    made = bytearray(program)
    made[header + 8:header + 12] = made[header + 88:header + 92] = bytes(4)
    return bytes(made)


def end_of_image(program: bytes) -> int:
    """Return SizeOfImage of a PE32+ program relative to its base plus that base: where more sections may lie."""
    try:
        (header,) = struct.unpack_from("<I", program, 0x3C)
        optional = header + 24
        (magic,) = struct.unpack_from("<H", program, optional)
        (base,) = struct.unpack_from("<Q", program, optional + 24)
        (size,) = struct.unpack_from("<I", program, optional + 56)
    except struct.error as error:
        raise CorruptError("the stub is no EFI program; install systemd-boot-efi again") from error
    if program[header:header + 4] != b"PE\0\0" or magic != 0x20B:
        raise CorruptError("the stub is no EFI program for 64 bits; install systemd-boot-efi again")
    return int(base) + int(size)


def addresses(start: int, sections: Mapping[str, bytes]) -> dict[str, int]:
    """Return where each section is loaded, one after the other on pages of their own. Pure."""
    found = {}
    for title, data in sections.items():
        start = -(-start // PAGE) * PAGE
        found[title] = start
        start += len(data)
    return found
