"""Run in a fresh interpreter: imports modules for real and prints which others came along.

Import statements do not show what C code imports. Reads {"source", "hidden", "replaced", "names"} as JSON from
standard input: a folder for sys.path, modules to pretend missing, stand-in sources, and what to import.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
from collections.abc import Collection, Mapping


class _Instead(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds hidden modules nowhere, and replaced ones in their stand-in source."""

    def __init__(self, hidden: Collection[str], replaced: Mapping[str, str]) -> None:
        self._hidden = frozenset(hidden)
        self._replaced = replaced

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        """Answer for the modules this object knows."""
        if name in self._hidden:
            raise ModuleNotFoundError(f"{name} is not carried", name=name)
        return importlib.util.spec_from_loader(name, self) if name in self._replaced else None

    def get_source(self, fullname: str) -> str:
        """Return the stand-in."""
        return self._replaced[fullname]


def main() -> None:
    """Import what standard input names."""
    job = json.load(sys.stdin)
    before = set(sys.modules)
    sys.meta_path.insert(0, _Instead(job["hidden"], job["replaced"]))
    sys.path.insert(0, job["source"])
    for name in job["names"]:
        importlib.import_module(name)
    print(json.dumps(sorted(set(sys.modules) - before)))


if __name__ == "__main__":
    main()
