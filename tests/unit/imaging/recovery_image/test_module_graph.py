from __future__ import annotations

import sys
from pathlib import Path

import pytest

from imaging.recovery_image.module_graph import Kind, ModuleGraph
from plumbing.errors import NotFoundError


def graph(folder: Path, files: dict[str, str], **wanted: object) -> ModuleGraph:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return ModuleGraph([str(folder), *filter(None, sys.path)], **wanted)  # type: ignore[arg-type]


def test_absolute_relative_and_lazy_imports_are_followed(tmp_path: Path) -> None:
    found = graph(tmp_path, {
        "room/__init__.py": "", "room/a.py": "from . import b\nfrom .sub import c as d\nimport struct\n",
        "room/b.py": "def later():\n    from room import e\n", "room/sub/__init__.py": "",
        "room/sub/c.py": "import json\n", "room/e.py": "", "room/unused.py": "",
    })
    found.add_root("room.a", "test")
    assert {"room", "room.b", "room.sub", "room.sub.c", "room.e", "struct", "json.decoder"} <= set(found.found)
    assert "room.unused" not in found.found
    assert found.found["room.e"].wanted_by == "room.b"


def test_imports_for_type_checkers_and_scripts_are_not(tmp_path: Path) -> None:
    found = graph(tmp_path, {
        "a.py": "import typing\nfrom typing import TYPE_CHECKING\n"
                "if TYPE_CHECKING:\n    import b\nelse:\n    import c\n"
                "if typing.TYPE_CHECKING:\n    import b\nif __name__ == '__main__':\n    import b\n",
        "b.py": "", "c.py": "",
    })
    found.add_root("a", "test")
    assert "c" in found.found and "b" not in found.found


def test_excluded_names_are_never_followed_and_replaced_ones_are_read_instead(tmp_path: Path) -> None:
    found = graph(tmp_path, {"a.py": "import heavy.part\nimport swap\n", "heavy/__init__.py": "", "heavy/part.py": "",
                             "swap.py": "import heavy\n", "light.py": ""},
                  excluded=["heavy"], replaced={"swap": "import light\n"})
    found.add_root("a", "test")
    assert {"swap", "light"} <= set(found.found) and not any(name.startswith("heavy") for name in found.found)
    assert found.source(found.found["swap"]) == b"import light\n"


def test_lazy_imports_of_the_standard_library_do_not_bring_help_and_test_frameworks(tmp_path: Path) -> None:
    found = graph(tmp_path, {"a.py": "import heapq, http.client, email.message, logging, concurrent.futures\n"})
    found.add_root("a", "test")
    assert not {"doctest", "pdb", "unittest", "multiprocessing", "xml", "asyncio"} & set(found.found)
    assert "email.generator" in found.found  # lazy, and needed by every mail


def test_an_open_import_of_a_cut_module_wins(tmp_path: Path) -> None:
    found = graph(tmp_path, {"a.py": "import zipfile\n"})
    found.add_root("a", "test")
    assert "zipfile" in found.found


def test_namespaces_and_extensions(tmp_path: Path) -> None:
    found = graph(tmp_path, {"space/one.py": "import blake3\n"})
    found.add_root("space.one", "test")
    assert found.found["space"].kind is Kind.NAMESPACE and found.found["space"].path is None
    assert found.found["blake3.blake3"].kind is Kind.EXTENSION


def test_what_c_code_imports_is_known(tmp_path: Path) -> None:
    found = graph(tmp_path, {"a.py": "import datetime, socket\nimport cryptography.hazmat.bindings._rust\n"})
    found.add_root("a", "test")
    assert {"_strptime", "encodings.idna", "cryptography.hazmat.primitives.asymmetric.ed25519"} <= set(found.found)


def test_a_missing_root_and_a_missing_room_are_errors_and_a_missing_library_is_not(tmp_path: Path) -> None:
    found = graph(tmp_path, {"a.py": "try:\n    import nowhere\nexcept ImportError:\n    pass\n",
                             "b.py": "def late():\n    import room.gone\n", "room/__init__.py": ""}, own=["room"])
    found.add_root("a", "test")
    with pytest.raises(NotFoundError, match=r"no Python module gone \(test\)"):
        found.add_root("gone", "test")
    with pytest.raises(NotFoundError, match=r"b\.py imports room\.gone, which is not there"):
        found.add_root("b", "test")
