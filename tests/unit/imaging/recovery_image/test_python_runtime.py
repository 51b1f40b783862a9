"""One small runtime of the interpreter that runs the tests, made once, moved and run from where it was moved to."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import ko
import pytest

import plumbing
from imaging import recovery_manifest
from imaging.recovery_image import build, contents, kernel, python_runtime
from imaging.recovery_image.build import Recipe
from imaging.recovery_image.contents import file
from imaging.recovery_image.initramfs import Compression, compress
from imaging.recovery_image.ledger import Budget, Ledger
from imaging.recovery_image.python_runtime import HOME, Runtime
from imaging.store import Store
from plumbing.errors import CorruptError, NotFoundError, RefusedError, UsageError
from plumbing.run import Completed, run

SOURCE = Path(plumbing.__file__).parents[1]
ROOTS = ("plumbing.*",)
Python = Callable[..., Completed]


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return python_runtime.assemble(SOURCE, ROOTS)


@pytest.fixture(scope="module")
def home(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runtime in a place with a space in its name: it must work anywhere."""
    top = tmp_path_factory.mktemp("first")
    contents.write_folder(runtime.items, top)
    moved = tmp_path_factory.mktemp("moved") / "some where"
    (top / HOME).rename(moved)
    return moved


@pytest.fixture
def python(home: Path) -> Python:
    def call(*words: str, check: bool = True) -> Completed:
        return run([*python_runtime.argv(str(home), "x")[:-2], *words], env={"PATH": "/nowhere"}, check=check)
    return call


def test_a_host_can_open_a_session(python: Python) -> None:
    code = ("from plumbing import session as s; a, b = s.new_key(), s.new_key(); p = s.public_of(a), s.public_of(b); "
            "one, other = s.agree(a, p[1], 'h', 'i', p), s.agree(b, p[0], 'h', 'i', p); "
            "print(one.digest('GET', '/', '1', b'') == other.digest('GET', '/', '1', b''))")
    assert python("-c", code).text == "True\n"


def test_it_proves_itself_and_imports_the_rooms(runtime: Runtime) -> None:
    times = python_runtime.prove(runtime)
    assert {"zstandard", "blake3", "cryptography", "tuf", "interpreter", "reroot"} == set(times)
    assert "plumbing.http" in runtime.roots and "plumbing" in runtime.roots


def test_no_code_from_outside_the_folder_is_loaded(home: Path, python: Python) -> None:
    script = ("import sys,json,plumbing.hostauth,zstandard,blake3,socket\n"
              "maps={l.split(None,5)[5].strip() for l in open('/proc/self/maps') if '/' in l and 'x' in l.split()[1]}\n"
              "print(json.dumps([sorted(maps),sys.path,[m.__file__ for m in sys.modules.values() "
              "if getattr(m,'__file__',None)]]))")
    maps, path, files = json.loads(python("-c", script).stdout)
    outside = [name for name in [*maps, *path, *files] if not name.startswith((f"{home}/", "/dev/"))]
    assert outside == []


def test_no_trace_of_the_builder_is_carried(runtime: Runtime) -> None:
    """Neither paths of the checkout nor of the virtual environment: they would differ from builder to builder."""
    for path in {str(SOURCE).encode() + b"/", sys.prefix.encode() + b"/"} - {b"/usr/"}:
        assert [item.path for item in runtime.items if item.path.endswith(".pyc") and path in item.data] == []


def test_modules_are_compiled_unchecked_and_lie_where_sources_would(runtime: Runtime) -> None:
    modules = [item for item in runtime.items if item.path.endswith(".pyc")]
    assert len(modules) > 200
    for item in modules:
        assert item.data[:4] == importlib.util.MAGIC_NUMBER and item.data[4:8] == b"\1\0\0\0"
        assert "__pycache__" not in item.path
    assert not [item.path for item in runtime.items if item.path.endswith(".py")]


def test_what_is_left_out_stays_out(runtime: Runtime, python: Python) -> None:
    assert not {"ssl", "urllib3", "typer", "fastapi", "pydoc", "elftools"} & set(runtime.modules)
    assert not [name for name in runtime.libraries if name.startswith(("libssl", "libcrypto"))]
    failed = python("-c", "from tuf.ngclient.urllib3_fetcher import Urllib3Fetcher; Urllib3Fetcher()", check=False)
    assert b"carries no urllib3" in failed.stderr


def test_a_traceback_and_a_name_lookup_work(python: Python) -> None:
    failed = python("-c", "import plumbing.run; plumbing.run.run(['/no/such/program'])", check=False)
    assert failed.status == 1 and b"is not installed on this machine" in failed.stderr
    assert b'"app/plumbing/run.py", line' in failed.stderr


def test_the_launcher_for_people_works_through_a_link(home: Path, tmp_path: Path) -> None:
    (tmp_path / "rr").symlink_to(home / "bin/reroot-python")
    assert run([tmp_path / "rr", "-c", "print(6*7)"]).text == "42\n"


def test_two_assemblies_are_the_same_bytes(runtime: Runtime) -> None:
    script = ("import sys,hashlib; from pathlib import Path\n"
              "from imaging.recovery_image import python_runtime as p, contents\n"
              "print(hashlib.sha256(contents.as_tar(p.assemble(Path(sys.argv[1]), sys.argv[2:]).items)).hexdigest())")
    where = {**os.environ, "PYTHONPATH": str(SOURCE)}
    digests = {run([sys.executable, "-c", script, SOURCE, *ROOTS], env=where | {"PYTHONHASHSEED": seed}).text
               for seed in ("1", "2")}
    assert len(digests) == 1


def test_shipped_data_of_a_room_is_carried(tmp_path: Path) -> None:
    for name, text in (("precious/__init__.py", ""), ("precious/defaults/base.toml", "a = 1\n"),
                       ("precious/inner/__init__.py", ""), ("precious/inner/own.txt", "x"), ("precious/x.pyi", "")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    made = python_runtime.assemble(tmp_path, ("precious.*",))
    app = {item.path.removeprefix(f"{HOME}/app/") for item in made.items if item.path.startswith(f"{HOME}/app/")}
    assert app == {"precious/__init__.pyc", "precious/defaults/base.toml", "precious/inner/__init__.pyc",
                   "precious/inner/own.txt"}


def test_a_missing_room_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="holds no recovery"):
        python_runtime.assemble(tmp_path, ("recovery.*",))


def test_a_room_that_does_not_import_is_named(tmp_path: Path) -> None:
    (tmp_path / "precious.py").write_text("raise RuntimeError('broken on purpose')\n")
    with pytest.raises(CorruptError, match="RuntimeError: broken on purpose"):
        python_runtime.assemble(tmp_path, ("precious",))


def test_a_runtime_that_lacks_a_module_does_not_pass(runtime: Runtime) -> None:
    items = tuple(item for item in runtime.items if not item.path.endswith("/email/generator.pyc"))
    with pytest.raises(CorruptError, match=r"does not work .*No module named 'email\.generator'"):
        python_runtime.prove(Runtime(items, runtime.libraries, runtime.modules, runtime.roots))


def recipe(folder: Path, **wanted: object) -> Recipe:
    ko.tree(folder)
    wanted = {"budget": Budget(1 << 30, 1 << 30), **wanted}  # packed fast, not small
    return Recipe("debian", "1", "amd64", kernel.from_root(folder), b'{"root": 1}', roots=ROOTS, level=1,
                  **wanted)  # type: ignore[arg-type]


def test_an_image_is_published_whole_and_read_back(tmp_path: Path) -> None:
    said: list[str] = []
    extra = file("etc/reroot/note", b"hello", part="configuration", why="test")
    wanted = recipe(tmp_path / "kernel", extra=(extra,))
    made = build.make(wanted, said.append)
    store = Store(tmp_path / "store")
    manifest = build.publish(store, wanted, made)
    assert store.manifest(recovery_manifest.ref("debian", "1", "amd64")) == manifest
    found = recovery_manifest.parts(manifest)
    assert set(found) == set(recovery_manifest.TITLES)
    for title, (digest, size) in found.items():
        assert store.blob_path(digest).stat().st_size == size == len(made.parts[title])
    assert store.blob_path(found["vmlinuz"][0]).read_bytes() == b"kernel 6.9.0-1-test"
    with tarfile.open(fileobj=io.BytesIO(_unzstd(made.parts["runtime.tar.zst"]))) as tar:
        names = tar.getnames()
    assert f"{HOME}/bin/python3" in names and all(name.startswith("usr") for name in names)
    listing = run(["busybox", "cpio", "-t"], stdin=_unzstd(made.parts["initrd.img"])).text.splitlines()
    assert {"init", "etc/reroot/root.json", "etc/reroot/note", "bin/busybox", f"{HOME}/bin/python3",
            "lib64/ld-linux-x86-64.so.2", "lib/modules/6.9.0-1-test/modules.dep"} <= set(listing)
    weighed = Ledger.from_json(made.parts["ledger.json"])
    assert weighed == made.ledger and weighed.packed_bytes == len(made.parts["initrd.img"])
    assert all(line.why for line in weighed.lines)
    assert any("not there: " in line for line in said)


def test_over_the_budget_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"over its budget of 1024 KiB \(heaviest: "):
        build.make(recipe(tmp_path, budget=Budget(1 << 20, 1 << 30)))


def test_wrong_names_and_other_manifests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not for 'vax'"):
        build.make(Recipe("a", "1", "vax", kernel.Kernel("x", tmp_path, tmp_path, ""), b""))
    for other in (b"", b"{}", b'{"artifactType": "application/vnd.reroot.recovery.v1"}', b"[]"):
        with pytest.raises(CorruptError, match="no recovery image's manifest"):
            recovery_manifest.parts(other)
    short = json.dumps({"artifactType": recovery_manifest.ARTIFACT_TYPE, "layers": []}).encode()
    with pytest.raises(CorruptError, match="has no vmlinuz"):
        recovery_manifest.parts(short)


def _unzstd(data: bytes) -> bytes:
    assert data[:4] == compress(b"", Compression.ZSTD, 1)[:4]
    return run(["zstd", "-dc", "--long=31"], stdin=data).stdout
