"""Push and pull against Debian's registry, with skopeo as the second opinion in both directions."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import docker_registry
import pytest
from trees import describe

from control.files import Library
from imaging import transfer
from imaging.bundle import listed
from imaging.capture import capture
from imaging.delta_manifest import DeltaManifest
from imaging.fetch import FrameFetcher
from imaging.registry import Place, Registry
from imaging.registry_auth import Credentials, challenge, find
from imaging.release import MANIFEST_TYPE, Release, canonical
from imaging.restore import restore
from imaging.sources import FileSource
from imaging.store import INDEX_TYPE, Store
from plumbing.digest import sha256
from plumbing.errors import (
    ConfigError,
    CorruptError,
    DiskError,
    NetworkError,
    NotFoundError,
    RefusedError,
    RerootError,
    TrustError,
    UsageError,
)
from plumbing.run import run

REF = "debian/13.1+deb1/amd64"
DELTA = f"deltas/debian/12/amd64/{REF}"


def never(_seconds: float) -> None:
    """Nothing waits in a test."""


def no_progress(_what: str, _done: int, _total: int) -> None:
    """Hear nothing."""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry.serving(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "etc").mkdir(parents=True)
    (top / "etc/motd").write_text("hello\n")
    (top / "big").write_bytes(os.urandom(5_000_000))
    return top


@pytest.fixture
def store(tmp_path: Path, tree: Path) -> Store:
    """A store with a release, its recovery image and a delta to it."""
    made = Store(tmp_path / "store")
    layers = [{"digest": made.add_bytes(text.encode()), "size": len(text), "mediaType": "application/octet-stream",
               "annotations": {"org.opencontainers.image.title": text}}
              for text in ("vmlinuz", "initrd.img", "grub-boot.img", "grub-core.img", "grubx64.efi", "runtime.tar.zst",
                           "ledger.json")]
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": made.add_bytes(b"{}"), "size": 2}
    plain = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": empty}
    made.put_manifest("recovery/std/1/amd64", canonical({
        **plain, "artifactType": "application/vnd.reroot.recovery.v1", "layers": layers,
        "annotations": {"org.opencontainers.image.title": "std", "org.opencontainers.image.version": "1",
                        "dev.reroot.arch": "amd64"}}))
    manifest = capture(tree, made, name="debian", version="13.1+deb1", arch="amd64", excludes=(),
                       recovery="recovery/std/1/amd64.json")
    made.put_manifest("delta/x", canonical({
        **plain, "layers": [{"mediaType": "application/octet-stream", "digest": made.add_bytes(b"delta"), "size": 5}],
        "subject": {"mediaType": MANIFEST_TYPE, "digest": sha256(manifest), "size": len(manifest)}}))
    delta = DeltaManifest("debian/12/amd64", REF, made.add_bytes(b"delta"), 5, 0, 5, sha256(b"delta")).manifest()
    for ref in (DELTA, f"deltas/debian/11/amd64/{REF}"):  # the second under a wrong name
        made.put_manifest(ref, delta)
    made.put_manifest(f"deltas/debian/10/amd64/{REF}", canonical({**plain, "layers": [], "annotations": {
        "dev.reroot.old": "debian/10/amd64", "dev.reroot.new": REF}}))  # it does not say that it is a delta
    made.put_manifest("recovery/other/1/amd64", canonical({**plain, "layers": []}))
    return made


def at(host: str, repository: str, **options: object) -> Registry:
    return Registry(Place.parse(f"http://{host}/{repository}"), pause=never, **options)  # type: ignore[arg-type]


def contents(store: Store) -> dict[str, bytes]:
    return {digest: store.blob_path(digest).read_bytes() for digest, _ in store.blobs()}


def test_push_and_pull(registry: str, store: Store, tree: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    sent = transfer.push(store, REF, at(registry, "os/debian"), "13", lambda *step: told.append(step))
    assert [piece.ref for piece in sent.pieces] == ["recovery/std/1/amd64", "delta/x", DELTA, REF]
    assert sent.sent_bytes > 5_000_000 and not sent.there_bytes
    assert all(done <= total for _, done, total in told)
    again = transfer.push(store, REF, at(registry, "os/debian"), "13-too")
    assert (again.sent_bytes, again.there_bytes) == (0, sent.sent_bytes)

    other = Store(tmp_path / "other")
    got = transfer.receive(other, at(registry, "os/debian"), "13", progress=no_progress)
    assert got.pieces == sent.pieces and got.sent_bytes == sent.sent_bytes
    assert list(other.refs()) == [REF, "delta/x", DELTA, "recovery/std/1/amd64"]
    before = contents(store)
    assert all(before[digest] == data for digest, data in contents(other).items())
    assert transfer.receive(other, at(registry, "os/debian"), got.release.digest).sent_bytes == 0
    restores(other, tree, tmp_path / "restored")


def restores(store: Store, tree: Path, target: Path) -> None:
    release = Release.parse(store.manifest(REF))
    source = FileSource(store.blob_path(release.layer_digest))
    index = release.read_index(source.read(release.index_offset, release.index_length))
    target.mkdir()
    restore(index, FrameFetcher([source]), target)
    assert describe(tree) == describe(target)


def test_skopeo_reads_what_was_pushed(registry: str, store: Store, tree: Path, tmp_path: Path) -> None:
    transfer.push(store, REF, at(registry, "skopeo/reads"), "13")
    place = f"docker://{registry}/skopeo/reads:13"
    seen = json.loads(run(["skopeo", "inspect", "--tls-verify=false", place]).text)
    release = Release.parse(store.manifest(REF))
    assert (seen["Digest"], seen["Architecture"], seen["Layers"]) == (release.digest, "amd64", [release.layer_digest])
    layout = tmp_path / "layout"
    run(["skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", place, f"oci:{layout}:any"])
    copied = Store(layout)
    assert copied.read_json_blob(release.digest) == store.manifest(REF)
    assert contents(copied).items() <= contents(store).items()
    copied.put_manifest(REF, store.manifest(REF))
    restores(copied, tree, tmp_path / "restored")


def test_what_skopeo_pushed_is_pulled(registry: str, store: Store, tmp_path: Path, tree: Path) -> None:
    """Straight from the store, which is an OCI layout."""
    run(["skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", f"oci:{store.path}:{REF}",
         f"docker://{registry}/skopeo/pushes:13"])
    other = Store(tmp_path / "other")
    got = transfer.receive(other, at(registry, "skopeo/pushes"), "13")
    assert got.release.digest == store.refs()[REF].digest and list(other.refs()) == [REF]
    restores(other, tree, tmp_path / "restored")


def test_a_site_serves_the_list_of_artefacts_too(store: Store, tmp_path: Path) -> None:
    """A store is pulled from like a registry; see tests/unit/control/test_control_content.py."""
    library = Library(store.path, tmp_path, tmp_path)
    answer = library.find("/v2/debian/manifests/13.1_deb1-amd64-artefacts")
    assert [ref for ref, _ in listed(answer.body)] == ["recovery/std/1/amd64", "delta/x", DELTA]
    assert (answer.path, answer.content_type) == (None, INDEX_TYPE)
    for none in ("13.2-amd64-artefacts", "-artefacts"):
        with pytest.raises(NotFoundError):
            library.find(f"/v2/debian/manifests/{none}")


def test_an_upload_that_was_cut_goes_on(registry: str, store: Store) -> None:
    """The first attempt dies after two chunks; the second sends only what is missing."""
    release = Release.parse(store.manifest(REF))
    client, steps = at(registry, "os/cut", chunk_bytes=1 << 20), list[tuple[int, str]]()

    def die(done: int, location: str) -> None:
        steps.append((done, location))
        if done >= 2 << 20:
            raise KeyboardInterrupt

    with store.blob_path(release.layer_digest).open("rb") as content, pytest.raises(KeyboardInterrupt):
        client.upload(release.layer_digest, release.layer_size, content, told=die)
    more: list[int] = []
    with store.blob_path(release.layer_digest).open("rb") as content:
        at(registry, "os/cut", chunk_bytes=1 << 20).upload(
            release.layer_digest, release.layer_size, content, begun=steps[-1][1],
            told=lambda done, _: more.append(done))
    assert more[0] == 2 << 20
    assert at(registry, "os/cut").has_blob(release.layer_digest)
    with store.blob_path(release.config_digest).open("rb") as content:  # a forgotten upload begins anew
        client.upload(release.config_digest, release.config_size, content, begun=steps[0][1].replace("-", "0"))


def test_push_goes_on_after_it_was_killed(registry: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    def die(_what: str, done: int, _total: int) -> None:
        if done > 2 << 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transfer.push(store, REF, at(registry, "os/killed", chunk_bytes=1 << 20), "13", die)
    assert len(list((store.path / ".partial").iterdir())) == 1
    transfer.push(store, REF, at(registry, "os/killed", chunk_bytes=1 << 20), "13",
                  lambda _what, done, _total: told.append(done))
    assert told[0] >= 2 << 20
    assert not list((store.path / ".partial").iterdir())


def test_a_pull_that_was_cut_goes_on(registry: str, store: Store, tmp_path: Path) -> None:
    transfer.push(store, REF, at(registry, "os/half"), "13")
    release, other = Release.parse(store.manifest(REF)), Store(tmp_path / "other")

    def die(_what: str, done: int, _total: int) -> None:
        if done >= 4 << 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transfer.receive(other, at(registry, "os/half"), "13", progress=die)
    (half,) = (other.path / ".partial").iterdir()
    assert half.stat().st_size == 4 << 20 and other.refs() == {}
    told: list[int] = []
    got = transfer.receive(other, at(registry, "os/half"), "13", progress=lambda _what, done, _: told.append(done))
    assert min(told) > 4 << 20 and not list((other.path / ".partial").iterdir())
    # A crash can leave anything under that name: it is fetched again, once.
    other.blob_path(release.layer_digest).rename(half)
    half.write_bytes(bytes(1000))
    transfer.receive(other, at(registry, "os/half"), "13")
    assert sha256(other.blob_path(release.layer_digest).read_bytes()) == got.release.layer_digest


@pytest.mark.root
def test_a_full_disk_keeps_what_came_and_publishes_nothing(registry: str, store: Store, tmp_path: Path) -> None:
    transfer.push(store, REF, at(registry, "os/full"), "13")
    disk = tmp_path / "disk"
    disk.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk])
    try:
        other = Store(disk / "store")
        with pytest.raises(DiskError, match=r"full; nothing was published, and what came is kept"):
            transfer.receive(other, at(registry, "os/full"), "13")
        assert other.refs() == {}
        run(["mount", "-o", "remount,size=30m", disk])
        got = transfer.receive(other, at(registry, "os/full"), "13")
        assert got.release.ref == REF and REF in other.refs()
    finally:
        run(["umount", disk])


class Liar:
    """A registry that changes what it sends."""

    def __init__(self, registry: Registry, manifests: dict[str, bytes], blob: bytes | None = None) -> None:
        self._registry, self._manifests, self._blob = registry, manifests, blob

    def manifest(self, reference: str) -> bytes:
        return self._manifests.get(reference) or self._registry.manifest(reference)

    def blob(self, digest: str, size: int, offset: int) -> Iterator[bytes]:
        return self._registry.blob(digest, size, offset) if self._blob is None else iter([self._blob])


def test_nothing_false_comes_in(registry: str, store: Store, tmp_path: Path) -> None:
    true = at(registry, "os/lies")
    transfer.push(store, REF, true, "13")
    digest, other = store.refs()[REF].digest, Store(tmp_path / "other")
    foreign = canonical({"manifests": [{"digest": store.refs()["recovery/other/1/amd64"].digest, "annotations": {
        "org.opencontainers.image.ref.name": "recovery/std/1/amd64"}}]})
    lies: list[tuple[Liar, str, type[RerootError]]] = [
        (Liar(true, {digest: store.manifest("delta/x")}), digest, TrustError),
        (Liar(true, {"13": store.manifest("delta/x")}), "13", CorruptError),
        (Liar(true, {"13": b"[]"}), "13", CorruptError),
        (Liar(true, {"13-artefacts": b"{}"}), "13", CorruptError),
        (Liar(true, {"13-artefacts": foreign, store.refs()["recovery/other/1/amd64"].digest: b"{}"}), "13",
         CorruptError),
        (Liar(true, {}, b"x"), "13", CorruptError),
        (Liar(true, {}, bytes(9_000_000)), "13", CorruptError)]
    for liar, reference, kind in lies:
        with pytest.raises(kind):
            transfer.receive(other, liar, reference)
        assert not other.path.exists() or (other.refs() == {} and not contents(other))
    # A list of artefacts names another release: it is not taken in.
    stray = canonical({"manifests": [{"digest": digest, "annotations": {
        "org.opencontainers.image.ref.name": "debian/99/amd64"}}]})
    got = transfer.receive(other, Liar(true, {"13-artefacts": stray}), "13")
    assert [piece.ref for piece in got.pieces] == [REF] and list(other.refs()) == [REF]


def test_mistakes_are_told(registry: str, store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"skopeo list-tags docker://.*/os/none"):
        transfer.receive(Store(tmp_path / "o"), at(registry, "os/none"), "13")
    with pytest.raises(NetworkError, match="the same command goes on"):
        Registry(Place.parse("http://127.0.0.1:1/a:1"), pause=never).manifest("1")
    with pytest.raises(RefusedError, match="in clear"):
        Registry(Place.parse("http://registry.example.org/a"), Credentials("a", "b"))
    transfer.push(store, REF, at(registry, "os/tags"), "13")
    assert at(registry, "os/tags").tags() == ["13", "13-artefacts"]
    release = Release.parse(store.manifest(REF))
    store.blob_path(release.layer_digest).unlink()
    with pytest.raises(NotFoundError, match="build the release again"):
        transfer.push(store, REF, at(registry, "os/lost"), "13")


@pytest.mark.parametrize(("text", "shown", "origin"), [
    ("r.example.org/os/debian:13", "r.example.org/os/debian:13", "https://r.example.org"),
    ("http://127.0.0.1:5000/a", "127.0.0.1:5000/a", "http://127.0.0.1:5000"),
    ("docker://[::1]:5000/a/b@" + sha256(b""), "[::1]:5000/a/b@" + sha256(b""), "https://[::1]:5000"),
])
def test_places(text: str, shown: str, origin: str) -> None:
    place = Place.parse(text)
    assert (str(place), place.origin) == (shown, origin)


@pytest.mark.parametrize("text", ["", "debian", "r/", "r/A", "r/a:", "r/a:-", "r/a@sha256:1", "r/../a", "u:p@r/a", "ftp://r/a",
                                  "r/a b", "r/a?x", "http:///a", "r/a:13\n"])
def test_bad_places(text: str) -> None:
    with pytest.raises(UsageError, match="no place in a registry"):
        Place.parse(text)


def test_a_password_is_asked_for_and_found(store: Store, tmp_path: Path) -> None:
    (passwords := tmp_path / "htpasswd").write_text(docker_registry.PASSWORDS)
    with docker_registry.serving(tmp_path / "r", auth={"htpasswd": {"realm": "r", "path": str(passwords)}}) as host:
        for wrong in (None, Credentials("ops", "wrong"), Credentials(token="x")):
            with pytest.raises(ConfigError, match="skopeo login"):
                transfer.push(store, REF, Registry(Place.parse(f"http://{host}/a"), wrong, pause=never), "1")
        file = tmp_path / "auth.json"
        run(["skopeo", "login", "--tls-verify=false", "--authfile", file, "-u", "ops", "--password-stdin", host],
            stdin=b"secret")
        known = find(host, "a", {}, file)
        transfer.push(store, REF, Registry(Place.parse(f"http://{host}/a"), known, pause=never), "1")
        assert "secret" not in repr(known)


def test_https(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", tmp_path / "key.pem",
         "-out", tmp_path / "cert.pem"])
    tls = {"certificate": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    with docker_registry.serving(tmp_path / "r", http={"tls": tls}) as host:
        with pytest.raises(NetworkError, match="certificate verify failed"):
            transfer.push(store, REF, Registry(Place.parse(f"{host}/a"), pause=never), "1")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        transfer.push(store, REF, Registry(Place.parse(f"{host}/a"), pause=never), "1")
        got = transfer.receive(Store(tmp_path / "other"), Registry(Place.parse(f"{host}/a"), pause=never), "1")
        assert got.release.ref == REF


def test_challenges() -> None:
    asked = challenge('Bearer realm="https://auth.example.org/token",service="reg\\"istry",scope="repository:a:pull"')
    assert asked.scheme == "bearer" and asked.parameters["realm"] == "https://auth.example.org/token"
    assert asked.token_query("other") == "service=reg%22istry&scope=repository%3Aa%3Apull"
    assert challenge("").scheme == "" and challenge("Basic realm=x").parameters == {"realm": "x"}


def test_where_passwords_come_from(tmp_path: Path) -> None:
    def encoded(both: str) -> dict[str, str]:
        return {"auth": base64.b64encode(both.encode()).decode()}

    file = tmp_path / ".docker/config.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"auths": {"h:1": encoded("a:b:c"), "h:1/os": encoded("d:e"), "n": {}}}))
    home = {"HOME": str(tmp_path)}
    assert find("h:1", "x/y", home) == Credentials("a", "b:c")
    assert find("h:1", "os/y", home) == Credentials("d", "e")
    assert find("other", "os/y", home) is find("n", "os", home) is find("h:1", "x", {}) is None
    assert find("h:1", "x", {**home, "REROOT_REGISTRY_AUTH": "u:p\n"}) == Credentials("u", "p")
    assert find("h:1", "x", {**home, "REROOT_REGISTRY_TOKEN": "t"}) == Credentials(token="t")
    assert find("h:1", "x", {"REGISTRY_AUTH_FILE": str(file), "REROOT_REGISTRY_AUTH": ""}) == Credentials("a", "b:c")
    for text in ("[]", "{", '{"auths": 1}', '{"auths": {"h:1": {"auth": "?"}}}',
                 '{"auths": {"h:1": {"auth": "YQ=="}}}'):
        file.write_text(text)
        with pytest.raises(ConfigError):
            find("h:1", "x", home)
    with pytest.raises(ConfigError, match="skopeo"):
        find("h:1", "x", {}, tmp_path / "none")
    with pytest.raises(ConfigError, match="USER:PASSWORD"):
        find("h:1", "x", {"REROOT_REGISTRY_AUTH": "only-a-user"})


def test_a_token_server_is_asked(store: Store, tmp_path: Path) -> None:
    with docker_registry.guarded(tmp_path / "r") as (host, tokens):
        known = Credentials(*docker_registry.TOKEN_LOGIN)
        transfer.push(store, REF, Registry(Place.parse(f"http://{host}/os/a"), known, pause=never), "1")
        asked = {tuple(sorted(scope.removeprefix("repository:os/a:").split(","))) for scope in tokens.given}
        assert asked == {("pull",), ("pull", "push")}  # the registry has them in any order
