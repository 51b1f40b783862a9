"""What a person named as the source of a release. I/O: looks at the first bytes of a file."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

from imaging.registry import Place
from imaging.registry_auth import Credentials
from imaging.root_sources.directory import DirectorySource
from imaging.root_sources.disk import QCOW2, DiskSource
from imaging.root_sources.oci import OciSource
from imaging.root_sources.oci_layout import split_name
from imaging.root_sources.oci_registry import RegistryImage
from imaging.root_sources.source import RootSource
from imaging.root_sources.tarball import TarSource
from imaging.scan import Note
from plumbing.errors import DiskError, UsageError

Login = Callable[[str], tuple[Place, Credentials | None]]
"""What `docker://…` means as a place in a registry, and the credentials for it."""
HEAD_BYTES = 68 << 10
"""How much of a file is looked at: as far as the superblock that lies deepest, btrfs's."""
_PACKED = (b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"BZh", b"LZIP", b"\x5d\0\0")
"""gzip, xz, zstd, bzip2, lzip, lzma: what GNU tar unpacks, and whose bytes may look like anything further on."""
_FOREIGN = {b"KDMV": "a VMDK", b"vhdxfile": "a VHDX", b"conectix": "a VHD", b"<<< ": "a VDI"}
_MAGIC = ((510, b"\x55\xaa"), (512, b"EFI PART"), (4096, b"EFI PART"), (1080, b"\x53\xef"), (0, b"XFSB"), (0, b"hsqs"),
          (1024, b"\xe2\xe1\xf5\xe0"), (1024, b"\x10\x20\xf5\xf2"), (65_600, b"_BHRfS_M"))
"""Where a disk image without a header of its own says what it is: MBR, GPT, ext, XFS, squashfs, erofs, f2fs, btrfs."""


def choose(
    text: str, *, arch: str | None = None, partition: int | None = None, scratch: Path | None = None,
    note: Note | None = None, login: Login | None = None,
) -> RootSource:
    """Return the source that `text` names: a path, `oci:PATH[:TAG]`, or `docker://REGISTRY/REPOSITORY:TAG`.

    `arch` overrides what the source says of itself, `partition` is for disk images, `scratch` the folder to unpack
    below; `note` is told of what a person should know about the source; `login` says who we are in a registry. Raises
    UsageError when it is none.
    """
    if text.startswith("oci:"):
        _no_partition(text, partition)
        layout, tag = split_name(text.removeprefix("oci:"))
        return OciSource(layout, tag, arch, scratch)
    if text.startswith("docker://"):
        _no_partition(text, partition)
        place, known = login(text) if login is not None else (Place.parse(text), None)
        return RegistryImage(place, known, arch, scratch)
    path = Path(text)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            _no_partition(text, partition)
            if (path / "oci-layout").is_file() and (path / "index.json").is_file():
                raise UsageError(f"{text} is an OCI image layout, not a root tree; write oci:{text} or oci:{text}:TAG")
            return DirectorySource(path, arch)
        head = b""
        if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
            with path.open("rb") as stream:
                head = stream.read(HEAD_BYTES)
    except FileNotFoundError as error:
        raise UsageError(f"{text} is not there; name a tar file or a directory, or a disk image") from error
    except OSError as error:
        raise DiskError(f"{text} cannot be read ({error.strerror}); check who owns it") from error
    kind = kind_of(head, text)
    if kind == "tar":
        _no_partition(text, partition)
        return TarSource(path, arch, scratch)
    return DiskSource(path, kind == "qcow2", partition, arch, scratch, note)


def kind_of(head: bytes, name: str) -> str:
    """Return "qcow2", "raw" or "tar" for a file's first HEAD_BYTES; raises UsageError for images of other formats.

    A tar that names itself wins over a disk image: its content may have any bytes where those look.
    """
    if head.startswith(QCOW2):
        return "qcow2"
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise UsageError(f"{name} is {what} disk image; make it raw with `qemu-img convert -O raw {name} disk.raw`")
    if head[257:262] == b"ustar" or head.startswith(_PACKED):
        return "tar"
    return "raw" if any(head[at:at + len(magic)] == magic for at, magic in _MAGIC) else "tar"


def _no_partition(text: str, partition: int | None) -> None:
    if partition is not None:
        raise UsageError(f"{text} is no disk image and has no partitions; leave --partition out")
