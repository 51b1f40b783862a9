"""What a host believes: a real catalogue behind a real server, attacked in the ways that TUF is there for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback import Handler, Server, drip
from tuf.api.metadata import Metadata

from imaging import keys, trusted
from imaging.catalogue import DAY, LIFETIME_S, Catalogue
from imaging.trusted import TrustedCatalogue
from plumbing import clock
from plumbing.errors import DiskError, NetworkError, NotFoundError, TrustError

TARGET = "releases/debian/13.1/amd64.json"


class Site:
    """A catalogue, the server in front of it and a host's cache."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder = folder
        self.server = server
        self.catalogue = Catalogue(folder / "www", folder / "keys")
        self.catalogue.create()
        self.root = self.catalogue.root_json()
        self.cache = folder / "cache"
        self.catalogue.publish(TARGET, b"manifest 1")

    def host(self, root: bytes | None = None) -> TrustedCatalogue:
        url = self.server.url
        return TrustedCatalogue(root or self.root, f"{url}/metadata/", f"{url}/targets", self.cache)

    def fetch(self) -> bytes:
        host = self.host()
        try:
            return host.fetch(TARGET)
        finally:
            host.close()

    def refuses(self, match: str) -> None:
        with pytest.raises(TrustError, match=match):
            self.fetch()

    def file(self, name: str) -> Path:
        return self.catalogue.folder / "metadata" / name

    def save(self) -> Path:
        return Path(shutil.copytree(self.catalogue.folder, self.folder / "saved"))

    def put_back(self, saved: Path) -> None:
        shutil.rmtree(self.catalogue.folder)
        shutil.copytree(saved, self.catalogue.folder)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "www").mkdir()
    with Server(tmp_path / "www") as server:
        yield Site(tmp_path, server)


def signed_again(site: Site, name: str, change: dict[str, object], role: str, key: Path | None = None) -> bytes:
    """Return a metadata file with `change` in its signed part, signed by `key` (the role's when None)."""
    value = json.loads(site.file(name).read_bytes())
    value["signed"] |= change
    metadata = Metadata.from_dict(value)
    metadata.sign(keys.load_signer(key or site.catalogue.keys / f"{role}.pem"))
    return metadata.to_bytes()


def test_fetch_and_newer_versions(site: Site) -> None:
    assert site.fetch() == b"manifest 1"
    site.catalogue.publish_all({TARGET: b"manifest 2", "orders/keys.json": b"{}"})
    assert site.fetch() == b"manifest 2"
    assert site.host().fetch("orders/keys.json") == b"{}"


def test_one_object_sees_one_state(site: Site) -> None:
    host = site.host()
    host.refresh()
    site.catalogue.publish(TARGET, b"manifest 2")
    assert host.fetch(TARGET) == b"manifest 1"
    host.close()


def test_a_cached_target_is_not_fetched_again_but_checked(site: Site) -> None:
    site.fetch()
    asked = len(site.server.requests)
    site.fetch()
    assert not any("targets/releases" in path for path, _ in site.server.requests[asked:])
    (cached,) = (site.cache / "targets").iterdir()
    cached.write_bytes(b"manifest X")
    assert site.fetch() == b"manifest 1"


def test_unlisted_target(site: Site) -> None:
    with pytest.raises(NotFoundError, match=r"releases/none\.json is not in the catalogue"):
        site.host().fetch("releases/none.json")


def test_rollback_is_refused(site: Site) -> None:
    saved = site.save()
    site.catalogue.publish(TARGET, b"manifest 2")
    site.fetch()
    site.put_back(saved)
    site.refuses(r"timestamp\.json is older than what this host has seen")


def test_rollback_of_targets_under_a_new_timestamp_is_refused(site: Site) -> None:
    """Whoever stole the online keys still can't bring back old targets."""
    site.catalogue.publish(TARGET, b"manifest 2")
    site.fetch()
    old = {"targets.json": {"version": 2}}
    forged = signed_again(site, "3.snapshot.json", {"version": 9, "meta": old}, "snapshot")
    site.file("9.snapshot.json").write_bytes(forged)
    meta = {"snapshot.json": {"version": 9}}
    forged = signed_again(site, "timestamp.json", {"version": 9, "meta": meta}, "timestamp")
    site.file("timestamp.json").write_bytes(forged)
    site.refuses(r"9\.snapshot\.json is older")


def test_freeze_is_refused_when_the_timestamp_expires(tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    with Server(tmp_path / "www") as server:
        site = Site(tmp_path, server)
        site.catalogue.publish(TARGET, b"old", clock.wall() - LIFETIME_S["timestamp"] - DAY)
        site.refuses(r"timestamp\.json has expired .* clock says 20")
        site.catalogue.refresh()
        assert site.fetch() == b"old"


@pytest.mark.parametrize(("role", "name"), [("snapshot", "snapshot.json"), ("targets", "targets.json")])
def test_every_role_expires(site: Site, role: str, name: str) -> None:
    site.catalogue.publish(TARGET, b"old", clock.wall() - LIFETIME_S[role] - DAY)
    if role == "targets":  # the online roles alone signed anew, as somebody without the targets key could
        catalogue = Catalogue(site.catalogue.folder, site.catalogue.keys)
        with catalogue._locked():
            catalogue._commit(catalogue._load(), clock.wall(), snapshot=True)
    else:
        meta = json.loads(site.file("timestamp.json").read_bytes())["signed"]["meta"]
        fresh = {"version": 50, "expires": clock.iso(clock.wall() + DAY), "meta": meta}
        site.file("timestamp.json").write_bytes(signed_again(site, "timestamp.json", fresh, "timestamp"))
    site.refuses(rf"{name} has expired")


def test_expired_root_is_refused(site: Site) -> None:
    site.catalogue.set_keys("timestamp", [keys.load_signer(site.catalogue.keys / "timestamp.pem").public_key], 1,
                            clock.wall() - LIFETIME_S["root"] - DAY)
    site.catalogue.refresh()
    site.refuses("root.json is expired")


def test_mix_and_match_is_refused(site: Site) -> None:
    site.catalogue.publish(TARGET, b"manifest 2")
    shutil.copy(site.file("2.targets.json"), site.file("3.targets.json"))
    site.refuses(r"3\.targets\.json is not what the signed metadata says")


def test_a_target_of_other_bytes_is_refused(site: Site) -> None:
    for path in (site.catalogue.folder / "targets").rglob("*.json"):
        path.write_bytes(b"manifest X")
    site.refuses(r"amd64\.json is not what the signed metadata says")


@pytest.mark.parametrize("name", ["timestamp.json", "2.snapshot.json", "2.targets.json"])
def test_endless_data_stops_at_the_limit(site: Site, name: str) -> None:
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not handler.server.stop.is_set():
            handler.wfile.write(b" " * 65536)

    site.server.answers[f"/metadata/{name}"] = endless
    site.refuses(f"{name} sends more than its signed length")


def test_dripping_data_stops_at_the_deadline(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trusted, "DEADLINE_S", 0.2)
    site.server.answers["/metadata/timestamp.json"] = drip
    with pytest.raises(NetworkError, match=r"too slowly|timed out"):
        site.fetch()


def test_below_threshold_is_refused(site: Site) -> None:
    second = keys.make_key(site.catalogue.keys / "timestamp.second.pem")
    first = keys.load_signer(site.catalogue.keys / "timestamp.pem")
    site.catalogue.set_keys("timestamp", [first.public_key, second.public_key], 2)
    assert site.fetch() == b"manifest 1"
    value = json.loads(site.file("timestamp.json").read_bytes())
    value["signatures"].pop()
    site.file("timestamp.json").write_bytes(json.dumps(value).encode())
    shutil.rmtree(site.cache)
    site.refuses("lacks valid signatures of the role timestamp")


def test_one_key_twice_does_not_reach_a_threshold(site: Site) -> None:
    second = keys.make_key(site.catalogue.keys / "timestamp.second.pem")
    first = keys.load_signer(site.catalogue.keys / "timestamp.pem")
    site.catalogue.set_keys("timestamp", [first.public_key, second.public_key], 2)
    value = json.loads(site.file("timestamp.json").read_bytes())
    value["signatures"][1] = value["signatures"][0]
    site.file("timestamp.json").write_bytes(json.dumps(value).encode())
    site.refuses("timestamp.json")


def test_another_key_is_refused(site: Site) -> None:
    stranger = site.folder / "stranger.pem"
    keys.make_key(stranger)
    site.file("timestamp.json").write_bytes(signed_again(site, "timestamp.json", {"version": 9}, "timestamp", stranger))
    site.refuses("lacks valid signatures of the role timestamp")


def test_another_site_is_refused(site: Site, tmp_path: Path) -> None:
    other = Catalogue(tmp_path / "other", tmp_path / "other-keys")
    other.create()
    with pytest.raises(TrustError, match="lacks valid signatures"):
        site.host(other.root_json()).fetch(TARGET)


def test_rotated_keys_are_followed_and_old_ones_worth_nothing(site: Site) -> None:
    site.fetch()
    old = site.folder / "old.pem"
    shutil.copy(site.catalogue.keys / "timestamp.pem", old)
    for role in ("root", "targets", "snapshot", "timestamp", "root"):
        site.catalogue.rotate(role)
    site.catalogue.publish(TARGET, b"manifest 2")
    assert site.fetch() == b"manifest 2", "a host with the first root follows"
    assert site.host(site.catalogue.root_json()).fetch(TARGET) == b"manifest 2", "a host with the newest too"
    site.file("timestamp.json").write_bytes(signed_again(site, "timestamp.json", {"version": 99}, "timestamp", old))
    site.refuses("lacks valid signatures of the role timestamp")


def test_a_new_root_without_the_old_key_is_refused(site: Site) -> None:
    stranger = site.folder / "stranger.pem"
    keys.make_key(stranger)
    site.file("2.root.json").write_bytes(signed_again(site, "1.root.json", {"version": 2}, "root", stranger))
    site.refuses("lacks valid signatures of the role root")


def test_a_root_version_cannot_be_skipped(site: Site) -> None:
    site.file("2.root.json").write_bytes(signed_again(site, "1.root.json", {"version": 3}, "root"))
    site.refuses(r"2\.root\.json")


@pytest.mark.parametrize("junk", [b"", b"{}", b"[]", b"\xff", b'{"signed":{},"signatures":[]}', b"[" * 100_000])
def test_junk_is_one_sentence(site: Site, junk: bytes) -> None:
    site.file("timestamp.json").write_bytes(junk[:16_000])
    site.refuses(r"timestamp\.json")


def test_a_useless_root_json_says_so(site: Site) -> None:
    with pytest.raises(TrustError, match=r"root\.json"):
        site.host(b"{}").refresh()


def test_a_broken_cache_heals(site: Site) -> None:
    site.fetch()
    for name in ("timestamp.json", "snapshot.json", "targets.json"):
        (site.cache / name).write_bytes(b"")
    assert site.fetch() == b"manifest 1"


def test_a_cache_that_cannot_be_written_is_a_disk_error(site: Site) -> None:
    site.cache.write_bytes(b"a file")
    with pytest.raises(DiskError, match="cache"):
        site.fetch()


def test_a_clock_before_reroot_existed_fails_closed(site: Site) -> None:
    url = site.server.url
    host = TrustedCatalogue(site.root, f"{url}/metadata", f"{url}/targets", site.cache, now=lambda: 0.0)
    with pytest.raises(TrustError, match=r"1970-01-01T00:00:00Z.* set the clock"):
        host.fetch(TARGET)


def test_a_dead_server_is_a_network_error(site: Site) -> None:
    host = TrustedCatalogue(site.root, "http://127.0.0.1:9/m", "http://127.0.0.1:9/t", site.cache)
    with pytest.raises(NetworkError, match="does not answer"):
        host.refresh()
    site.file("timestamp.json").unlink()
    with pytest.raises(NetworkError, match="answered 404"):
        site.fetch()


def test_a_huge_target_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trusted, "MAX_TARGET_BYTES", 5)
    site.refuses("10 bytes, more than")


def test_importing_the_module_loads_no_tuf_and_using_it_needs_no_urllib3() -> None:
    program = ("import sys, imaging.trusted\n"
               "assert not any(name.startswith(('tuf', 'securesystemslib')) for name in sys.modules)\n"
               "from imaging.recovery_image.stand_ins import REPLACED\n"
               "import types\n"
               "import tuf.api.exceptions\n"
               "name = 'tuf.ngclient.urllib3_fetcher'\n"
               "sys.modules['urllib3'] = None\n"
               "stand_in = types.ModuleType(name); stand_in.Urllib3Fetcher = object; sys.modules[name] = stand_in\n"
               "import tuf.ngclient.updater\n"
               "assert name in REPLACED\n")
    subprocess.run([sys.executable, "-c", program], check=True)
