"""The host runtime: the builder's own CPython, cut to what the host-side rooms import. Reads files, runs the result.

Layout (docs/protocols/host-runtime.md): lib/ holds the loader, libc and every shared object; lib/pythonX.Y the
standard library; app/ the rooms. Modules are .pyc files in the place of their source (no __pycache__), so that the
importer neither looks for nor compares sources, which is what counts under emulation.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
import marshal
import struct
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from imaging.recovery_image.closure import Library, closure
from imaging.recovery_image.contents import Item, file, folder, write_folder
from imaging.recovery_image.elf_slim import slim
from imaging.recovery_image.module_graph import ALWAYS, Found, Kind, ModuleGraph
from imaging.recovery_image.stand_ins import EXCLUDED, REPLACED
from plumbing.errors import CorruptError, NotFoundError
from plumbing.run import run

HOME = "usr/lib/reroot"
"""Where the runtime lies on a host and in the initramfs; it works anywhere else too."""

HOST_ROOTS = ("recovery.*", "precious.*", "throttle.client", "fleet.agent", "plumbing.*")
"""What a host runs; of the other rooms only what these import is carried. A star means: and everything below it."""

APP_ROOMS = ("imaging", "recovery", "precious", "throttle", "rollout", "fleet", "control", "cli", "lab", "plumbing")

LIBRARIES = ("zstandard", "blake3", "cryptography.hazmat.primitives.serialization", "securesystemslib.dsse",
             "tuf.ngclient.updater", "tuf.api.serialization.json", "email.message", "email.policy")
"""Carried whatever the rooms import today, because selfcheck uses them."""

VERSION = sys.version_info[:2]
"""Major and minor version of the interpreter that is carried: the one that runs the builder."""

OPENED_LATER = ("libgcc_s.so.1",)
"""glibc opens it when a thread is cancelled."""

_SITE = """
import sys
_lib = "{}/lib/python{}.{}".format(sys.prefix, *sys.version_info)
sys.path[:] = [_lib, _lib + "/lib-dynload", _lib + "/site-packages", sys.prefix + "/app"]
"""

_LAUNCHER = """#!/bin/sh
# For people; units and reroot itself use the long form, which needs no shell.
here=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
exec "$here/lib/ld-linux-x86-64.so.2" --library-path "$here/lib" "$here/bin/python3" -I "$@"
"""

@dataclass(frozen=True)
class Runtime:
    """The finished runtime: items below HOME, the libraries it carries by name, the modules by name."""

    items: tuple[Item, ...]
    libraries: frozenset[str]
    modules: tuple[str, ...]
    roots: tuple[str, ...]


def argv(home: str, module: str, *words: str) -> list[str]:
    """Return the command that starts a module of the runtime at `home`; it needs nothing of the host but a kernel."""
    return [f"{home}/lib/ld-linux-x86-64.so.2", "--library-path", f"{home}/lib", f"{home}/bin/python3", "-I",
            "-m", module, *words]


def expand_roots(source: Path, roots: Sequence[str]) -> tuple[str, ...]:
    """Return the module names that `roots` mean below the folder `source`; raises NotFoundError for an empty one."""
    names: list[str] = []
    for root in roots:
        base = root.removesuffix(".*")
        place = source / base.replace(".", "/")
        if not (place / "__init__.py").is_file() and not place.with_suffix(".py").is_file():
            raise NotFoundError(f"{source} holds no {base}; a host needs it, so install reroot whole on the builder")
        names.append(base)
        if root.endswith(".*"):
            for path in sorted(place.rglob("*.py")):
                words = path.relative_to(source).with_suffix("").parts
                if words[-1] == "__main__":
                    continue
                names.append(".".join(words[:-1] if words[-1] == "__init__" else words))
    return tuple(dict.fromkeys(names))


def gather(source: Path, roots: Sequence[str]) -> ModuleGraph:
    """Find every module a host needs: those that import statements name, and those seen when really importing."""
    stand_ins = {name: text for name, (text, _) in REPLACED.items()}
    graph = ModuleGraph([str(source), *(entry for entry in sys.path if entry)], excluded=EXCLUDED, replaced=stand_ins,
                        own=APP_ROOMS)
    for name in ALWAYS:
        graph.add_if_there(name, "the interpreter itself")
    for name in LIBRARIES:
        graph.add_root(name, "a library that hosts use")
    for name in roots:
        graph.add_root(name, "runs on hosts")
    job = {"source": str(source), "hidden": sorted(EXCLUDED), "replaced": stand_ins, "names": [*LIBRARIES, *roots]}
    script = importlib.resources.files(__package__).joinpath("really_import.py").read_text()
    done = run([sys.executable, "-I", "-c", script], stdin=json.dumps(job).encode(), check=False, timeout_s=300)
    if done.status != 0:
        raise CorruptError(f"the host-side rooms below {source} cannot be imported ({_last_line(done.stderr)}); "
                           "repair the installation of reroot on this machine")
    for name in json.loads(done.stdout):
        graph.add_if_there(name, "seen when the rooms are really imported")
    return graph


def _last_line(stderr: bytes) -> str:
    return (stderr.decode("utf-8", "replace").strip().splitlines() or ["it printed nothing"])[-1]


def compiled(source: bytes, name: str) -> bytes:
    """Return a .pyc that is never checked against its source; `name` is what tracebacks show."""
    code = compile(source, name, "exec", dont_inherit=True, optimize=0)
    unchecked_hash = struct.pack("<I", 0b01)  # PEP 552
    return importlib.util.MAGIC_NUMBER + unchecked_hash + importlib.util.source_hash(source) + marshal.dumps(code)


class _Layout:
    """Where modules go below HOME, and what they are counted under."""

    def __init__(self) -> None:
        self.version = "python{}.{}".format(*VERSION)
        self.stdlib = Path(sysconfig.get_path("stdlib"))

    def place(self, found: Found) -> tuple[str, str]:
        """Return (folder below HOME, ledger part) of a module."""
        top = found.name.partition(".")[0]
        if top in APP_ROOMS:
            return "app", f"app: {top}"
        assert found.path is not None
        in_stdlib = found.path.is_relative_to(self.stdlib) and "-packages" not in str(found.path)
        if not in_stdlib:
            return f"lib/{self.version}/site-packages", f"library {top}"
        if found.kind is Kind.EXTENSION:
            return f"lib/{self.version}/lib-dynload", "standard library, compiled"
        return f"lib/{self.version}", "standard library"

    def item(self, graph: ModuleGraph, found: Found) -> Item:
        """Return the module as an item of the image."""
        folder, part = self.place(found)
        inside = found.name.replace(".", "/")
        why = REPLACED[found.name][1] if found.name in REPLACED else f"imported by {found.wanted_by}"
        assert found.path is not None
        if found.kind is Kind.EXTENSION:
            path = f"{Path(inside).parent}/{found.path.name}".removeprefix("./")
            return file(f"{HOME}/{folder}/{path}", slim(found.path), part=part, why=why, mode=0o755)
        inside += "/__init__" if found.is_package else ""
        data = compiled(graph.source(found), f"{folder.rpartition('/')[2]}/{inside}.py")
        return file(f"{HOME}/{folder}/{inside}.pyc", data, part=part, why=why)

    def data_files(self, found: Found) -> list[Item]:
        """Return what lies beside the modules of an app package and is not Python: shipped defaults, templates."""
        folder, part = self.place(found)
        assert found.path is not None
        inside = found.name.replace(".", "/")
        return [file(f"{HOME}/{folder}/{inside}/{path.relative_to(found.path.parent)}", path.read_bytes(), part=part,
                     why=f"data of {found.name}")
                for path in sorted(found.path.parent.rglob("*"))
                if path.is_file() and path.suffix not in {".py", ".pyc", ".pyi"} and "__pycache__" not in path.parts
                and not any((up / "__init__.py").is_file() for up in _between(path.parent, found.path.parent))]


def _between(folder: Path, top: Path) -> list[Path]:
    """Return the folders from `folder` up to, but without, `top`."""
    found = []
    while folder != top:
        found.append(folder)
        folder = folder.parent
    return found


def assemble(source: Path, roots: Sequence[str] = HOST_ROOTS) -> Runtime:
    """Make the host runtime of the interpreter that runs this, for the rooms below the folder `source`.

    Raises NotFoundError when a room, library or shared object is missing on the builder.
    """
    names = expand_roots(source, roots)
    graph = gather(source, names)
    layout = _Layout()
    items: list[Item] = []
    objects: list[Path] = []
    for found in graph.found.values():
        if found.path is None:
            continue
        items.append(layout.item(graph, found))
        if found.kind is Kind.EXTENSION:
            objects.append(found.path)
        elif found.is_package and items[-1].path.startswith(f"{HOME}/app/"):
            items += layout.data_files(found)
    program = Path(sys.executable).resolve()
    items.append(file(f"{HOME}/bin/python3", slim(program), part="CPython", why="the interpreter", mode=0o755))
    items.append(file(f"{HOME}/bin/reroot-python", _LAUNCHER.encode(), part="CPython", why="for people", mode=0o755))
    items.append(file(f"{HOME}/lib/{layout.version}/sitecustomize.pyc", compiled(_SITE.encode(), "sitecustomize.py"),
                      part="CPython", why="puts site-packages and app on the path"))
    libraries = closure([program, *objects], also=OPENED_LATER)
    items += library_items(libraries.values())
    if not any(item.path.startswith(f"{HOME}/lib/{layout.version}/lib-dynload/") for item in items):
        items.append(folder(f"{HOME}/lib/{layout.version}/lib-dynload"))  # the landmark of the platform library
    return Runtime(tuple(items), frozenset(libraries), tuple(sorted(graph.found)), names)


def library_items(libraries: Iterable[Library]) -> list[Item]:
    """Return shared objects as files of the runtime's lib/."""
    return [file(f"{HOME}/lib/{library.name}", slim(library.path),
                 part="CPython" if library.name.startswith("libpython") else "shared libraries",
                 why=f"needed by {library.wanted_by}", mode=0o755) for library in libraries]


def prove(runtime: Runtime) -> dict[str, float]:
    """Lay the runtime out in a scratch folder and let it check itself; return its timings in seconds.

    Raises CorruptError, with what it printed, when anything a host needs does not work from the runtime alone.
    """
    script = importlib.resources.files(__package__).joinpath("selfcheck.py").read_text()
    with tempfile.TemporaryDirectory(prefix="reroot-runtime-") as scratch:
        write_folder(runtime.items, Path(scratch))
        home = f"{scratch}/{HOME}"
        words = [*argv(home, "selfcheck")[:-2], "-c", script, *runtime.roots]
        done = run(words, check=False, env={}, cwd=Path(scratch), timeout_s=300)
    if done.status != 0:
        raise CorruptError(f"the host runtime does not work ({_last_line(done.stderr)}); if a module is missing, "
                           "import it openly or name it in module_graph.HIDDEN")
    return {str(name): float(value) for name, value in json.loads(done.stdout).items()}
