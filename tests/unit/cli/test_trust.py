"""`reroot trust` on a real site, with keys on sticks, and a host that follows every change over HTTP."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from following_host import FollowingHost

from cli.main import run
from control import site
from imaging.catalogue import DAY, LIFETIME_S, Catalogue
from imaging.ceremony import add_key, remove_key, set_threshold
from plumbing import clock
from plumbing.errors import ConfigError, NotFoundError, RefusedError, TrustError, UsageError

Out = pytest.CaptureFixture[str]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> site.Site:
    made = site.init(tmp_path / "site", "http://127.0.0.1:8080")
    monkeypatch.setenv("REROOT_SITE", str(made.root))
    return made


@pytest.fixture
def host(place: site.Site, tmp_path: Path) -> Iterator[FollowingHost]:
    with FollowingHost(place, tmp_path / "host") as found:
        yield found


@pytest.fixture
def sticks(place: site.Site, tmp_path: Path) -> tuple[Path, Path]:
    """Two sticks; root and targets keys are on the first alone, as docs/trust.md has it."""
    found = (tmp_path / "alice", tmp_path / "bob")
    for stick in found:
        stick.mkdir(mode=0o700)
    for role in ("root", "targets"):
        shutil.move(place.keys / f"{role}.pem", found[0])
    return found


def told(out: Out, *arguments: str) -> list[dict[str, object]]:
    out.readouterr()
    assert run(["trust", "show", "--json", *arguments]) == 0
    found = json.loads(out.readouterr().out)
    assert isinstance(found, list)
    return found


def build(tmp_path: Path, version: str, *arguments: str) -> int:
    (tmp_path / "tree/etc").mkdir(parents=True, exist_ok=True)
    return run(["image", "build", str(tmp_path / "tree"), "--name", "d", "--version", version, "--arch", "amd64",
                "--json", *arguments])


def test_show_says_who_can_sign(place: site.Site, sticks: tuple[Path, Path], capsys: Out) -> None:
    root, targets, snapshot, timestamp = told(capsys)
    assert [one["can_sign"] for one in (root, targets, snapshot, timestamp)] == [False, False, True, True]
    assert told(capsys, "--keys", str(sticks[0]))[1]["can_sign"] is True
    assert run(["trust", "show"]) == 0
    said = capsys.readouterr().out
    assert said.count("not here") == 2 and "1 of 1" in said and "root has one key" in said
    assert run(["trust", "show", "--keys", "/nowhere/stick"]) == 3
    assert "plug in the medium" in capsys.readouterr().err


def test_publishing_with_keys_on_a_stick(
        place: site.Site, sticks: tuple[Path, Path], tmp_path: Path, capsys: Out, host: FollowingHost,
        monkeypatch: pytest.MonkeyPatch) -> None:
    assert build(tmp_path, "1") == 3
    said = capsys.readouterr().err
    assert "of the role targets are needed" in said and "--keys" in said
    assert build(tmp_path, "1", "--keys", str(sticks[0])) == 0
    host.sees("releases/d/1/amd64.json")
    monkeypatch.setenv("REROOT_KEYS", str(sticks[0]))
    assert build(tmp_path, "2") == 0
    host.sees("releases/d/2/amd64.json")
    assert run(["image", "withdraw", "d/1"]) == 0
    host.sees_no("releases/d/1/amd64.json")
    assert run(["image", "withdraw", "d/1"]) == 4


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_rotating(place: site.Site, sticks: tuple[Path, Path], capsys: Out, host: FollowingHost, role: str) -> None:
    host.sees("orders/keys.json")
    before = {one["role"]: one["keys"] for one in told(capsys, "--keys", str(sticks[0]))}
    if role != "targets":  # without any root key nothing happens
        assert run(["trust", "rotate", role]) == 3
        assert "of the role root are needed" in capsys.readouterr().err
        assert {one["role"]: one["version"] for one in told(capsys)}["root"] == 1
        assert not list(place.keys.glob("*.next.pem"))
    assert run(["trust", "rotate", role, "--keys", str(sticks[0])]) == 0
    folder = sticks[0] if role in {"root", "targets"} else place.keys
    assert str(folder / f"{role}.pem") in capsys.readouterr().out
    after = {one["role"]: one["keys"] for one in told(capsys, "--keys", str(sticks[0]))}
    assert [name for name in after if after[name] != before[name]] == ([role])
    assert not list(place.keys.glob("*.next.pem")) and not list(sticks[0].glob("*.next.pem"))
    host.sees("orders/keys.json")
    assert run(["trust", "refresh", "--keys", str(sticks[0])]) == 0
    host.sees("orders/keys.json")


def test_two_people_must_sign(
        place: site.Site, sticks: tuple[Path, Path], tmp_path: Path, capsys: Out, host: FollowingHost) -> None:
    alice, bob = map(str, sticks)
    assert run(["trust", "threshold", "targets", "2", "--keys", alice]) == 2
    assert "reroot trust add-key" in capsys.readouterr().err
    assert run(["trust", "add-key", "targets", "bob", "--into", bob, "--keys", alice]) == 0
    assert (sticks[1] / "targets.bob.pem").stat().st_mode & 0o777 == 0o600
    assert run(["trust", "threshold", "targets", "2", "--keys", alice]) == 3  # and nothing is half done
    assert told(capsys, "--keys", alice)[1]["threshold"] == 1
    assert run(["trust", "threshold", "targets", "2", "--keys", alice, "--keys", bob]) == 0
    for one in (alice, bob):
        capsys.readouterr()
        assert build(tmp_path, "1", "--keys", one) == 3
        assert "2 key(s) of the role targets are needed" in capsys.readouterr().err
    assert build(tmp_path, "1", "--keys", alice, "--keys", bob) == 0
    host.sees("releases/d/1/amd64.json")
    signatures = host.metadata("targets")["signatures"]
    assert isinstance(signatures, list) and len(signatures) == 2
    assert run(["trust", "rotate", "targets", "--keys", alice, "--keys", bob]) == 6
    assert "so that the threshold stays" in capsys.readouterr().err


def test_a_lost_targets_key(place: site.Site, sticks: tuple[Path, Path], capsys: Out, host: FollowingHost) -> None:
    host.sees("orders/keys.json")
    (sticks[0] / "targets.pem").unlink()
    assert run(["trust", "rotate", "targets", "--keys", str(sticks[0]), "--keys", str(sticks[1])]) == 0
    assert (sticks[1] / "targets.pem").exists() and not (place.keys / "targets.pem").exists()
    assert not (sticks[0] / "targets.pem").exists()
    host.sees("orders/keys.json")


def test_a_lost_root_key_of_two(place: site.Site, sticks: tuple[Path, Path], capsys: Out, host: FollowingHost) -> None:
    host.sees("orders/keys.json")
    alice, bob = map(str, sticks)
    assert run(["trust", "add-key", "root", "bob", "--into", bob, "--keys", alice]) == 0
    lost = told(capsys, "--keys", bob)[0]["keys"]
    assert isinstance(lost, list)
    (gone,) = (one["id"] for one in lost if one["file"] is None)
    shutil.rmtree(sticks[0])
    assert run(["trust", "remove-key", "root", gone[:12], "--keys", bob]) == 0
    assert len(told(capsys)[0]["keys"]) == 1  # type: ignore[arg-type]
    host.sees("orders/keys.json")
    assert run(["trust", "remove-key", "root", "ffff", "--keys", bob]) == 4
    assert run(["trust", "remove-key", "root", "", "--keys", bob]) == 4


def test_an_expired_role(place: site.Site, capsys: Out, host: FollowingHost) -> None:
    assert run(["trust", "refresh", "root", "targets", "--days", "3"]) == 0
    host.sees("orders/keys.json")
    assert run(["trust", "show"]) == 0
    assert "targets expires in 3 days: run `reroot trust refresh targets`" in capsys.readouterr().out
    for role in ("targets", "timestamp", "root"):
        # As if it had been signed so long ago: its time is over now.
        Catalogue(place.catalogue, place.keys).renew(role, clock.wall() - LIFETIME_S[role] - DAY)
        with pytest.raises(TrustError, match="expired"):
            host.sees("orders/keys.json")
        assert run(["trust", "show"]) == 0
        said = capsys.readouterr().out
        assert f"{role} has expired and hosts refuse the catalogue: run `reroot trust refresh {role}`" in said
        assert "EXPIRED" in said
        assert run(["trust", "refresh", role]) == 0
        host.sees("orders/keys.json")


def test_refresh_says_what_it_signed(place: site.Site, capsys: Out) -> None:
    assert run(["trust", "refresh"]) == 0
    assert "nothing is due" in capsys.readouterr().out
    assert run(["trust", "refresh", "snapshot", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"signed": ["snapshot"]}
    assert told(capsys)[2]["version"] == 3


def test_a_change_that_was_cut_short_is_made_again(
        place: site.Site, tmp_path: Path, host: FollowingHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power goes after the new root was written and before the role was signed anew: hosts still see the old state."""
    catalogue = Catalogue(place.catalogue, place.keys)

    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(catalogue, "_commit", cut)
        with pytest.raises(KeyboardInterrupt):
            add_key(catalogue, "targets", "bob", place.keys)
    host.sees("orders/keys.json")
    path = add_key(catalogue, "targets", "bob", place.keys)
    assert path == place.keys / "targets.bob.pem"
    with monkeypatch.context() as patch:
        patch.setattr(catalogue, "_commit", cut)
        with pytest.raises(KeyboardInterrupt):
            set_threshold(catalogue, "targets", 2)
    host.sees("orders/keys.json")
    catalogue.publish("a", b"1")
    host.sees("a")
    assert len(catalogue.state().root.signed.roles["targets"].keyids) == 2


def test_mistakes_are_told(place: site.Site) -> None:
    catalogue = Catalogue(place.catalogue, place.keys)
    with pytest.raises(UsageError, match="choose one of root, targets"):
        set_threshold(catalogue, "admin", 1)
    for name in ("", "next", "../x", "a.b", "x" * 40):
        with pytest.raises(UsageError, match="can't name a key"):
            add_key(catalogue, "targets", name, place.keys)
    only = next(iter(catalogue.ring.files("targets")))
    with pytest.raises(RefusedError, match="reroot trust rotate"):
        remove_key(catalogue, "targets", only)
    with pytest.raises(NotFoundError, match=only[:12]):
        remove_key(catalogue, "targets", only[:3])
    (place.keys / "root.pem").unlink()
    with pytest.raises(ConfigError, match=r"not here [0-9a-f]{12}; bring the file root\.pem"):
        add_key(catalogue, "timestamp", "two", place.keys)
    assert not (place.catalogue / "metadata/2.root.json").exists()
