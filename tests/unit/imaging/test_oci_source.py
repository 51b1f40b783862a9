"""OCI images as sources: layers over layers as container runtimes do it, and hostile ones."""

import hashlib
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import INDEX, Member, blob, folder, image, layout, symlink, tar
from trees import CAPABILITY, describe, rich_tree

from imaging.capture import capture
from imaging.release import Release
from imaging.root_sources.choose import choose
from imaging.root_sources.oci_layers import Applier
from imaging.root_sources.oci_layout import find_image
from imaging.store import Store
from plumbing.errors import CorruptError, NotFoundError, RerootError, UsageError

pytestmark = pytest.mark.root


def tree_of(top: Path, *layers: list[Member], packing: str = "") -> dict[str, str]:
    """Apply the layers and return what is there: a file's content, a link's text, "/" for a directory."""
    place = layout(top, {"t": image(top, [tar(members) for members in layers], packing=packing)})
    with choose(f"oci:{place}").opened() as root:
        return {os.path.relpath(path, root.path): "/" if path.is_dir() and not path.is_symlink()
                else f"-> {path.readlink()}" if path.is_symlink() else path.read_text()
                for path in root.path.rglob("*")}


LOWER = [folder("etc"), Member("etc/a", b"a"), Member("etc/b", b"b"), folder("srv"), folder("srv/x"),
         Member("srv/x/1", b"1"), folder("usr"), folder("usr/bin"), symlink("bin", "usr/bin")]


@pytest.mark.parametrize(("upper", "gone", "new"), [
    ([Member("etc/.wh.a")], ["etc/a"], {}),
    ([Member(".wh.etc")], ["etc", "etc/a", "etc/b"], {}),
    ([Member("etc/.wh.nothing"), Member("none/.wh.x")], [], {}),
    ([Member("etc/c", b"c"), Member("etc/.wh..wh..opq")], ["etc/a", "etc/b"], {"etc/c": "c"}),
    ([Member("etc/.wh..wh..opq"), Member("etc/c", b"c")], ["etc/a", "etc/b"], {"etc/c": "c"}),
    ([Member("etc/a", b"new"), Member("etc/.wh.a")], [], {"etc/a": "new"}),
    ([Member("etc/.wh.a"), Member("etc/a", b"new")], [], {"etc/a": "new"}),
    ([Member("srv/x/2", b"2"), Member("srv/.wh.x")], ["srv/x/1"], {"srv/x/2": "2"}),
    ([Member("srv", b"file now")], ["srv/x", "srv/x/1"], {"srv": "file now"}),
    ([folder("etc/a")], [], {"etc/a": "/"}),
    ([folder("etc"), Member("etc/c", b"c")], [], {"etc/c": "c"}),
    ([Member("bin/sh", b"sh")], [], {"usr/bin/sh": "sh"}),
    ([folder("bin"), Member("bin/sh", b"sh")], [], {"bin": "/", "bin/sh": "sh"}),
    ([Member("bin/.wh..wh..opq")], [], {}),
    ([symlink("etc", "usr")], ["etc/a", "etc/b"], {"etc": "-> usr"}),
    ([Member("etc/.wh..wh.plnk")], [], {}),
    ([Member("/absolute", b"x"), Member("./dot/./y", b"y")], [], {"absolute": "x", "dot": "/", "dot/y": "y"}),
    ([Member("hard", kind=tarfile.LNKTYPE, link="etc/a")], [], {"hard": "a"}),
])
def test_a_layer_over_another(tmp_path: Path, upper: list[Member], gone: list[str], new: dict[str, str]) -> None:
    lower = tree_of(tmp_path / "lower", LOWER)
    expected = {path: what for path, what in lower.items() if path not in gone} | new
    assert tree_of(tmp_path / "both", LOWER, upper) == expected


@pytest.mark.parametrize("packing", ["", "+gzip", "+zstd"])
def test_every_packing(tmp_path: Path, packing: str) -> None:
    assert tree_of(tmp_path, [Member("f", b"x")], [Member("g", b"y" * 3_000_000)], packing=packing) == {
        "f": "x", "g": "y" * 3_000_000}


def test_a_release_is_an_image_and_comes_back_as_itself(tmp_path: Path) -> None:
    tree, store = rich_tree(tmp_path / "tree"), Store(tmp_path / "store")
    (tree / "sparse").unlink()  # a tar does not tell holes
    first = Release.parse(capture(tree, store, name="d", version="1", arch="amd64", excludes=()))
    with choose(f"oci:{store.path}:d/1/amd64").opened() as root:
        assert root.arch == "amd64"
        assert describe(root.path) == describe(tree)
        again = Release.parse(capture(root.path, Store(tmp_path / "other"), name="d", version="1", arch=root.arch,
                                      excludes=()))
    assert again == first


def test_what_an_inode_carries(tmp_path: Path) -> None:
    pax = {"SCHILY.xattr.security.capability": CAPABILITY.decode("utf-8", "surrogateescape"), "mtime": "5.000000007",
           "SCHILY.xattr.trusted.overlay.opaque": "y"}
    members = [Member("ping", b"x", mode=0o4755, uid=3_000_000, pax=pax), folder("d", mtime=7), Member("d/f", b""),
               Member("null", kind=tarfile.CHRTYPE), Member("fifo", kind=tarfile.FIFOTYPE, mode=0o600),
               Member("implied/f")]
    place = layout(tmp_path / "l", {"t": image(tmp_path / "l", [tar(members), tar([Member("d/g")])])})
    with choose(f"oci:{place}:t").opened() as root:
        status = (root.path / "ping").stat()
        assert (status.st_mode & 0o7777, status.st_uid, status.st_mtime_ns) == (0o4755, 3_000_000, 5_000_000_007)
        assert os.listxattr(root.path / "ping") == ["security.capability"]
        assert os.getxattr(root.path / "ping", "security.capability") == CAPABILITY
        assert (root.path / "d").stat().st_mtime == 7  # though the second layer put something in it
        assert (root.path / "implied").stat().st_mtime == root.path.stat().st_mtime == 0
        assert (root.path / "null").is_char_device() and (root.path / "fifo").is_fifo()


def test_a_sparse_file_of_gnu_tar_stays_sparse(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with (tree / "s").open("wb") as stream:
        stream.seek(300 << 20)
        stream.write(b"end")
    for style in ("posix", "gnu"):
        subprocess.run(["tar", "-C", tree, "-S", f"--format={style}", "-cf", tmp_path / "s.tar", "."], check=True)
        top = tmp_path / style
        place = layout(top, {"": image(top, [(tmp_path / "s.tar").read_bytes()])})
        with choose(f"oci:{place}").opened() as root:
            status = (root.path / "s").stat()
            assert (status.st_size, status.st_blocks * 512 < 1 << 20) == ((300 << 20) + 3, True)
            with (root.path / "s").open("rb") as stream:
                stream.seek(-4, os.SEEK_END)
                assert stream.read() == b"\0end"


def outside(top: Path) -> list[str]:
    return sorted(os.path.relpath(path, top) for path in top.rglob("*"))


@pytest.mark.parametrize("members", [
    [Member("../up", b"x")], [Member("a/../../up", b"x")], [folder("../d")], [Member("../.wh.victim")],
    [Member(".wh...", b"")], [Member("etc/.wh.."), folder("etc")], [Member("a/.wh.")],
    [Member("h", kind=tarfile.LNKTYPE, link="../victim")], [Member("h", kind=tarfile.LNKTYPE, link="nowhere")],
    [symlink("loop", "loop"), Member("loop/x", b"")], [symlink("a", "b"), symlink("b", "a"), folder("a/x")],
    [Member("f", b""), Member("f/x", b"")], [Member("n" * 256, b"")], [folder("d/" * 2500)],
])
def test_hostile_members_are_refused(tmp_path: Path, members: list[Member]) -> None:
    (tmp_path / "victim").write_text("here")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    place = layout(tmp_path / "l", {"": image(tmp_path / "l", [tar([folder("a"), *members])])})
    before = outside(tmp_path)
    with pytest.raises(CorruptError), choose(f"oci:{place}", scratch=scratch).opened():
        pass
    assert outside(tmp_path) == before


def test_symlinks_lead_as_after_chroot(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "kept").write_text("kept")
    members = [symlink("abs", str(victim)), symlink("up", "../../../../../.." + str(victim)), Member("abs/new", b"1"),
               Member("up/more", b"2"), Member("abs/.wh..wh..opq"), Member("h", kind=tarfile.LNKTYPE, link="abs/new")]
    found = tree_of(tmp_path / "l", members)
    inner = os.path.relpath(victim, "/")
    assert (found[f"{inner}/new"], found[f"{inner}/more"], found["h"]) == ("1", "2", "1")
    assert outside(victim) == ["kept"]


names = st.sampled_from(["a", "b", "a/b", "a/b/c", "l", "l/x", "..", "../a", "/a", ".wh.a", "a/.wh..wh..opq", "a/.wh.b",
                         "l/.wh.x", ".", "", "a/./b", ".wh..wh..opq", ".wh..", "x" * 300])
members = st.builds(
    lambda name, kind, link: Member(name, b"x" if kind == tarfile.REGTYPE else b"", kind, link, 0o755), names,
    st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]),
    st.sampled_from(["a", "/", "..", "../../..", "b", "a/b", "/etc", "../../etc/passwd", "l"]))


@settings(max_examples=150)
@given(st.lists(st.lists(members, max_size=6), min_size=1, max_size=3))
def test_whatever_layers_say_nothing_outside_changes(layers: list[list[Member]]) -> None:
    with tempfile.TemporaryDirectory() as folder_name:
        top = Path(folder_name)
        (top / "beside").mkdir()
        (top / "beside/kept").write_text("kept")
        tree = top / "tree"
        tree.mkdir()
        descriptors = len(os.listdir("/proc/self/fd"))
        try:
            with Applier(tree) as applier:
                for number, layer in enumerate(layers):
                    raw = tar(layer)
                    (top / f"layer{number}").write_bytes(raw)
                    applier.apply(top / f"layer{number}", "tar", f"sha256:{hashlib.sha256(raw).hexdigest()}")
                applier.finish()
        except CorruptError:
            pass
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert {path.name for path in top.iterdir()} <= {"beside", "tree", *(f"layer{n}" for n in range(3))}
        assert (top / "beside/kept").read_text() == "kept"


@settings(max_examples=150)
@given(st.integers(0, 5 * 512), st.binary(min_size=1, max_size=40))
def test_a_damaged_tar_is_an_error_of_ours(place: int, noise: bytes) -> None:
    raw = bytearray(tar([folder("a"), Member("a/f", b"y" * 600, pax={"SCHILY.xattr.user.x": "1"}), symlink("l", "a")]))
    raw[place:place + len(noise)] = noise
    with tempfile.TemporaryDirectory() as folder_name:
        top = Path(folder_name)
        (top / "tree").mkdir()
        (top / "layer").write_bytes(raw)
        try:
            with Applier(top / "tree") as applier:
                applier.apply(top / "layer", "tar", f"sha256:{hashlib.sha256(raw).hexdigest()}")
                applier.finish()
        except RerootError as error:
            assert error.exit_code in {8, 10}


def test_digests_are_checked(tmp_path: Path) -> None:
    raw = tar([Member("f", b"x")])
    harms: list[tuple[str, Callable[[bytes], bytes], str]] = [
        ("+gzip", lambda data: data[:-1] + b"?", "not what its name says"),
        ("", lambda data: data + bytes(512), "longer or shorter"),
        ("", lambda data: data[:-512], "longer or shorter")]
    for number, (packing, harm, words) in enumerate(harms):
        top = tmp_path / str(number)
        place = layout(top, {"": image(top, [raw], packing=packing)})
        biggest = max((top / "blobs/sha256").iterdir(), key=lambda path: (path.read_bytes()[:2] == b"\x1f\x8b",
                                                                          path.stat().st_size))
        biggest.write_bytes(harm(biggest.read_bytes()))
        with pytest.raises(CorruptError, match=words), choose(f"oci:{place}").opened():
            pass
    top = tmp_path / "diff"
    place = layout(top, {"": image(top, [raw], diff_ids=[f"sha256:{'0' * 64}"])})
    with pytest.raises(CorruptError, match="unpacks to something else"), choose(f"oci:{place}").opened():
        pass


def test_which_image(tmp_path: Path) -> None:
    one, two = (image(tmp_path, [tar([Member(name, b"")])], arch=arch) for name, arch in (("1", "amd64"), ("2", "386")))
    both = blob(tmp_path, json.dumps({"manifests": [
        {**one, "platform": {"architecture": "amd64", "os": "linux"}},
        {**two, "platform": {"architecture": "386", "os": "linux"}},
        {**one, "platform": {"architecture": "amd64", "os": "windows"}}]}).encode(), INDEX)
    place = layout(tmp_path, {"x:1": one, "both": both})
    with choose(f"oci:{place}:x:1").opened() as root:
        assert root.arch == "amd64" and (root.path / "1").exists()
    with choose(f"oci:{place}:both", arch="i386").opened() as root:
        assert root.arch == "i386" and (root.path / "2").exists()
    for name, kind, words in (("", UsageError, "several images.*both, x:1"), (":y", NotFoundError, "both, x:1"),
                              (":both", UsageError, "amd64, i386; say which with --arch")):
        with pytest.raises(kind, match=words), choose(f"oci:{place}{name}").opened():
            pass
    for name in ("oci:/nowhere", f"oci:{tmp_path / 'blobs'}", "oci:"):
        with pytest.raises(UsageError, match="no OCI image layout"):
            choose(name)
    with pytest.raises(UsageError, match="write oci:"):
        choose(str(place))


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(
    inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["manifests", "digest", "size", "mediaType", "layers", "config", "rootfs", "diff_ids", "annotations"]), inner))


@settings(max_examples=200)
@given(json_values)
def test_any_index_is_an_answer_or_one_sentence(value: object) -> None:
    with tempfile.TemporaryDirectory() as folder_name:
        (Path(folder_name) / "index.json").write_text(json.dumps(value))
        with pytest.raises(RerootError):
            find_image(Path(folder_name), None, None)
