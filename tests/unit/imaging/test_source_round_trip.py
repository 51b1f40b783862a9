"""Any tree, through a release, comes back as the same release: by GNU tar and by the layers of its OCI image."""

import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.capture import capture
from imaging.release import Release
from imaging.root_sources.choose import choose
from imaging.store import Store
from plumbing.run import run

pytestmark = pytest.mark.root

names = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.sampled_from([b"n" * 255, b"a b", b"-rf", b"new\nline", b"\xff\xfe", b"tab\t", b"="]),
).map(lambda name: name.replace(b"\0", b"0").replace(b"/", b"_")).filter(
    lambda name: name not in {b".", b".."} and not name.startswith(b".wh."))
numbers = st.one_of(st.integers(0, 70_000), st.sampled_from([2_097_151, 2_097_152, 4_294_967_294]))
times = st.one_of(st.integers(-10**9, 2 * 10**9).map(lambda s: s * 10**9), st.integers(-10**18, 4 * 10**18))
attributes = st.dictionaries(st.sampled_from(["user.a", "user.b=c%d", "trusted.t", "user.grün"]),
                             st.binary(max_size=60), max_size=2)


@dataclass(frozen=True)
class Thing:
    """One name of a tree; `where` says in which of the folders before it, or to which file a hard link leads."""

    kind: str
    where: int
    name: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: dict[str, bytes]
    content: bytes
    text: bytes


things = st.lists(st.builds(
    Thing, st.sampled_from(["file", "file", "file", "folder", "folder", "symlink", "hard link", "fifo", "device"]),
    st.integers(0, 8), names, st.integers(0, 0o7777), numbers, numbers, times, attributes, st.binary(max_size=3000),
    st.binary(min_size=1, max_size=300).map(lambda text: text.replace(b"\0", b"0"))), max_size=14)


def make(tree: Path, made: list[Thing]) -> None:
    """Make a tree of these things; what cannot be is left out."""
    tree.mkdir()
    folders, files, stamps = [tree], list[Path](), [(tree, 10**18)]
    for thing in made:
        path = folders[thing.where % len(folders)] / os.fsdecode(thing.name)
        if os.path.lexists(path) or (thing.kind == "hard link" and not files):
            continue
        match thing.kind:
            case "file":
                path.write_bytes(thing.content)
                files.append(path)
            case "folder":
                path.mkdir()
                folders.append(path)
            case "symlink":
                path.symlink_to(os.fsdecode(thing.text))
            case "hard link":
                os.link(files[thing.where % len(files)], path)
                continue
            case "fifo":
                os.mkfifo(path)
            case "device":
                os.mknod(path, stat.S_IFCHR, os.makedev(thing.where, 300))
        os.lchown(path, thing.uid, thing.gid)
        if thing.kind != "symlink":
            path.chmod(thing.mode)
        for key, value in thing.xattrs.items():
            if thing.kind in {"file", "folder"} or key.startswith("trusted"):
                os.setxattr(path, key, value, follow_symlinks=False)
        stamps.append((path, thing.mtime_ns))
    for path, time_ns in reversed(stamps):
        os.utime(path, ns=(0, time_ns), follow_symlinks=False)


def released(tree: Path, store: Path) -> Release:
    return Release.parse(capture(tree, Store(store), name="d", version="1", arch="amd64", excludes=()))


@settings(max_examples=60)
@given(things)
def test_any_tree_comes_back_as_the_same_release(made: list[Thing]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        make(top / "tree", made)
        first = released(top / "tree", top / "store")
        with choose(f"oci:{top / 'store'}").opened() as root:
            assert released(root.path, top / "by-image") == first
        (top / "layer.tar.zst").write_bytes(Store(top / "store").blob_path(first.layer_digest).read_bytes())
        with choose(str(top / "layer.tar.zst"), arch="amd64").opened() as root:
            assert released(root.path, top / "by-tar") == first
        run(["rm", "-rf", top / "tree"])
