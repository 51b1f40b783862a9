"""Writes module files with a real ELF header and .modinfo section, and trees as a kernel package unpacks to."""

from __future__ import annotations

import struct
from pathlib import Path

RELEASE = "6.9.0-1-test"

NEEDED = {
    "virtio": {}, "virtio_ring": {}, "virtio_pci": {"depends": ["virtio,virtio_ring"], "alias": ["pci:v00001AF4*"]},
    "virtio_net": {"depends": ["virtio"], "alias": ["virtio:d00000001v*"]}, "virtio_blk": {"depends": ["virtio"]},
    "scsi_mod": {}, "virtio_scsi": {"depends": ["virtio,scsi_mod"]}, "sd_mod": {"depends": ["scsi_mod"]},
    "virtio-rng": {"depends": ["virtio"]}, "fat": {}, "vfat": {"depends": ["fat"]}, "nls_cp437": {},
    "nls_iso8859-1": {}, "nls_ascii": {}, "crc32c_generic": {"alias": ["crypto-crc32c"]},
    "ext4": {"softdep": ["pre: crypto-crc32c post: never"]}, "xfs": {}, "dm_mod": {},
}


def module(info: dict[str, list[str]]) -> bytes:
    """Return an ELF file that holds nothing but a .modinfo section."""
    modinfo = b"".join(f"{key}={value}".encode() + b"\0" for key, values in info.items() for value in values)
    names = b"\0.modinfo\0.shstrtab\0"
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 1, 62, 1, 0, 0,
                         64 + len(modinfo) + len(names), 0, 64, 0, 0, 64, 3, 2)
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, 64, len(modinfo), 0, 0, 1, 0)
    sections += struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, 64 + len(modinfo), len(names), 0, 0, 1, 0)
    return header + modinfo + names + sections


def tree(root: Path, modules: dict[str, dict[str, list[str]]] | None = None, *, release: str = RELEASE,
         builtin: tuple[str, ...] = ()) -> Path:
    """Write /boot and /lib/modules below `root`; returns the folder of modules."""
    folder = root / "lib/modules" / release
    for name, info in (NEEDED if modules is None else modules).items():
        place = folder / "kernel" / "drivers" / f"{name}.ko"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(module(info))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "modules.builtin").write_text("".join(f"kernel/x/{name}.ko\n" for name in builtin))
    (root / "boot").mkdir(exist_ok=True)
    (root / "boot" / f"vmlinuz-{release}").write_bytes(b"kernel " + release.encode())
    (root / "boot" / f"config-{release}").write_text("# CONFIG_X is not set\nCONFIG_RD_ZSTD=y\nCONFIG_RD_XZ=y\n")
    return folder
