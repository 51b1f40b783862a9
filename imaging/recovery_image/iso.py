"""The recovery image on a CD or a stick: one file that BIOS and UEFI machines start from either. I/O: runs programs.

Both firmwares get a GRUB of reroot's own, which looks for the folder of this very medium: a host's disk has a GRUB
configuration of its own, and an old stick may be in the same machine. Layout: docs/protocols/host-runtime.md.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from imaging.recovery_image import bootline, grub
from plumbing.errors import NotFoundError
from plumbing.run import run

FOLDER = "reroot-media"
VOLUME = "REROOT_RECOVERY"
WAIT_S = 3
"""How long GRUB's menu waits for a key, in seconds."""

FAT_S = (315532800, 4354819200)
"""The dates that FAT knows, in seconds since 1970."""

PACKAGES = {"xorriso": "xorriso", "mformat": "mtools", "mcopy": "mtools", "mmd": "mtools"}
_EFI_SLACK = 256 << 10
"""Room for FAT's own tables and folders beside GRUB, in bytes."""
_EARLY = """\
search --no-floppy --file --set=root /{folder}/{mark}
if [ -f ($root)/{folder}/grub.cfg ]; then
  configfile ($root)/{folder}/grub.cfg
fi
echo "reroot: the medium that this GRUB came from cannot be read; make it anew"
sleep 30
reboot
"""
_CONFIG = """\
set timeout={wait}
set default=0
if serial --unit=0 --speed=115200; then
  terminal_input console serial
  terminal_output console serial
fi
menuentry "reroot recovery: touches no disk without a signed order" {{
  linux ($root)/{folder}/vmlinuz {line}
  initrd ($root)/{folder}/initrd.img
}}
menuentry "leave: the next boot device of this machine" {{
  exit
}}
"""


@dataclass(frozen=True)
class Medium:
    """What goes on a medium: kernel, initramfs, the words of the command line, the date of everything on it.

    `epoch_s` is in seconds since 1970; the same Medium and the same programs give the same bytes.
    """

    vmlinuz: bytes
    initrd: bytes
    words: Sequence[str]
    epoch_s: int = 0

    @property
    def mark(self) -> str:
        """The name of the file by which this medium is told from every other."""
        digest = sha256()
        for part in (self.vmlinuz, self.initrd, bootline.line(self.words).encode()):
            digest.update(sha256(part).digest())
        return digest.hexdigest()[:32]


def source_date(environment: Mapping[str, str]) -> int:
    """Return the date of what is built: SOURCE_DATE_EPOCH where FAT can say it (1980 to 2107), else its first day."""
    text = environment.get("SOURCE_DATE_EPOCH", "")
    given = int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else 0
    return given if FAT_S[0] <= given < FAT_S[1] else FAT_S[0]


def make(medium: Medium) -> bytes:
    """Return the image; raises NotFoundError naming the Debian package of a program that is not installed."""
    for program, package in PACKAGES.items():
        require(program, package)
    boot_line = bootline.line(medium.words)
    early = _EARLY.format(folder=FOLDER, mark=medium.mark)
    with tempfile.TemporaryDirectory(prefix="reroot-iso-") as made:
        scratch = Path(made)
        tree = scratch / "tree"
        inside = tree / FOLDER
        inside.mkdir(parents=True)
        files = {
            "vmlinuz": medium.vmlinuz, "initrd.img": medium.initrd, medium.mark: b"",
            "grub.cfg": _CONFIG.format(wait=WAIT_S, folder=FOLDER, line=boot_line).encode(),
            "eltorito.img": grub.core("i386-pc-eltorito", early=early, more=("iso9660",)),
        }
        for name, data in files.items():
            (inside / name).write_bytes(data)
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(medium.epoch_s), "TZ": "UTC"}
        _efi_partition(scratch / "efi.img", grub.core("x86_64-efi", early=early, more=("iso9660",)), medium,
                       environment)
        for path in (*inside.iterdir(), inside, tree):
            os.utime(path, (medium.epoch_s, medium.epoch_s))
        run(["xorriso", "-as", "mkisofs", "-quiet", "-r", "-V", VOLUME, "-o", scratch / "out.iso",
             "-b", f"{FOLDER}/eltorito.img", "-c", f"{FOLDER}/boot.cat", "-no-emul-boot", "-boot-load-size", "4",
             "-boot-info-table", "--grub2-boot-info", "--grub2-mbr", grub.hybrid_mbr(),
             "-append_partition", "2", "0xef", scratch / "efi.img", "-eltorito-alt-boot",
             "-e", "--interval:appended_partition_2:all::", "-no-emul-boot", tree],
            env=environment, timeout_s=300)
        return (scratch / "out.iso").read_bytes()


def _efi_partition(image: Path, program: bytes, medium: Medium, environment: Mapping[str, str]) -> None:
    """Write a FAT filesystem that holds GRUB where UEFI looks for a removable medium's program."""
    grubx64 = image.parent / "BOOTX64.EFI"
    grubx64.write_bytes(program)
    os.utime(grubx64, (medium.epoch_s, medium.epoch_s))
    kib = (len(program) + _EFI_SLACK) // 1024
    with image.open("wb") as stream:
        stream.truncate(kib * 1024)
    run(["mformat", "-i", image, "-N", medium.mark[:8], "-v", "REROOT", "::"], env=environment)
    run(["mmd", "-i", image, "::EFI", "::EFI/BOOT"], env=environment)
    run(["mcopy", "-m", "-i", image, grubx64, "::EFI/BOOT/BOOTX64.EFI"], env=environment)


def require(program: str, package: str) -> None:
    """Raise NotFoundError when `program` is not on the PATH."""
    from shutil import which

    if which(program) is None:
        raise NotFoundError(f"{program} is not on this machine, and this needs it; apt-get install {package}")
