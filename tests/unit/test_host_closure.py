"""What the host side can ever import, late imports included: nothing of a server (docs/map.md)."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
ROOMS = {"imaging", "recovery", "precious", "throttle", "rollout", "fleet", "control", "cli", "lab", "plumbing"}
ALLOWED = {"zstandard", "blake3", "cryptography", "tuf", "securesystemslib", "pyroute2"}
STARTS = ("fleet.agent", *(".".join(path.relative_to(TOP).with_suffix("").parts) for room in ("recovery", "precious")
                           for path in (TOP / room).rglob("*.py") if path.name != "__init__.py"))
"""The agent, and all of recovery and precious: recovery imports its phases by name."""


def source(module: str) -> Path | None:
    base = TOP.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(_without_type_checking(ast.parse(path.read_text("utf-8")))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def _without_type_checking(tree: ast.Module) -> ast.Module:
    class Strip(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            self.generic_visit(node)
            return node.orelse if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node

    stripped = Strip().visit(tree)
    assert isinstance(stripped, ast.Module)
    return stripped


def closure() -> tuple[set[str], dict[str, set[str]]]:
    """Return the product modules reached, and each foreign top-level package with who imports it."""
    ours: set[str] = set()
    foreign: dict[str, set[str]] = {}
    todo = list(STARTS)
    while todo:
        module = todo.pop()
        path = source(module)
        if module in ours or path is None:
            continue
        ours.add(module)
        if "." in module:
            todo.append(module.rpartition(".")[0])
        for name in imports(path):
            top = name.partition(".")[0]
            if top in ROOMS:
                todo.append(name)
            elif top not in sys.stdlib_module_names:
                foreign.setdefault(top, set()).add(module)
    return ours, foreign


def test_the_host_side_imports_only_what_the_runtime_carries() -> None:
    ours, foreign = closure()
    assert {"recovery.init", "fleet.agent", "imaging.restore", "precious.putback", "throttle.client"} <= ours
    assert not {name: who for name, who in foreign.items() if name not in ALLOWED}


def test_no_room_of_the_server_is_reached() -> None:
    ours, _ = closure()
    assert not {module for module in ours if module.partition(".")[0] in {"control", "cli", "lab", "rollout"}}
    assert not {module for module in ours if module.startswith(("imaging.recovery_image", "imaging.catalogue"))}


def test_recovery_runs_nothing_of_a_release_before_it_was_verified() -> None:
    """Fault 16: before its verification the new root's path is never handed to a program that would run its files."""
    for module in closure()[0]:
        path = source(module)
        assert path is not None
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in {"chroot", "switch_root", "pivot_root"}, module


def test_every_text_encoding_the_host_side_names_is_in_the_runtime() -> None:
    """A codec is imported by name at its first use, so the module graph cannot see it."""
    from imaging.recovery_image.module_graph import ALWAYS

    carried = {name.removeprefix("encodings.").replace("_", "") for name in ALWAYS}
    named: dict[str, str] = {}
    for module in closure()[0]:
        path = source(module)
        assert path is not None
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args
                    and node.func.attr in {"encode", "decode", "read_text", "write_text"}
                    and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)):
                named[node.args[0].value.replace("-", "").replace("_", "")] = module
    assert "utf16le" in named
    assert not {name: module for name, module in named.items() if name not in carried | {"latin1"}}
