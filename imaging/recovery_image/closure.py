"""The shared libraries that programs need, transitively: what ld.so would load. Reads files, runs nothing.

The rules are ld.so(8)'s: DT_RPATH of the object and of those that loaded it (unless the object has a
DT_RUNPATH), then the object's own DT_RUNPATH, then the folders of /etc/ld.so.conf, then the default folders.
Libraries that are opened by dlopen() at run time leave no trace in an ELF file: callers name them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from plumbing.errors import CorruptError, NotFoundError

DEFAULT_FOLDERS = ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib")
"""Debian's multiarch folders first, then the folders built into other distributions' ld.so."""


@dataclass(frozen=True)
class Elf:
    """What one ELF file asks of the dynamic loader."""

    machine: str
    interpreter: str | None
    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]


@dataclass(frozen=True)
class Library:
    """A shared object under the name by which it is asked for, where it lies, and who asked first."""

    name: str
    path: Path
    wanted_by: str


def is_elf(path: Path) -> bool:
    """Whether the file starts as an ELF file does."""
    with path.open("rb") as stream:
        return stream.read(4) == b"\x7fELF"


@lru_cache(maxsize=4096)
def read_elf(path: Path) -> Elf:
    """Read the loader's part of an ELF file; raises CorruptError when it is not one."""
    named: dict[str, list[str]] = {"DT_NEEDED": [], "DT_RPATH": [], "DT_RUNPATH": []}
    interpreter = None
    try:
        with path.open("rb") as stream:
            elf = ELFFile(stream)
            for segment in elf.iter_segments("PT_INTERP"):
                assert isinstance(segment, InterpSegment)
                interpreter = segment.get_interp_name()
            section = elf.get_section_by_name(".dynamic")
            if isinstance(section, DynamicSection):
                for tag in section.iter_tags():
                    if tag.entry.d_tag in named:  # pyelftools sets an attribute of that name: needed, rpath, runpath
                        named[tag.entry.d_tag].append(str(getattr(tag, tag.entry.d_tag.removeprefix("DT_").lower())))
            machine = str(elf["e_machine"])
    except ELFError as error:
        raise CorruptError(f"{path} is not an ELF file ({error}); name a program or a shared object") from error
    rpath, runpath = (_folders(":".join(named[kind]), path) for kind in ("DT_RPATH", "DT_RUNPATH"))
    return Elf(machine, interpreter, tuple(named["DT_NEEDED"]), rpath, runpath)


def _folders(text: str, path: Path) -> tuple[str, ...]:
    origin = str(path.resolve().parent)
    expanded = text.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)
    return tuple(folder for folder in expanded.split(":") if folder)


def configured_folders(root: Path, config: str = "etc/ld.so.conf") -> list[str]:
    """Return the folders that /etc/ld.so.conf under `root` names, its includes followed."""
    found: list[str] = []
    file = root / config
    if not file.is_file():
        return found
    for line in file.read_text("utf-8", "replace").splitlines():
        words = line.partition("#")[0].split()
        if words[:1] == ["include"]:
            for pattern in words[1:]:
                for part in sorted(root.glob(pattern.lstrip("/"))):
                    found += configured_folders(root, str(part.relative_to(root)))
        elif words:
            found += words
    return found


def closure(objects: Sequence[Path], *, root: Path = Path("/"), also: Iterable[str] = ()) -> dict[str, Library]:
    """Return every library that `objects` need, by name, with the loader itself.

    `root` is where the builder's libraries lie; `also` are names opened by dlopen() at run time, left out
    silently where the builder has none. Raises NotFoundError when a needed library is nowhere.
    """
    folders = [*configured_folders(root), *DEFAULT_FOLDERS]
    found: dict[str, Library] = {}
    waiting: list[tuple[Path, tuple[str, ...]]] = [(path, ()) for path in objects]
    machine = read_elf(objects[0]).machine if objects else ""

    def admit(name: str, path: Path, wanted_by: str, inherited: tuple[str, ...]) -> None:
        found[name] = Library(name, path, wanted_by)
        waiting.append((path, inherited))

    for name in also:
        place = _locate(name, folders, root, machine)
        if place is not None:
            admit(name, place, "opened at run time", ())
    while waiting:
        path, inherited = waiting.pop(0)
        elf = read_elf(path)
        chain = () if elf.runpath else (*elf.rpath, *inherited)
        if elf.interpreter is not None and Path(elf.interpreter).name not in found:
            loader = root / elf.interpreter.lstrip("/")
            admit(Path(elf.interpreter).name, loader, f"the loader of {path.name}", ())
        for name in elf.needed:
            if name in found:
                continue
            place = _locate(name, [*chain, *elf.runpath, *folders], root, elf.machine)
            if place is None:
                raise NotFoundError(f"{path} needs {name}, which is nowhere on this machine; install the package that "
                                    f"holds it (apt-file search {name})")
            admit(name, place, path.name, chain)
    return found


def _locate(name: str, folders: Iterable[str], root: Path, machine: str) -> Path | None:
    if "/" in name:
        return Path(name) if Path(name).is_file() else None
    for folder in folders:
        # a library of the builder's own interpreter may lie outside `root`
        for place in (root / folder.lstrip("/") / name, Path(folder) / name):
            if place.is_file() and is_elf(place) and (not machine or read_elf(place).machine == machine):
                return place
    return None
