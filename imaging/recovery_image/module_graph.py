"""Which Python modules a set of modules reaches: by reading their import statements. Reads files, imports nothing.

`modulefinder` of the standard library answers the same question but cannot tell a lazy import (inside a
function) from one that always happens, and it is the lazy imports of the standard library that drag in
interactive help, test frameworks and build tools. Lazy imports are followed here too, save towards LAZY_CUT.
"""

from __future__ import annotations

import ast
import importlib.machinery
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from plumbing.errors import NotFoundError

LAZY_CUT = (
    "asyncio", "concurrent.futures.process", "curses", "distutils", "doctest", "ensurepip", "multiprocessing", "pdb",
    "pickle", "plistlib", "py_compile", "pydoc", "pydoc_data", "readline", "rlcompleter", "socketserver", "sqlite3",
    "statistics", "sysconfig", "test", "tkinter", "tracemalloc", "unittest", "webbrowser", "xml", "xmlrpc", "zipfile",
)
"""The standard library imports these inside functions that no host calls: prompts, help, tests, build settings."""

HIDDEN: Mapping[str, tuple[str, ...]] = {
    "datetime": ("_strptime",),
    "time": ("_strptime",),
    "_datetime": ("_strptime",),
    "socket": ("encodings.idna",),  # getaddrinfo() encodes every name with it
    "pickle": ("_compat_pickle",),
    "_pickle": ("_compat_pickle",),
    "cryptography.hazmat.bindings._rust": (
        "_cffi_backend", "cryptography.hazmat.primitives.asymmetric.ed25519",
        "cryptography.hazmat.primitives.asymmetric.utils", "cryptography.hazmat.primitives.asymmetric.types",
        "cryptography.hazmat.primitives.serialization", "cryptography.hazmat.primitives.hashes",
        "cryptography.hazmat.primitives.ciphers", "cryptography.utils", "cryptography.exceptions",
    ),
}
"""What C and Rust code imports at run time, where no import statement shows it."""

ALWAYS = ("encodings", "encodings.aliases", "encodings.ascii", "encodings.cp437", "encodings.latin_1",
          "encodings.utf_8", "encodings.utf_16_le", "codecs", "io", "os", "site", "runpy", "traceback", "linecache",
          "warnings", "locale", "importlib.util", "importlib.machinery", "_sitebuiltins", "zipimport")
"""What the interpreter itself reaches for: at its start, for -m, and for a traceback."""


_LOADERS = ((importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES),
            (importlib.machinery.SourceFileLoader, importlib.machinery.SOURCE_SUFFIXES))


class Kind(StrEnum):
    """Where the code of a module is."""

    SOURCE = "source"
    EXTENSION = "extension"
    BUILTIN = "builtin"
    NAMESPACE = "namespace"


@dataclass(frozen=True)
class Found:
    """One module: `path` is its file (None when built in or a namespace), `wanted_by` the module that asked first."""

    name: str
    kind: Kind
    path: Path | None
    is_package: bool
    wanted_by: str


@dataclass(frozen=True)
class _Import:
    name: str
    members: tuple[str, ...]
    lazy: bool


class ModuleGraph:
    """Follows imports from roots over a search path.

    `excluded` are names never followed, with everything below them; `replaced` maps a module to source text that
    is read instead of its file (see stand_ins). Within the packages `own` every imported module must exist, for a
    library may try an import and do without, but a room that is not there is a defect that would show at night.
    """

    def __init__(self, search: Sequence[str], *, excluded: Collection[str] = (),
                 replaced: Mapping[str, str] | None = None, own: Collection[str] = ()) -> None:
        self._search = list(search)
        self._own = frozenset(own)
        self._excluded = frozenset(excluded)
        self._replaced = dict(replaced or {})
        self._lib = str(Path(ast.__file__).parent)
        self.found: dict[str, Found] = {}
        self._waiting: list[Found] = []
        self._folders: dict[str, list[str]] = {}
        self._finders: dict[str, importlib.machinery.FileFinder] = {}

    def add_root(self, name: str, why: str) -> None:
        """Follow `name`; raises NotFoundError when there is no such module."""
        if not self._admit(name, why):
            raise NotFoundError(f"there is no Python module {name} ({why}); install reroot whole on the builder")
        self._drain()

    def add_if_there(self, name: str, why: str) -> None:
        """Follow `name` where it exists on this interpreter."""
        self._admit(name, why)
        self._drain()

    def _drain(self) -> None:
        while self._waiting:
            self._follow(self._waiting.pop(0))

    def _admit(self, name: str, wanted_by: str) -> bool:
        if name in self.found:
            return True
        if _below(name, self._excluded):
            return False
        parent = name.rpartition(".")[0]
        if parent and not self._admit(parent, wanted_by):
            return False
        found = self._locate(name, parent, wanted_by)
        if found is None:
            return False
        self.found[name] = found
        self._waiting.append(found)
        return True

    def _locate(self, name: str, parent: str, wanted_by: str) -> Found | None:
        if name in sys.builtin_module_names:
            return Found(name, Kind.BUILTIN, None, False, wanted_by)
        if parent and parent not in self._folders:
            return None
        spaces: list[str] = []
        for folder in self._folders[parent] if parent else self._search:
            finder = self._finders.setdefault(folder, importlib.machinery.FileFinder(folder, *_LOADERS))
            spec = finder.find_spec(name)
            if spec is None:
                continue
            if spec.loader is None or spec.origin is None:
                spaces += spec.submodule_search_locations or []
                continue
            if spec.submodule_search_locations is not None:
                self._folders[name] = list(spec.submodule_search_locations)
            kind = Kind.SOURCE if isinstance(spec.loader, importlib.machinery.SourceFileLoader) else Kind.EXTENSION
            return Found(name, kind, Path(spec.origin), spec.submodule_search_locations is not None, wanted_by)
        if spaces:
            self._folders[name] = spaces
            return Found(name, Kind.NAMESPACE, None, True, wanted_by)
        return None

    def source(self, found: Found) -> bytes:
        """Return the source text of a module, or of what stands in for it."""
        if found.name in self._replaced:
            return self._replaced[found.name].encode()
        assert found.path is not None
        return found.path.read_bytes()

    def _follow(self, found: Found) -> None:
        for name in HIDDEN.get(found.name, ()):
            self._admit(name, found.name)
        if found.kind is not Kind.SOURCE:
            return
        assert found.path is not None
        in_stdlib = str(found.path).startswith(self._lib) and "-packages" not in str(found.path)
        package = found.name if found.is_package else found.name.rpartition(".")[0]
        for statement in _imports(ast.parse(self.source(found)), package):
            if statement.lazy and in_stdlib and _below(statement.name, LAZY_CUT):
                continue
            if self._admit(statement.name, found.name):
                for member in statement.members:
                    self._admit(f"{statement.name}.{member}", found.name)
            elif statement.name.partition(".")[0] in self._own:
                raise NotFoundError(f"{found.path} imports {statement.name}, which is not there; install reroot whole "
                                    "on the builder")


def _below(name: str, tops: Iterable[str]) -> bool:
    return any(name == top or name.startswith(top + ".") for top in tops)


def _imports(tree: ast.Module, package: str) -> Iterator[_Import]:
    """Yield every import statement, those for type checkers and scripts left out, relative names resolved."""
    waiting: list[tuple[ast.AST, bool]] = [(tree, False)]
    while waiting:
        node, lazy = waiting.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield _Import(alias.name, (), lazy)
        elif isinstance(node, ast.ImportFrom):
            name = _absolute(node, package)
            yield _Import(name, tuple(alias.name for alias in node.names if alias.name != "*"), lazy)
        elif isinstance(node, ast.If) and _never_here(node.test):
            waiting += [(child, lazy) for child in node.orelse]
        else:
            inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            waiting += [(child, inside) for child in ast.iter_child_nodes(node)]


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    words = package.split(".")
    base = ".".join(words[: len(words) - node.level + 1])
    return f"{base}.{node.module}" if node.module else base


def _never_here(test: ast.expr) -> bool:
    """Whether a condition is `TYPE_CHECKING` or `__name__ == "__main__"`: not true in an imported module."""
    if isinstance(test, ast.Compare):
        return isinstance(test.left, ast.Name) and test.left.id == "__name__"
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
    return name == "TYPE_CHECKING"
