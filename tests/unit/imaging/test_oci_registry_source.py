"""Images in a registry as sources of a release, and registries that send something else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import docker_registry
import pytest
from layouts import INDEX, Member, blob, folder, image, layout, tar
from loopback import Handler, Server

from imaging.registry import Place, Registry
from imaging.registry_auth import Credentials
from imaging.root_sources.choose import choose
from imaging.root_sources.oci_registry import RegistryImage
from plumbing.digest import sha256
from plumbing.errors import ConfigError, CorruptError, NotFoundError, RerootError, UsageError
from plumbing.run import run

pytestmark = pytest.mark.root

LAYERS = [tar([folder("etc"), Member("etc/motd", b"hello"), Member("etc/gone", b"x")]), tar([Member("etc/.wh.gone")])]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry.serving(tmp_path_factory.mktemp("registry")) as host:
        yield host


def files(source: RegistryImage) -> dict[str, str]:
    with source.opened() as root:
        return {str(path.relative_to(root.path)): path.read_text() for path in root.path.rglob("*") if path.is_file()}


def upload(layout_folder: Path, known: Registry) -> None:
    for path in (layout_folder / "blobs/sha256").iterdir():
        with path.open("rb") as stream:
            known.upload(f"sha256:{path.name}", path.stat().st_size, stream)


def test_an_image_that_skopeo_put_there(host: str, tmp_path: Path) -> None:
    place = layout(tmp_path / "l", {"t": image(tmp_path / "l", LAYERS, packing="+gzip")})
    for more in ([], ["--format=v2s2"]):  # the same as Docker has it
        run(["skopeo", "--insecure-policy", "copy", *more, "--dest-tls-verify=false", f"oci:{place}:t",
             f"docker://{host}/os/debian:t"])
        found = choose(f"docker://{host}/os/debian:t", login=lambda text: (Place.parse(text, plain=True), None))
        assert isinstance(found, RegistryImage)
        assert files(found) == {"etc/motd": "hello"}


def test_an_index_needs_an_architecture_when_it_has_several(host: str, tmp_path: Path) -> None:
    top = tmp_path / "l"
    rows = [{**image(top, LAYERS if arch == "amd64" else LAYERS[:1], arch=arch),
             "platform": {"os": "linux", "architecture": arch}} for arch in ("amd64", "arm64")]
    index = blob(top, json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": rows}).encode(), INDEX)
    place = Place.parse(f"http://{host}/os/several:t")
    registry = Registry(place)
    upload(top, registry)
    for row in rows:
        digest = str(row["digest"])
        registry.put_manifest(digest, (top / "blobs/sha256" / digest[7:]).read_bytes())
    digest = str(index["digest"])
    registry.put_manifest("t", (top / "blobs/sha256" / digest[7:]).read_bytes(), INDEX)
    with pytest.raises(UsageError, match="there for amd64, arm64; say which with --arch"):
        files(RegistryImage(place))
    assert files(RegistryImage(place, arch="amd64")) == {"etc/motd": "hello"}
    assert files(RegistryImage(Place(place.origin, place.repository, digest), arch="arm64")) == {
        "etc/motd": "hello", "etc/gone": "x"}


def test_a_login_is_asked_for(tmp_path: Path) -> None:
    known = Credentials(*docker_registry.TOKEN_LOGIN)
    row = image(tmp_path / "l", LAYERS)
    with docker_registry.guarded(tmp_path / "r") as (host, _):
        place = Place.parse(f"http://{host}/os/debian:t")
        registry = Registry(place, known)
        upload(tmp_path / "l", registry)
        registry.put_manifest("t", (tmp_path / "l/blobs/sha256" / str(row["digest"])[7:]).read_bytes())
        with pytest.raises(ConfigError, match="no credentials"):
            files(RegistryImage(place))
        assert files(RegistryImage(place, known)) == {"etc/motd": "hello"}


def test_what_is_not_there_and_what_names_nothing(host: str) -> None:
    with pytest.raises(NotFoundError, match="is not there"):
        files(RegistryImage(Place.parse(f"http://{host}/os/none:t")))
    with pytest.raises(UsageError, match="names no image; write docker://"):
        files(RegistryImage(Place.parse(f"http://{host}/os/debian")))
    with pytest.raises(UsageError, match="no place in a registry"):
        choose("docker://registry/UPPER:t")


@pytest.mark.parametrize("lie", ["manifest", "layer", "json", "index", "config", "layers"])
def test_a_registry_that_lies_gets_nothing_in(tmp_path: Path, lie: str) -> None:
    top = tmp_path / "l"
    row = image(top, LAYERS)
    manifest = (top / "blobs/sha256" / str(row["digest"])[7:]).read_bytes()
    value = json.loads(manifest)
    if lie == "json":
        manifest = b"<html>"
    elif lie == "index":
        manifest = json.dumps({"mediaType": INDEX, "manifests": [
            {"digest": sha256(b"x"), "size": 1, "mediaType": INDEX, "platform": {"architecture": "amd64"}}]}).encode()
    elif lie == "config":
        manifest = json.dumps({**value, "config": {**value["config"], "size": 1 << 40}}).encode()
    elif lie == "layers":
        manifest = json.dumps({**value, "layers": [value["layers"][0]] * 10_000}).encode()
    with Server(tmp_path) as server:
        for path in (top / "blobs/sha256").iterdir():
            data = path.read_bytes()
            if lie == "layer" and len(data) > 5000:
                data = data[:-1] + b"!"
            server.answers[f"/v2/r/blobs/sha256:{path.name}"] = ranged(data)
        reference = sha256(b"another") if lie == "manifest" else "t"
        server.answers |= {f"/v2/r/manifests/{name}": sent(manifest) for name in (reference, sha256(b"x"))}
        with pytest.raises(RerootError) as caught:
            files(RegistryImage(Place(server.url, "r", reference)))
        assert isinstance(caught.value, CorruptError), caught.value


def ranged(data: bytes) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.ranged(data)

    return answer


def sent(data: bytes) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.send(200, data)

    return answer
