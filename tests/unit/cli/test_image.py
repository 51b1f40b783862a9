"""`reroot image`, on a real site."""

import json
from pathlib import Path

import pytest

from cli.main import run
from control import site
from imaging.catalogue import Catalogue
from plumbing.run import run as run_program


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> site.Site:
    made = site.init(tmp_path / "site", "http://127.0.0.1:8080")
    monkeypatch.setenv("REROOT_SITE", str(made.root))
    return made


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "usr/bin").mkdir(parents=True)
    (top / "usr/bin/env").write_bytes(b"\x7fELF\2\1\1" + bytes(9) + b"\3\0\x3e\0" + bytes(3000))
    (top / "etc").mkdir()
    (top / "etc/machine-id").write_text("f00\n")
    return top


def test_build_list_show_verify(place: site.Site, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "list"]) == 0
    assert "reroot image build" in capsys.readouterr().out
    assert run(["image", "build", str(tree), "--name", "debian", "--version", "13"]) == 0
    assert "published as releases/debian/13/amd64.json" in capsys.readouterr().out
    assert run(["image", "list"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "RELEASE" and row.split()[0] == "debian/13/amd64" and row.split()[-2:] == ["yes", "-"]
    assert run(["image", "show", "debian/13", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["types"] == {"directory": 4, "file": 2}
    assert facts["content_bytes"] == 3020 and facts["published"] is True
    assert run(["image", "show", "debian/13/amd64"]) == 0
    assert "4 directory, 2 file" in capsys.readouterr().out
    assert run(["image", "verify"]) == 0
    assert capsys.readouterr().out == "debian/13/amd64: 2 frames, 2 files, 3.0 kB: sound\n"


def test_json_of_every_command(place: site.Site, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "build", str(tree), "--name", "d", "--version", "1", "--arch", "arm64", "--json"]) == 0
    built = json.loads(capsys.readouterr().out)
    assert (built["ref"], built["published"], built["notes"]) == ("d/1/arm64", True, [])
    published = Catalogue(place.catalogue, place.keys).listed()
    assert published["releases/d/1/arm64.json"].digest == built["digest"]
    assert run(["image", "list", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert listed["digest"] == built["digest"]
    assert run(["image", "verify", "d/1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["published"] is True


def test_excludes(place: site.Site, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = ["image", "build", str(tree), "--name", "d", "--json"]
    assert run([*build, "--version", "1", "--exclude", "/usr/bin", "--arch", "amd64"]) == 0
    assert json.loads(capsys.readouterr().out)["entries"] == 4
    assert run([*build, "--version", "2", "--no-default-excludes"]) == 0
    capsys.readouterr()
    assert run(["image", "show", "d/2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["content_bytes"] == 3024


def test_what_is_left_out_can_be_listed_and_changed(
        place: site.Site, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "excludes"]) == 0
    shown = capsys.readouterr().out
    assert "/etc/machine-id" in shown and "content" in shown and "who this host is" in shown
    listing = tmp_path / "more"
    listing.write_text("# nobody needs it\n/usr/bin\n")
    options = ["--exclude-from", str(listing), "--keep-default", "/etc/machine-id", "--exclude", "x"]
    assert run(["image", "excludes", "--json", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[-2:] == [{"pattern": "/usr/bin", "what": "tree", "reason": "nobody needs it"},
                          {"pattern": "x", "what": "tree", "reason": "--exclude"}]
    assert "/etc/machine-id" not in [one["pattern"] for one in found]
    assert run(["image", "build", str(tree), "--name", "d", "--version", "1", "--arch", "amd64", *options]) == 0
    capsys.readouterr()
    assert run(["image", "show", "d/1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["types"], facts["content_bytes"]) == ({"directory": 3, "file": 1}, 4)
    assert run(["image", "excludes", "--no-default-excludes"]) == 0
    assert capsys.readouterr().out == "nothing is left out\n"
    for wrong in (["--exclude-from", str(tmp_path)], ["--keep-default", "/x"], ["--exclude", "[z-a]"]):
        assert run(["image", "excludes", *wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_newest_release_is_the_base(place: site.Site, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def built(*words: str) -> dict[str, object]:
        assert run(["image", "build", str(tree), "--name", "d", "--json", *words]) == 0
        return dict(json.loads(capsys.readouterr().out))

    first, second = built("--version", "1"), built("--version", "2")
    assert (first["base"], first["reused_frames"]) == (None, 0)
    assert (second["base"], second["reused_frames"], second["layer_digest"]) == ("d/1/amd64", 1, first["layer_digest"])
    assert built("--version", "3", "--no-base")["base"] is None
    other = built("--version", "4", "--level", "5")
    assert other["base"] is None and other["layer_digest"] != first["layer_digest"]
    named = built("--version", "5", "--level", "5", "--base", "d/1")
    assert (named["base"], named["reused_frames"]) == ("d/1/amd64", 1)
    assert run(["image", "build", str(tree), "--name", "d", "--version", "6"]) == 0
    assert "in 1 frame taken from d/" in capsys.readouterr().out
    assert run(["image", "build", str(tree), "--name", "d", "--version", "7", "--base", "x/1"]) == 4
    assert run(["image", "build", str(tree), "--name", "d", "--version", "7", "--base", "d/1", "--no-base"]) == 2


@pytest.mark.root
def test_a_tar_is_a_source_too(
        place: site.Site, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_program(["tar", "-C", tree, "-czf", tmp_path / "root.tar.gz", "."])
    assert run(["image", "build", str(tmp_path / "root.tar.gz"), "--name", "d", "--version", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["entries"] == 6


@pytest.mark.root
def test_a_file_that_is_no_tar(place: site.Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("no tar " * 1000)
    (tmp_path / "cut.tar.gz").write_bytes(b"\x1f\x8b\x08\x00")
    assert run(["image", "build", str(tmp_path / "text"), "--name", "d", "--version", "1"]) == 2
    assert "text is not a tar or a directory" in capsys.readouterr().err
    assert run(["image", "build", str(tmp_path / "cut.tar.gz"), "--name", "d", "--version", "1"]) == 9
    said = capsys.readouterr().err
    assert "gzip: stdin: unexpected end of file" in said and "reroot-capture" not in said


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (["build", "/nowhere", "--name", "d", "--version", "1"], 2, "name a tar file or a directory"),
    (["build", "TREE", "--name", "../d", "--version", "1"], 2, "can't be a release's name"),
    (["build", "TREE", "--name", "d", "--version", "1", "--exclude", "a/b"], 2, "is no exclude"),
    (["build", "TREE", "--name", "d", "--version", "1", "--recovery", "std/1/amd64"], 4, "no recovery image"),
    (["build", "TREE/etc", "--name", "d", "--version", "1"], 2, "say --arch"),
    (["build", "TREE", "--name", "d"], 2, "--help"),
    (["show", "d/1"], 4, "reroot image list"),
    (["verify", "d/1"], 4, "reroot image list"),
])
def test_mistakes_are_one_sentence(place: site.Site, tree: Path, capsys: pytest.CaptureFixture[str],
                                   arguments: list[str], code: int, words: str) -> None:
    assert run(["image", *(word.replace("TREE", str(tree)) for word in arguments)]) == code
    captured = capsys.readouterr()
    assert words in captured.err and len(captured.err.splitlines()) == 1 and captured.out == ""


def test_no_site_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "list", "--site", str(tmp_path / "none")]) == 3
    assert "reroot init" in capsys.readouterr().err


def test_a_damaged_store_is_named(place: site.Site, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "build", str(tree), "--name", "d", "--version", "1", "--json"]) == 0
    layer = place.store / "blobs/sha256" / json.loads(capsys.readouterr().out)["layer_digest"].removeprefix("sha256:")
    data = bytearray(layer.read_bytes())
    data[20] ^= 1
    layer.write_bytes(data)
    assert run(["image", "verify", "--json"]) == 10
    assert json.loads(capsys.readouterr().err)["kind"] == "corrupt"


def test_a_store_that_lost_its_index_is_no_empty_one(
        place: site.Site, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "verify"]) == 0
    assert "nothing to verify" in capsys.readouterr().out
    assert run(["image", "build", str(tree), "--name", "d", "--version", "1"]) == 0
    index = place.store / "index.json"
    kept = index.read_bytes()
    index.unlink()
    capsys.readouterr()
    for words in (["list"], ["verify"], ["build", str(tree), "--name", "d", "--version", "2"]):
        assert run(["image", *words]) == 10
        assert "index.json" in (said := capsys.readouterr().err) and "restore it" in said
    index.write_bytes(b'{"manifests": []}')
    assert run(["image", "verify"]) == 10
    assert "releases/d/1/amd64.json" in capsys.readouterr().err
    index.write_bytes(kept)
    assert run(["image", "verify"]) == 0


def test_without_the_targets_key_the_release_waits_in_the_store(
        place: site.Site, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = place.keys / "targets.pem"
    key.rename(tmp_path / "away.pem")
    assert run(["image", "build", str(tree), "--name", "d", "--version", "1"]) == 3
    capsys.readouterr()
    assert run(["image", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["published"] is False
    assert run(["image", "verify"]) == 0
    assert "NOT in the catalogue" in capsys.readouterr().out
    (tmp_path / "away.pem").rename(key)
    assert run(["image", "build", str(tree), "--name", "d", "--version", "1"]) == 0


def test_a_catalogue_edited_without_a_key_is_refused_by_every_command(
        place: site.Site, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = ["image", "build", str(tree), "--name", "d", "--version"]
    assert run([*build, "1"]) == 0
    forged = place.catalogue / "metadata/3.targets.json"
    value = json.loads(forged.read_bytes())
    value["signed"]["targets"]["releases/evil/1/amd64.json"] = {"length": 1, "hashes": {"sha256": "0" * 64}}
    forged.write_text(json.dumps(value))
    capsys.readouterr()
    for words in ([*build, "2"], ["image", "list"], ["image", "verify"], ["image", "show", "d/1"]):
        assert run(words) == 5, words
        said = capsys.readouterr().err
        assert "3.targets.json" in said and "restore it from a backup" in said and said.count("\n") == 1
