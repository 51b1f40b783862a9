"""`reroot image push` and `pull`, between two sites and a real registry."""

import json
from collections.abc import Iterator
from pathlib import Path

import docker_registry
import pytest

from cli.main import run
from control import site
from imaging.catalogue import Catalogue
from imaging.store import Store


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry.serving(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture
def sites(tmp_path: Path) -> tuple[site.Site, site.Site]:
    """Two sites; the first has the release d/1+2/arm64."""
    first, second = (site.init(tmp_path / name, "http://127.0.0.1:8080") for name in ("first", "second"))
    (tmp_path / "tree/etc").mkdir(parents=True)
    (tmp_path / "tree/etc/motd").write_bytes(b"hello")
    build = ["image", "build", str(tmp_path / "tree"), "--name", "d", "--version", "1+2", "--arch", "arm64"]
    assert run([*build, "--site", str(first.root)]) == 0
    return first, second


def test_from_site_to_site(registry: str, sites: tuple[site.Site, site.Site],
                           capsys: pytest.CaptureFixture[str]) -> None:
    first, second = sites
    capsys.readouterr()
    place = f"{registry}/os/d"
    assert run(["image", "push", "d/1+2", place, "--plain-http", "--site", str(first.root)]) == 0
    said = capsys.readouterr().out
    assert f"d/1+2/arm64 is {place}:1_2-arm64\nmanifest sha256:" in said and "sent, 0 B were there" in said
    assert run(["image", "push", "d/1+2/arm64", f"http://{place}:x", "--json", "--site", str(first.root)]) == 0
    assert json.loads(capsys.readouterr().out)["moved_bytes"] == 0

    assert run(["image", "pull", f"http://{place}:x", "--site", str(second.root)]) == 0
    assert "no host takes it yet; the same command with --sign" in capsys.readouterr().out
    catalogue = Catalogue(second.catalogue, second.keys)
    assert "releases/d/1+2/arm64.json" not in catalogue.listed()
    assert run(["image", "pull", f"http://{place}:x", "--sign", "--json", "--site", str(second.root)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["published"], told["moved_bytes"]) == (True, 0)
    assert catalogue.listed()["releases/d/1+2/arm64.json"].digest == told["digest"]
    assert run(["image", "verify", "--site", str(second.root)]) == 0


def test_signing_needs_the_key(registry: str, sites: tuple[site.Site, site.Site],
                               capsys: pytest.CaptureFixture[str]) -> None:
    first, second = sites
    assert run(["image", "push", "d/1+2", f"http://{registry}/os/e:1", "--site", str(first.root)]) == 0
    (second.keys / "targets.pem").unlink()
    assert run(["image", "pull", f"http://{registry}/os/e:1", "--sign", "--site", str(second.root)]) == 3
    assert "of the role targets are needed" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (["push", "d/1+2", "r/B"], 2, "no place in a registry"), (["push", "none/1", "r/b"], 4, "reroot image list"),
    (["push", "d/1+2", "127.0.0.1:1/b", "--authfile", "/nowhere"], 3, "skopeo"),
    (["pull", "PLACE"], 4, "skopeo list-tags"),
])
def test_mistakes_are_one_sentence(registry: str, sites: tuple[site.Site, site.Site], arguments: list[str], code: int,
                                   words: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    arguments = [word.replace("PLACE", f"http://{registry}/none") for word in arguments]
    assert run(["image", *arguments, "--site", str(sites[0].root)]) == code
    said = capsys.readouterr()
    assert words in said.err and len(said.err.splitlines()) == 1 and said.out == ""


def test_a_pull_without_a_tag_names_the_tags(registry: str, sites: tuple[site.Site, site.Site],
                                             capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "push", "d/1+2", f"http://{registry}/os/f", "--site", str(sites[0].root)]) == 0
    assert run(["image", "pull", f"http://{registry}/os/f", "--site", str(sites[1].root)]) == 2
    assert "add one of its tags: 1_2-arm64" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out", "out.tar"])
def test_by_hand(sites: tuple[site.Site, site.Site], tmp_path: Path, capsys: pytest.CaptureFixture[str],
                 name: str) -> None:
    first, second = sites
    capsys.readouterr()
    assert run(["image", "export", "d/1+2", str(tmp_path / name), "--site", str(first.root)]) == 0
    assert f"d/1+2/arm64 is in {tmp_path / name}" in capsys.readouterr().out
    assert run(["image", "import", str(tmp_path / name), "--sign", "--site", str(second.root)]) == 0
    assert "published as releases/d/1+2/arm64.json" in capsys.readouterr().out
    assert run(["image", "import", str(tmp_path / name), "--json", "--site", str(second.root)]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["published"], told["moved_bytes"]) == (True, 0)
    assert run(["image", "import", str(tmp_path / name), "e/1", "--site", str(second.root)]) == 4
    assert "it holds d/1+2/arm64" in capsys.readouterr().err


DELTA = "deltas/p/1/amd64/p/2/amd64"


@pytest.fixture
def paired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[site.Site, site.Site]:
    """Two sites; the first has p/1, p/2 and the delta between them."""
    first, second = (site.init(tmp_path / name, "http://127.0.0.1:8080") for name in ("from", "to"))
    for version in ("1", "2"):
        built(first, tmp_path / f"p{version}", version, TEXT + version.encode())
    assert run(["image", "delta", "p/1", "p/2", "--site", str(first.root)]) == 0
    capsys.readouterr()
    return first, second


TEXT = b"".join(b"line %d\n" % number for number in range(3000))


def built(place: site.Site, tree: Path, version: str, content: bytes) -> None:
    tree.mkdir()
    (tree / "file").write_bytes(content)
    assert run(["image", "build", str(tree), "--name", "p", "--version", version, "--arch", "amd64", "--site",
                str(place.root)]) == 0


def test_a_delta_is_signed_when_both_its_ends_are(
        registry: str, paired: tuple[site.Site, site.Site], capsys: pytest.CaptureFixture[str]) -> None:
    first, second = paired
    place, to = f"http://{registry}/os/p", ["--site", str(second.root)]
    for version in ("1", "2"):
        assert run(["image", "push", f"p/{version}", f"{place}:{version}", "--site", str(first.root)]) == 0
    catalogue = Catalogue(second.catalogue, second.keys)
    capsys.readouterr()
    assert run(["image", "pull", f"{place}:2", "--sign", *to]) == 0
    assert (f"not signed is {DELTA}: p/1/amd64 is not signed; sign it first; hosts fetch frames instead\n"
            in capsys.readouterr().out)
    assert f"{DELTA}.json" not in catalogue.listed()
    assert run(["image", "pull", f"{place}:1", *to]) == 0
    capsys.readouterr()
    assert run(["image", "pull", f"{place}:2", "--sign", "--json", *to]) == 0
    assert json.loads(capsys.readouterr().out)["deltas"] == [
        {"ref": DELTA, "published": False, "reason": "p/1/amd64 is not signed; sign it first"}]
    assert run(["image", "pull", f"{place}:1", "--sign", *to]) == 0
    assert run(["image", "pull", f"{place}:2", "--sign", *to]) == 0
    said = capsys.readouterr().out
    assert f"published as {DELTA}.json\n" in said and "not signed" not in said
    assert catalogue.listed()[f"{DELTA}.json"].digest == Store(first.store).refs()[DELTA].digest
    assert run(["image", "verify", "--deep", *to]) == 0
    capsys.readouterr()
    assert run(["image", "pull", f"{place}:2", "--json", *to]) == 0
    assert json.loads(capsys.readouterr().out)["deltas"] == [{"ref": DELTA, "published": True, "reason": None}]


def test_a_delta_from_another_build_is_not_signed(
        registry: str, paired: tuple[site.Site, site.Site], tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = paired
    built(second, tmp_path / "own", "1", b"another p/1")
    assert run(["image", "push", "p/2", f"http://{registry}/os/q:2", "--site", str(first.root)]) == 0
    capsys.readouterr()
    assert run(["image", "pull", f"http://{registry}/os/q:2", "--sign", "--site", str(second.root)]) == 0
    said = capsys.readouterr().out
    assert f"not signed is {DELTA}: {DELTA} joins other builds of these releases" in said
    assert "published as releases/p/2/amd64.json" in said
    assert f"{DELTA}.json" not in Catalogue(second.catalogue, second.keys).listed()


@pytest.mark.parametrize("name", ["out", "out.tar"])
def test_what_is_imported_together_is_signed_together(
        paired: tuple[site.Site, site.Site], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    first, second = paired
    for version in ("2", "1") if name == "out" else ("2",):
        assert run(["image", "export", f"p/{version}", str(tmp_path / name), "--site", str(first.root)]) == 0
    capsys.readouterr()
    assert run(["image", "import", str(tmp_path / name), "--sign", "--json", "--site", str(second.root)]) == 0
    told = {one["ref"]: one for one in json.loads(capsys.readouterr().out)}
    (delta,) = told["p/2/amd64"]["deltas"]
    assert delta["published"] is (name == "out") and told["p/2/amd64"]["published"]
    assert (f"{DELTA}.json" in Catalogue(second.catalogue, second.keys).listed()) is (name == "out")
    assert run(["image", "verify", "--site", str(second.root)]) == 0


@pytest.mark.parametrize("command", ["show", "verify", "delta", "withdraw", "push"])
def test_what_is_no_release_is_not_taken_for_one(sites: tuple[site.Site, site.Site], command: str,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(sites[0].store)
    manifest = b'{"schemaVersion":2,"artifactType":"application/vnd.example","config":%s,"layers":[]}' % json.dumps(
        {"mediaType": "application/vnd.oci.empty.v1+json", "digest": store.add_bytes(b"{}"), "size": 2}).encode()
    store.put_manifest("recovery/d/1/amd64", manifest)
    more = {"delta": ["d/1+2"], "push": ["http://127.0.0.1:9/os/d"]}.get(command, [])
    assert run(["image", command, "recovery/d/1/amd64", *more, "--site", str(sites[0].root)]) == 4
    assert "is not a release" in capsys.readouterr().err
