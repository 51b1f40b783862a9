"""reroot's own GRUB: the BIOS core image, the MBR code and the UEFI program. Runs grub-mkimage.

All three embed the same few lines: find the partition that holds /reroot/grub.cfg, and go on with that file. The
file is written by recovery and by the agent; one file serves both firmwares (docs/protocols/host-runtime.md).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from plumbing.errors import NotFoundError
from plumbing.run import run

EARLY = """\
search --no-floppy --file --set=root /reroot/grub.cfg
set prefix=($root)/reroot
if [ -f ($root)/reroot/grub.cfg ]; then
  configfile ($root)/reroot/grub.cfg
fi
echo "reroot: no partition holds /reroot/grub.cfg; boot this machine from the network to repair it"
sleep 30
reboot
"""

MODULES = (
    "part_gpt", "part_msdos", "fat", "ext2", "xfs", "lvm",  # where things lie
    "search", "search_fs_file", "search_fs_uuid", "search_label", "probe",  # finding them
    "normal", "configfile", "linux", "chain", "boot",  # going on
    "loadenv", "test", "true", "echo", "sleep", "regexp",  # what grub.cfg says
    "serial", "terminal", "minicmd", "reboot", "halt", "ls",  # a person in front of it
)
"""No graphics: recovery speaks to serial and text consoles."""

PLATFORM_MODULES = {"i386-pc": ("biosdisk",), "x86_64-efi": ("efi_gop", "efi_uga")}
PACKAGES = {"i386-pc": "grub-pc-bin", "x86_64-efi": "grub-efi-amd64-bin"}
LIBRARY = Path("/usr/lib/grub")


def core(platform: str, library: Path = LIBRARY, *, early: str = EARLY, more: Sequence[str] = ()) -> bytes:
    """Return the image for "i386-pc" (core.img), "i386-pc-eltorito" (for a CD) or "x86_64-efi" (an EFI program).

    `early` is what it does first, `more` are modules beside the usual. Raises NotFoundError naming the Debian package
    when GRUB's modules for that platform are not installed.
    """
    modules = platform.removesuffix("-eltorito")
    _need(library / modules, modules)
    with tempfile.TemporaryDirectory(prefix="reroot-grub-") as scratch:
        config, out = Path(scratch) / "early.cfg", Path(scratch) / "core"
        config.write_text(early)
        run(["grub-mkimage", "-d", library / modules, "-O", platform, "-p", "/reroot", "-c", config, "-o", out,
             *MODULES, *PLATFORM_MODULES[modules], *more])
        return out.read_bytes()


def boot_sector(library: Path = LIBRARY) -> bytes:
    """Return boot.img, 512 bytes; whoever writes it into an MBR keeps that MBR's partition table and disk id."""
    _need(library / "i386-pc", "i386-pc")
    return (library / "i386-pc" / "boot.img").read_bytes()


def hybrid_mbr(library: Path = LIBRARY) -> Path:
    """Return where boot_hybrid.img is, the MBR code of a CD image that is written to a stick."""
    _need(library / "i386-pc", "i386-pc")
    return library / "i386-pc" / "boot_hybrid.img"


def _need(folder: Path, platform: str) -> None:
    if not (folder / "moddep.lst").is_file():
        raise NotFoundError(f"{folder} holds no GRUB modules, and the recovery image needs them; "
                            f"apt-get install {PACKAGES[platform]} grub-common")
