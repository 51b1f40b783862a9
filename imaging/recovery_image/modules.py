"""The kernel modules that a profile needs, with everything they depend on. Reads module files, runs nothing.

A freshly unpacked kernel package has no modules.dep (depmod writes it at installation), so dependencies,
soft dependencies and aliases are read from each module's own .modinfo section, where depmod gets them too.
"""

from __future__ import annotations

import gzip
import io
import lzma
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from imaging.recovery_image.contents import Item, file
from plumbing.errors import CorruptError, NotFoundError, UsageError

SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


@dataclass(frozen=True)
class Wanted:
    """A module that a profile asks for; an optional one may be missing from a kernel."""

    name: str
    why: str
    optional: bool = False


PROFILES: dict[str, tuple[Wanted, ...]] = {
    "virtio": (
        Wanted("virtio_pci", "finds every paravirtual device"),
        Wanted("virtio_net", "network of a virtual machine"),
        Wanted("virtio_blk", "disks of a virtual machine"),
        Wanted("virtio_scsi", "disks of a virtual machine"),
        Wanted("virtio_rng", "randomness of a virtual machine"),
        Wanted("sd_mod", "SCSI and SATA disks"),
        Wanted("ext4", "root and /local"),
        Wanted("xfs", "root and /local"),
        Wanted("dm_mod", "logical volumes"),
        Wanted("vfat", "EFI system partition and boot area"),
        Wanted("nls_cp437", "names on FAT"),
        Wanted("nls_iso8859_1", "names on FAT"),
        Wanted("nls_ascii", "names on FAT, the default of Debian's kernel"),
        Wanted("nls_utf8", "names on FAT", optional=True),
        Wanted("ahci", "SATA disks", optional=True),
        Wanted("ata_piix", "disks of QEMU's default machine", optional=True),
        Wanted("ata_generic", "other ATA disks", optional=True),
        Wanted("nvme", "NVMe disks", optional=True),
        Wanted("e1000e", "Intel network, QEMU's q35 machine", optional=True),
        Wanted("e1000", "Intel network, QEMU's default machine", optional=True),
        Wanted("efivarfs", "boot entries of UEFI firmware", optional=True),
        Wanted("rtc_cmos", "the clock that signatures are judged by", optional=True),
        Wanted("i6300esb", "the watchdog of QEMU's machines", optional=True),
        Wanted("iTCO_wdt", "the watchdog of Intel's chipsets", optional=True),
        Wanted("sp5100_tco", "the watchdog of AMD's chipsets", optional=True),
        Wanted("wdat_wdt", "the watchdog that ACPI describes", optional=True),
        Wanted("loop", "filesystems in files, for rescue", optional=True),
    ),
}


@dataclass(frozen=True)
class Module:
    """One module: its name (underscores), its path below the version's folder without compression suffix."""

    name: str
    path: str
    data: bytes
    needs: tuple[str, ...]
    aliases: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class ModuleSet:
    """Modules in an order in which they can be loaded, what the kernel has built in, what it has not at all."""

    version: str
    modules: tuple[Module, ...]
    builtin: tuple[str, ...]
    absent: tuple[Wanted, ...]

    def items(self) -> list[Item]:
        """Return the files below /lib/modules/VERSION, with the tables that busybox modprobe reads."""
        top = f"lib/modules/{self.version}"
        by_name = {module.name: module for module in self.modules}
        found = [file(f"{top}/{module.path}", module.data, part=f"module {module.name}", why=module.why)
                 for module in self.modules]
        dependencies = "".join(
            f"{module.path}:{''.join(' ' + by_name[name].path for name in self._below(module, by_name))}\n"
            for module in self.modules)
        aliases = "".join(f"alias {alias} {module.name}\n" for module in self.modules for alias in module.aliases)
        builtin = "".join(f"kernel/{name}.ko\n" for name in self.builtin)
        for name, text in (("dep", dependencies), ("alias", aliases), ("builtin", builtin), ("symbols", "")):
            found.append(file(f"{top}/modules.{name}", text.encode(), part="module tables", why="modprobe reads them"))
        names = "".join(f"{module.name}\n" for module in self.modules)
        found.append(file("etc/reroot/modules", names.encode(), part="module tables",
                          why="every module carried, in loading order"))
        return found

    @staticmethod
    def _below(module: Module, by_name: dict[str, Module]) -> list[str]:
        """Everything that must be loaded before `module`, the last to be loaded first (as depmod writes it)."""
        order: list[str] = []

        def visit(name: str) -> None:
            for below in by_name[name].needs:
                if below not in order:
                    visit(below)
                    order.append(below)

        visit(module.name)
        return order[::-1]


def module_name(path: Path) -> str:
    """Return the kernel's name of a module file: virtio-rng.ko.xz is virtio_rng."""
    return path.name.partition(".ko")[0].replace("-", "_")


def read_module(path: Path) -> bytes:
    """Return a module's ELF bytes, decompressed, so that the archive's own compression sees them."""
    data = path.read_bytes()
    match path.suffix:
        case ".ko":
            return data
        case ".xz":
            return lzma.decompress(data)
        case ".gz":
            return gzip.decompress(data)
        case ".zst":
            return zstandard.ZstdDecompressor().stream_reader(data).read()
        case _:
            raise CorruptError(f"{path} is compressed in a way that is not known here; use a kernel with plain, "
                               "gzip, xz or zstd modules")


def modinfo(data: bytes, name: str) -> dict[str, list[str]]:
    """Return the key=value strings of a module's .modinfo section."""
    try:
        section = ELFFile(io.BytesIO(data)).get_section_by_name(".modinfo")
    except ELFError as error:
        raise CorruptError(f"module {name} is not an ELF file ({error}); unpack the kernel package again") from error
    found: dict[str, list[str]] = defaultdict(list)
    for word in (section.data() if section is not None else b"").split(b"\0"):
        key, equals, value = word.decode("utf-8", "replace").partition("=")
        if equals:
            found[key].append(value)
    return found


class _Tree:
    """The module files of one kernel, by name and, once asked for, by alias."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {module_name(path): path for path in sorted((folder / "kernel").rglob("*.ko*"))
                      if path.name.endswith(SUFFIXES)}
        lines = (folder / "modules.builtin").read_text().split() if (folder / "modules.builtin").is_file() else []
        self.builtin = {module_name(Path(line)): line for line in lines}
        if not self.files and not self.builtin:
            raise NotFoundError(f"{folder} holds no kernel modules; name the tree that a kernel package unpacks to")
        self._aliases: dict[str, str] | None = None
        facts = folder / "modules.builtin.modinfo"
        words = facts.read_bytes().decode("utf-8", "replace").split("\0") if facts.is_file() else []
        self.builtin_aliases = {word.partition(".alias=")[2].replace("-", "_") for word in words if ".alias=" in word}

    def by_alias(self, alias: str) -> str | None:
        """Resolve names such as crypto-crc32c, for which soft dependencies ask; None when the kernel itself does it.

        Of several the generic one is taken: the others want a processor that has their instructions.
        """
        if alias.replace("-", "_") in self.builtin_aliases:
            return None
        if self._aliases is None:
            self._aliases = {}
            for name, path in sorted(self.files.items(), key=lambda item: not item[0].endswith("_generic")):
                for found in modinfo(read_module(path), name)["alias"]:
                    self._aliases.setdefault(found.replace("-", "_"), name)
        return self._aliases.get(alias.replace("-", "_"))


def module_closure(folder: Path, wanted: Sequence[Wanted]) -> ModuleSet:
    """Return `wanted` and all they depend on, from a folder /lib/modules/VERSION.

    Raises NotFoundError when a wanted module that is not optional is neither a file nor built in.
    """
    tree = _Tree(folder)
    done: dict[str, Module] = {}
    builtin: list[str] = []
    absent: list[Wanted] = []

    def add(name: str, why: str) -> bool:
        if name in done or name in tree.builtin:
            return True
        path = tree.files.get(name)
        if path is None:
            return False
        data = read_module(path)
        info = modinfo(data, name)
        hard = [word.replace("-", "_") for line in info["depends"] for word in line.split(",") if word]
        for below in hard:
            if not add(below, f"{name} needs it"):
                raise NotFoundError(f"module {name} needs {below}, which is not in {folder}; unpack the kernel again")
        soft: list[str] = []
        for below in _pre(info["softdep"]):
            real = below if below in tree.files or below in tree.builtin else tree.by_alias(below)
            if real is not None and add(real, f"{name} asks for {below} before itself"):
                soft.append(real)
        needs = tuple(dict.fromkeys(below for below in hard + soft if below not in tree.builtin))
        inside = str(path.relative_to(folder))
        done[name] = Module(name, inside.partition(".ko")[0] + ".ko", data, needs, tuple(info["alias"]), why)
        return True

    for want in wanted:
        if add(want.name, want.why):
            if want.name in tree.builtin:
                builtin.append(want.name)
        elif want.optional:
            absent.append(want)
        else:
            raise NotFoundError(f"the kernel in {folder} has no module {want.name} ({want.why}); choose another kernel")
    return ModuleSet(folder.name, tuple(done.values()), tuple(builtin), tuple(absent))


def profile(name: str) -> tuple[Wanted, ...]:
    """Return a named profile; raises UsageError when there is none of that name."""
    if name not in PROFILES:
        raise UsageError(f"there is no module profile {name!r}; choose one of: {', '.join(sorted(PROFILES))}")
    return PROFILES[name]


def _pre(softdeps: Sequence[str]) -> list[str]:
    """Return the names after pre: in soft dependency lines ("pre: a b post: c")."""
    names: list[str] = []
    for line in softdeps:
        before = False
        for word in line.split():
            if word in {"pre:", "post:"}:
                before = word == "pre:"
            elif before:
                names.append(word.replace("-", "_"))
    return names
