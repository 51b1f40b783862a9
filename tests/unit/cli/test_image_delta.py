"""`reroot image delta` and `apply-delta`, on a real site."""

import json
import shutil
from pathlib import Path

import pytest

from cli.main import run
from control import site
from imaging.catalogue import Catalogue
from imaging.release import Release
from imaging.store import Store

TEXT = b"".join(b"line %d of a file that hardly changes\n" % number for number in range(3000))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> site.Site:
    made = site.init(tmp_path / "site", "http://127.0.0.1:8080")
    monkeypatch.setenv("REROOT_SITE", str(made.root))
    for version in ("1", "2"):
        top = tmp_path / f"tree{version}"
        (top / "usr/bin").mkdir(parents=True)
        (top / "usr/bin/tool").write_bytes(TEXT + version.encode())
        (top / "same").write_bytes(bytes(range(256)) * 40)
        assert run(["image", "build", str(top), "--name", "d", "--version", version, "--arch", "amd64"]) == 0
    capsys.readouterr()
    return made


def test_make_and_apply(place: site.Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "delta", "d/1", "d/2", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["target"] == "deltas/d/1/amd64/d/2/amd64.json" and made["contents"] == 1
    assert made["bytes"] < made["layer_bytes"]
    assert made["target"] in Catalogue(place.catalogue, place.keys).listed()
    assert run(["image", "delta", "d/1", "d/2"]) == 0, "the same again changes nothing"
    assert "published as deltas/" in capsys.readouterr().out
    assert run(["image", "list", "--json"]) == 0
    assert [one["ref"] for one in json.loads(capsys.readouterr().out)] == ["d/1/amd64", "d/2/amd64"]
    assert run(["image", "verify"]) == 0
    capsys.readouterr()
    assert run(["image", "apply-delta", "d/1", "d/2", str(tmp_path / "a"), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["fetched_bytes"], done["mismatches"], done["made_bytes"]) == (0, 0, len(TEXT) + 1)
    assert (tmp_path / "a/usr/bin/tool").read_bytes() == TEXT + b"2"


def test_a_living_tree(place: site.Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "delta", "d/1", "d/2"]) == 0
    (tmp_path / "tree1/same").write_bytes(b"edited")
    capsys.readouterr()
    assert run(["image", "apply-delta", "d/1", "d/2", str(tmp_path / "a"), "--tree", str(tmp_path / "tree1")]) == 0
    assert "10.2 kB of 1 files from the full release" in capsys.readouterr().out
    assert (tmp_path / "a/same").read_bytes() == bytes(range(256)) * 40


def test_without_the_new_layer_only_the_delta_is_needed(place: site.Site, tmp_path: Path) -> None:
    assert run(["image", "delta", "d/1", "d/2"]) == 0
    store = Store(place.store)
    layer = store.blob_path(Release.parse(store.manifest("d/2/amd64")).layer_digest)
    layer.write_bytes(b"\0" * layer.stat().st_size)
    assert run(["image", "apply-delta", "d/1", "d/2", str(tmp_path / "a")]) == 0


def test_mistakes(place: site.Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "delta", "d/1", "d/1"]) == 2
    assert "the same release" in capsys.readouterr().err
    assert run(["image", "delta", "d/1", "d/3"]) == 4
    assert run(["image", "apply-delta", "d/1", "d/2", str(tmp_path / "a")]) == 4
    assert "`reroot image delta` makes it" in capsys.readouterr().err
    assert run(["image", "delta", "d/1", "d/2"]) == 0
    assert run(["image", "apply-delta", "d/1", "d/2", str(tmp_path)]) == 6
    assert run(["image", "apply-delta", "d/1", "d/2", str(tmp_path / "a"), "--tree", str(tmp_path / "none")]) == 2


def test_a_damaged_delta_is_one_sentence(
    place: site.Site, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["image", "delta", "d/1", "d/2", "--json"]) == 0
    blob = Store(place.store).blob_path(json.loads(capsys.readouterr().out)["digest"])
    data = blob.read_bytes()
    blob.write_bytes(data[:-1] + b"\0")
    assert run(["image", "apply-delta", "d/1", "d/2", str(tmp_path / "a")]) == 10
    assert "is not the one its manifest names" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "a")
