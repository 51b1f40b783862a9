"""The catalogue as its own files show it; what hosts make of it is in test_trusted.py."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from imaging import keys
from imaging.catalogue import DAY, LIFETIME_S, Catalogue
from plumbing.errors import ConfigError, CorruptError, DiskError, NotFoundError, RefusedError, TrustError, UsageError

NOW = 1_800_000_000.0


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    made = Catalogue(tmp_path / "catalogue", tmp_path / "keys")
    made.create(NOW)
    return made


def metadata(catalogue: Catalogue, name: str) -> dict[str, object]:
    signed = json.loads((catalogue.folder / "metadata" / name).read_bytes())["signed"]
    assert isinstance(signed, dict)
    return signed


def test_keys_are_private_pkcs8_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a.pem"
    signer = keys.make_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert keys.load_signer(path).public_key == signer.public_key
    with pytest.raises(RefusedError, match="exists"):
        keys.make_key(path)


def test_a_key_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    path = tmp_path / "a.pem"
    with pytest.raises(ConfigError, match="not here"):
        keys.load_private(path)
    keys.make_key(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        keys.load_private(path)
    path.write_bytes(b"nonsense")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="PKCS8"):
        keys.load_private(path)
    rsa = generate_private_key(65537, 2048)
    path.write_bytes(rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ConfigError, match="another kind"):
        keys.load_private(path)


def test_order_keys_lists_each_key_and_refuses_an_impossible_threshold(tmp_path: Path) -> None:
    public = keys.make_key(tmp_path / "orders.pem").public_key
    assert json.loads(keys.order_keys([public])) == {"threshold": 1, "keys": {public.keyid: public.to_dict()}}
    with pytest.raises(ConfigError, match="2 of 1"):
        keys.order_keys([public, public], 2)


def test_create_makes_four_roles_and_four_keys_once(catalogue: Catalogue) -> None:
    names = sorted(path.name for path in (catalogue.folder / "metadata").iterdir())
    assert names == ["1.root.json", "1.snapshot.json", "1.targets.json", "timestamp.json"]
    assert sorted(p.name for p in catalogue.keys.iterdir()) == ["first-root.sha256", "root.pem", "snapshot.pem",
                                                                "targets.pem", "timestamp.pem"]
    assert metadata(catalogue, "1.root.json")["consistent_snapshot"] is True
    with pytest.raises(RefusedError, match="already"):
        catalogue.create(NOW)


def test_publish_lists_reads_and_prefixes(catalogue: Catalogue) -> None:
    catalogue.publish_all({"releases/debian/13.1+b1/amd64.json": b"one", "orders/keys.json": b"two"}, NOW)
    assert list(catalogue.listed()) == ["orders/keys.json", "releases/debian/13.1+b1/amd64.json"]
    found = catalogue.listed()["orders/keys.json"]
    assert catalogue.read("orders/keys.json") == b"two"
    digest = found.digest.removeprefix("sha256:")
    assert (catalogue.folder / "targets/orders" / f"{digest}.keys.json").read_bytes() == b"two"
    assert metadata(catalogue, "timestamp.json")["version"] == 2


def test_publishing_the_same_again_changes_nothing(catalogue: Catalogue) -> None:
    catalogue.publish("a", b"1", NOW)
    before = (catalogue.folder / "metadata/timestamp.json").read_bytes()
    catalogue.publish("a", b"1", NOW + 5)
    assert (catalogue.folder / "metadata/timestamp.json").read_bytes() == before
    catalogue.publish("a", b"2", NOW + 5)
    assert catalogue.read("a") == b"2"


@pytest.mark.parametrize("path", ["", "/a", "a//b", "../a", "a/../b", "a b", "a/", ".hidden", "a\nb", "ä"])
def test_target_paths_that_could_mean_something_else_are_refused(catalogue: Catalogue, path: str) -> None:
    with pytest.raises(UsageError, match="catalogue path"):
        catalogue.publish(path, b"", NOW)


def test_refresh_signs_only_what_is_due(catalogue: Catalogue) -> None:
    assert catalogue.refresh(NOW) == ()
    assert catalogue.refresh(NOW + 2 * DAY) == ("timestamp",)
    assert catalogue.refresh(NOW + 2 * DAY) == ()
    assert catalogue.refresh(NOW + 16 * DAY) == ("snapshot", "timestamp")
    assert catalogue.refresh(NOW + 61 * DAY) == ("targets", "snapshot", "timestamp")
    assert metadata(catalogue, "3.snapshot.json")["version"] == 3


def test_refresh_does_without_the_targets_key_until_it_must_not(catalogue: Catalogue) -> None:
    catalogue.publish("a", b"1", NOW)
    (catalogue.keys / "targets.pem").rename(catalogue.keys.parent / "safe")
    (catalogue.keys / "root.pem").unlink()
    assert catalogue.refresh(NOW + 100 * DAY) == ("snapshot", "timestamp")
    with pytest.raises(ConfigError, match="role targets are needed"):
        catalogue.publish("a", b"2", NOW)
    assert catalogue.read("a") == b"1"
    with pytest.raises(ConfigError, match="role targets are needed"):
        catalogue.refresh(NOW + LIFETIME_S["targets"] + DAY)


def test_rotation_needs_the_old_root_key(catalogue: Catalogue) -> None:
    (catalogue.keys / "root.pem").unlink()
    with pytest.raises(ConfigError, match=r"of the role root are needed in .*not here .*--keys"):
        catalogue.rotate("timestamp", NOW)
    assert catalogue.root_json() == (catalogue.folder / "metadata/1.root.json").read_bytes()


def test_rotate_replaces_the_key_file(catalogue: Catalogue) -> None:
    for role in ("root", "targets", "snapshot", "timestamp"):
        before = keys.load_signer(catalogue.keys / f"{role}.pem").public_key
        catalogue.rotate(role, NOW)
        assert keys.load_signer(catalogue.keys / f"{role}.pem").public_key != before
        assert not (catalogue.keys / f"{role}.next.pem").exists()
    catalogue.publish("a", b"1", NOW)
    with pytest.raises(UsageError, match="not a role"):
        catalogue.rotate("mirrors", NOW)


def cut_short(catalogue: Catalogue, role: str) -> None:
    """Leave what a crash leaves between the new root and the metadata signed by its keys."""
    before = {path: path.read_bytes() for path in (catalogue.folder / "metadata").iterdir()}
    old = (catalogue.keys / f"{role}.pem").read_bytes()
    catalogue.rotate(role, NOW)
    (catalogue.keys / f"{role}.pem").rename(catalogue.keys / f"{role}.next.pem")
    (catalogue.keys / f"{role}.pem").write_bytes(old)
    (catalogue.keys / f"{role}.pem").chmod(0o600)
    for path, data in before.items():
        path.write_bytes(data)


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_a_rotation_that_was_cut_short_is_completed(catalogue: Catalogue, role: str) -> None:
    catalogue.publish("a", b"1", NOW)
    cut_short(catalogue, role)
    assert list(catalogue.listed()) == ["a"]
    assert role in catalogue.refresh(NOW)
    assert not (catalogue.keys / f"{role}.next.pem").exists()
    assert catalogue.refresh(NOW) == ()
    cut_short(catalogue, role)
    catalogue.rotate(role, NOW)  # by hand, to the same key
    assert not (catalogue.keys / f"{role}.next.pem").exists()
    assert catalogue.refresh(NOW) == ()


def test_set_keys_that_was_cut_short_is_refused_until_it_is_repeated(catalogue: Catalogue) -> None:
    cut_short(catalogue, "targets")
    new = catalogue.keys / "targets.next.pem"
    new.rename(catalogue.keys / "targets.second.pem")  # as set_keys has it: nothing says that a change is under way
    with pytest.raises(TrustError, match=r"1\.targets\.json .* make that change again"):
        catalogue.refresh(NOW)
    catalogue.set_keys("targets", [keys.load_signer(catalogue.keys / "targets.second.pem").public_key], 1, NOW)
    catalogue.publish("a", b"1", NOW)


def edit(catalogue: Catalogue, name: str, change: dict[str, object]) -> None:
    """Change the signed part of a file and leave its signatures, as somebody without a key can."""
    path = catalogue.folder / "metadata" / name
    value = json.loads(path.read_bytes())
    value["signed"] |= change
    path.write_bytes(json.dumps(value).encode())


FORGERY = {"targets": {"releases/evil/1/amd64.json": {"length": 1, "hashes": {"sha256": "0" * 64}}}}


@pytest.mark.parametrize(("name", "change"), [
    ("2.targets.json", FORGERY), ("2.snapshot.json", {"expires": "2000-01-01T00:00:00Z"}),
    ("timestamp.json", {"version": 7}), ("1.root.json", {"expires": "2099-01-01T00:00:00Z"}),
])
def test_what_was_edited_without_a_key_is_never_signed(
        catalogue: Catalogue, name: str, change: dict[str, object]) -> None:
    catalogue.publish("a", b"1", NOW)
    edit(catalogue, name, change)
    before = {path: path.read_bytes() for path in catalogue.folder.rglob("*.json")}
    for act in (lambda: catalogue.publish("b", b"2", NOW), lambda: catalogue.refresh(NOW + 400 * DAY),
                lambda: catalogue.rotate("timestamp", NOW), catalogue.listed, lambda: catalogue.read("a")):
        with pytest.raises(TrustError, match=rf"{name} .*; restore it from a backup"):
            act()
    assert {path: path.read_bytes() for path in catalogue.folder.rglob("*.json")} == before


def test_another_valid_file_in_the_place_of_one_is_refused(catalogue: Catalogue) -> None:
    """Every signature holds here; digest and version do not."""
    catalogue.publish("a", b"1", NOW)
    folder = catalogue.folder / "metadata"
    (folder / "2.targets.json").write_bytes((folder / "1.targets.json").read_bytes())
    with pytest.raises(TrustError, match=r"2\.targets\.json .* not the one that the signed metadata names"):
        catalogue.refresh(NOW + 2 * DAY)


def test_roots_of_somebody_else_are_refused(catalogue: Catalogue, tmp_path: Path) -> None:
    """A root that names our keys and theirs would have their words signed by ours."""
    other = Catalogue(tmp_path / "other", tmp_path / "other-keys")
    other.create(NOW)
    first = catalogue.folder / "metadata/1.root.json"
    kept = first.read_bytes()
    (catalogue.folder / "metadata/2.root.json").write_bytes(other.root_json())
    with pytest.raises(TrustError, match=r"2\.root\.json .* not signed by the root keys"):
        catalogue.root_json()
    (catalogue.folder / "metadata/2.root.json").unlink()
    first.write_bytes(other.root_json())
    with pytest.raises(TrustError, match=r"1\.root\.json .* another site's"):
        catalogue.refresh(NOW)
    first.write_bytes(kept)
    (catalogue.keys / "first-root.sha256").unlink()
    with pytest.raises(ConfigError, match="sha256sum"):
        catalogue.publish("a", b"1", NOW)


def test_old_versions_are_pruned(catalogue: Catalogue) -> None:
    for number in range(40):
        catalogue.publish("a", b"%d" % number, NOW)
    names = [path.name for path in (catalogue.folder / "metadata").iterdir()]
    assert sum(name.endswith(".targets.json") for name in names) == 16
    assert catalogue.read("a") == b"39"


def test_damage_is_named(catalogue: Catalogue) -> None:
    catalogue.publish("a", b"1", NOW)
    next((catalogue.folder / "targets").iterdir()).write_bytes(b"2")
    with pytest.raises(CorruptError, match="restore it from a backup"):
        catalogue.read("a")
    catalogue.publish("a", b"1", NOW)
    assert catalogue.read("a") == b"1"
    (catalogue.folder / "metadata/timestamp.json").write_bytes(b"{")
    with pytest.raises(CorruptError, match=r"timestamp\.json of the catalogue is damaged"):
        catalogue.listed()
    with pytest.raises(NotFoundError, match="reroot init"):
        Catalogue(catalogue.folder / "none", catalogue.keys).listed()


@pytest.mark.parametrize(("target", "command"), [
    ("releases/debian/13/amd64.json", "build debian/13/amd64 again with `reroot image build`"),
    ("recovery/debian/1/amd64.json", "`reroot recovery build debian/1/amd64`"),
])
def test_a_damaged_target_names_the_command_that_puts_it_back(
        catalogue: Catalogue, target: str, command: str) -> None:
    catalogue.publish(target, b"1", NOW)
    for path in (catalogue.folder / "targets").rglob("*.json"):
        path.unlink()
    with pytest.raises(CorruptError, match=command):
        catalogue.read(target)


@pytest.mark.root
def test_a_full_disk_leaves_the_old_catalogue(tmp_path: Path) -> None:
    """Fault 31, on a real filesystem of 256 KiB."""
    from plumbing.run import run

    disk = tmp_path / "disk"
    disk.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk])
    try:
        catalogue = Catalogue(disk / "catalogue", tmp_path / "keys")
        catalogue.create(NOW)
        catalogue.publish("a", b"1", NOW)
        with pytest.raises(DiskError, match="full"):
            catalogue.publish("b", os.urandom(400_000), NOW)
        assert catalogue.read("a") == b"1"
        assert list(catalogue.listed()) == ["a"]
        assert not list((disk / "catalogue").rglob(".b*"))
    finally:
        run(["umount", disk])
