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
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert run(["image", "apply-delta", "d/1", "d/2", str(tmp_path / "a")]) == 10
    assert "is not the one its manifest names" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "a")


def test_list_and_show(place: site.Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "list"]) == 0
    assert "DELTA" not in capsys.readouterr().out
    assert run(["image", "delta", "d/1", "d/2", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert run(["image", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "DELTA                  SIZE   PUBLISHED", f"d/1/amd64 → d/2/amd64  {made['bytes']} B  yes"]
    assert run(["image", "list", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["deltas"] == []
    (one,) = second["deltas"]
    assert (one["ref"], one["bytes"], one["published"]) == (made["ref"], made["bytes"], True)
    assert run(["image", "show", "d/1"]) == 0
    assert "delta to d/2/amd64:" in (said := capsys.readouterr().out) and f" {made['bytes']}\n" in said
    assert run(["image", "show", "d/2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["deltas"] == [one]
    assert run(["image", "show", made["ref"], "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {**one, **{key: made[key] for key in ("index_bytes", "frames", "contents", "repacked")}}
    assert run(["image", "show", made["ref"]]) == 0
    assert "contents:     1\n" in capsys.readouterr().out
    assert run(["image", "show", "deltas/d/2/amd64/d/1/amd64"]) == 4
    assert "is no delta in the store" in capsys.readouterr().err
    Catalogue(place.catalogue, place.keys).withdraw(made["target"])
    assert run(["image", "list"]) == 0
    assert capsys.readouterr().out.endswith(" B  no\n")


def test_verify_reads_deltas_back(place: site.Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "delta", "d/1", "d/2", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    sound = f"d/1/amd64 → d/2/amd64: 1 frames, 1 files, {made['bytes']} B: sound\n"
    for words in ([], ["d/2"], [made["ref"]], ["--deep"]):
        assert run(["image", "verify", *words]) == 0
        assert capsys.readouterr().out.endswith(sound)
    assert run(["image", "verify", "d/1"]) == 0
    assert sound not in capsys.readouterr().out
    for deep in (True, False):
        assert run(["image", "verify", made["ref"], "--json", *(["--deep"] if deep else [])]) == 0
        (told,) = json.loads(capsys.readouterr().out)
        assert (told["ref"], told["published"], told["lacks"], told["applied"]) == (made["ref"], True, None, deep)
    blob = Store(place.store).blob_path(made["digest"])
    kept = blob.read_bytes()
    blob.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    assert run(["image", "verify", made["ref"]]) == 10
    assert "its blob as a whole is not what the manifest names" in capsys.readouterr().err
    blob.unlink()
    for words in ([], [made["ref"]]):
        assert run(["image", "verify", *words]) == 10
        said = capsys.readouterr().err
        assert f"1 deltas that the store does not have ({made['target']})" in said and said.count("\n") == 1
    assert run(["image", "verify", "d/1"]) == 0
    Store(place.store).forget([made["ref"]])
    blob.write_bytes(kept)
    assert run(["image", "verify"]) == 10, "the catalogue names a manifest that the store does not have"
    capsys.readouterr()
    assert run(["image", "verify", made["ref"]]) == 4
    assert "is no delta in the store" in capsys.readouterr().err


def test_a_delta_without_its_old_release(place: site.Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "delta", "d/1", "d/2"]) == 0
    Catalogue(place.catalogue, place.keys).withdraw("releases/d/1/amd64.json", "deltas/d/1/amd64/d/2/amd64.json")
    Store(place.store).forget(["d/1/amd64"])
    capsys.readouterr()
    assert run(["image", "verify"]) == 0
    assert ": sound; the store has no d/1/amd64 to compare it with; NOT in the catalogue" in capsys.readouterr().out


def test_a_release_is_withdrawn_with_its_deltas(place: site.Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "delta", "d/1", "d/2"]) == 0
    capsys.readouterr()
    assert run(["image", "withdraw", "d/1"]) == 0
    assert capsys.readouterr().out.endswith("withdrawn with it: deltas/d/1/amd64/d/2/amd64\n")
    assert set(Catalogue(place.catalogue, place.keys).listed()) == {
        "orders/keys.json", "precious/keys.json", "releases/d/2/amd64.json"}
    assert run(["image", "gc", "--unpublished", "--grace-hours", "0", "--remove"]) == 0
    assert list(Store(place.store).refs()) == ["d/2/amd64"]
    assert run(["image", "verify"]) == 0
