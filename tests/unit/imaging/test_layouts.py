"""Export and import: folders and archives that others read too, and that are never believed."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imaging.audit import audit
from imaging.capture import capture
from imaging.layouts import bring_in, export_archive, export_folder
from imaging.release import Release
from imaging.store import Store
from plumbing.errors import CorruptError, DiskError, NotFoundError, RefusedError, RerootError, UsageError
from plumbing.run import run

REF = "d/1/amd64"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("made")
    made = Store(folder / "store")
    for version in ("1", "2"):
        (folder / "tree").mkdir(exist_ok=True)
        (folder / "tree/file").write_text(version * 5000)
        capture(folder / "tree", made, name="d", version=version, arch="amd64", excludes=())
    return made


@pytest.mark.parametrize("name", ["out", "out.tar"])
def test_there_and_back(store: Store, tmp_path: Path, name: str) -> None:
    write = export_archive if name.endswith(".tar") else export_folder
    told: list[tuple[int, int]] = []
    sent = write(store, REF, tmp_path / name, lambda _, done, total: told.append((done, total)))
    assert told[-1][0] >= told[-1][1] == sent.sent_bytes > 0
    other = Store(tmp_path / "other")
    (got,) = bring_in(other, tmp_path / name)
    assert got.pieces == sent.pieces and list(other.refs()) == [REF]
    assert audit(other, REF).files == 1
    assert {digest for digest, _ in other.blobs()} == {sent.release.digest, sent.release.layer_digest,
                                                       sent.release.config_digest}
    assert bring_in(other, tmp_path / name, "d/1")[0].sent_bytes == 0
    with pytest.raises(NotFoundError, match=r"holds no release 'd/2'; it holds d/1/amd64"):
        bring_in(other, tmp_path / name, "d/2")


def test_a_folder_gains_releases(store: Store, tmp_path: Path) -> None:
    export_folder(store, REF, tmp_path / "out")
    assert export_folder(store, REF, tmp_path / "out").sent_bytes == 0
    export_folder(store, "d/2/amd64", tmp_path / "out")
    assert [moved.release.ref for moved in bring_in(Store(tmp_path / "other"), tmp_path / "out")] == [
        REF, "d/2/amd64"]


def test_the_same_release_makes_the_same_archive(store: Store, tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        export_archive(store, REF, tmp_path / name)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with pytest.raises(RefusedError, match="exists"):
        export_archive(store, REF, tmp_path / "a.tar")


def test_skopeo_reads_and_writes_both(store: Store, tmp_path: Path) -> None:
    export_archive(store, REF, tmp_path / "out.tar")
    export_folder(store, REF, tmp_path / "out")
    digest = store.refs()[REF].digest
    for source, target in ((f"oci-archive:{tmp_path}/out.tar", f"oci:{tmp_path}/copy:any"),
                           (f"oci:{tmp_path}/out:{REF}", f"oci-archive:{tmp_path}/copy.tar")):
        assert json.loads(run(["skopeo", "inspect", source]).text)["Digest"] == digest
        run(["skopeo", "--insecure-policy", "copy", source, target])
    for name in ("copy", "copy.tar"):
        other = Store(tmp_path / f"from-{name}")
        (got,) = bring_in(other, tmp_path / name)
        assert got.release.digest == digest and list(other.refs()) == [REF]


def test_mistakes_are_told(store: Store, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(RefusedError, match="no OCI layout"):
        export_folder(store, REF, tmp_path / "full")
    with pytest.raises(RefusedError, match="the store itself"):
        export_folder(store, REF, store.path)
    with pytest.raises(UsageError, match="no file oci-layout"):
        bring_in(Store(tmp_path / "o"), tmp_path / "full")
    with pytest.raises(NotFoundError):
        bring_in(Store(tmp_path / "o"), tmp_path / "none.tar")
    with pytest.raises(DiskError):
        export_archive(store, REF, Path("/proc/none/x.tar"))


def test_a_damaged_store_is_not_exported(store: Store, tmp_path: Path) -> None:
    export_folder(store, REF, tmp_path / "copy")
    copy = Store(tmp_path / "copy")
    path = copy.blob_path(Release.parse(copy.manifest(REF)).layer_digest)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    for write, name in ((export_folder, "out"), (export_archive, "out.tar")):
        with pytest.raises(CorruptError, match="not what its name says"):
            write(copy, REF, tmp_path / name)
    assert not (tmp_path / "out.tar").exists() and Store(tmp_path / "out").refs() == {}
    assert not list(tmp_path.glob(".out.tar*"))
    with pytest.raises(CorruptError, match="another one"):
        bring_in(Store(tmp_path / "other"), tmp_path / "copy")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1), change=st.binary(min_size=1, max_size=8), cut=st.booleans())
def test_a_changed_archive_never_comes_in(
        store: Store, tmp_path: Path, at: float, change: bytes, cut: bool) -> None:
    """Whatever bytes of it are changed, the release comes in as it was or not at all."""
    if not (whole := tmp_path / "whole.tar").exists():
        export_archive(store, REF, whole)
    data = bytearray(whole.read_bytes())
    place = int(at * (len(data) - 1))
    data[place:place + len(change)] = change[:len(data) - place]
    changed = tmp_path / "changed.tar"
    changed.write_bytes(data[:place] if cut else data)
    other = Store(tmp_path / f"o-{len(list(tmp_path.iterdir()))}")
    try:
        bring_in(other, changed)
    except RerootError:
        assert not other.path.exists() or other.refs() == {}
    else:
        assert other.manifest(REF) == store.manifest(REF) and audit(other, REF).files == 1


def test_members_that_lead_elsewhere_are_not_followed(store: Store, tmp_path: Path) -> None:
    export_archive(store, REF, tmp_path / "true.tar")
    with tarfile.open(tmp_path / "true.tar") as true, tarfile.open(tmp_path / "false.tar", "w") as false:
        for member in true:
            content = true.extractfile(member)
            assert content is not None
            if member.name == "index.json":
                link = tarfile.TarInfo("index.json")
                link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
                false.addfile(link)
            else:
                false.addfile(member, io.BytesIO(content.read()))
    with pytest.raises(NotFoundError, match=r"no index\.json"):
        bring_in(Store(tmp_path / "other"), tmp_path / "false.tar")
