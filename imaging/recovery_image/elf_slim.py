"""Takes out of an ELF file what only a debugger or the builder needs. Runs strip(1) where there is one.

Symbols go (a libpython with debug information weighs 23 MB, without it 5), and so do RPATH and RUNPATH: they name
folders of the builder, where a host may have anything at all.
"""

from __future__ import annotations

import io
import shutil
import struct
import tempfile
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

from plumbing.run import run

_PATH_TAGS = {15, 29}
"""DT_RPATH and DT_RUNPATH."""
_ENTRY = struct.Struct("<qQ")
"""One Elf64_Dyn, little endian."""


def can_strip() -> bool:
    """Whether binutils' strip is on this machine."""
    return shutil.which("strip") is not None


def slim(path: Path) -> bytes:
    """Return the content of an ELF program or shared object without symbols, where possible, and search paths."""
    if not can_strip():
        return without_search_path(path.read_bytes())
    with tempfile.TemporaryDirectory(prefix="reroot-strip-") as scratch:
        out = Path(scratch) / path.name
        run(["strip", "--strip-unneeded", "--remove-section=.comment", "-o", out, path])
        return without_search_path(out.read_bytes())


def without_search_path(data: bytes) -> bytes:
    """Drop DT_RPATH and DT_RUNPATH by moving up the entries behind them, as chrpath -d does."""
    elf = ELFFile(io.BytesIO(data))
    section = elf.get_section_by_name(".dynamic")
    if elf.elfclass != 64 or not elf.little_endian or not isinstance(section, DynamicSection):
        return data
    start, size = section["sh_offset"], section["sh_size"]
    entries = list(_ENTRY.iter_unpack(data[start:start + size]))
    kept = [entry for entry in entries if entry[0] not in _PATH_TAGS]
    kept += [(0, 0)] * (len(entries) - len(kept))
    return data[:start] + b"".join(_ENTRY.pack(*entry) for entry in kept) + data[start + size:]
