"""`reroot image gc` on a real site: what the catalogue, orders, rollouts and hosts.toml need stays."""

import json
from pathlib import Path

import pytest

from cli.main import run
from control import site
from control.database import Database, OrderRow, RolloutRow, url_for
from control.keeping import needs
from imaging.catalogue import Catalogue
from imaging.store import Store
from plumbing import clock

HOST = '[[host]]\nname = "alpha"\nmacs = ["52:54:00:00:00:01"]\nrecovery = "recovery/std/1/amd64.json"\n'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> site.Site:
    made = site.init(tmp_path / "site", "http://127.0.0.1:8080")
    monkeypatch.setenv("REROOT_SITE", str(made.root))
    return made


def gc(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, object]]:
    """Run it without a grace time; return what goes by name."""
    capsys.readouterr()
    assert run(["image", "gc", "--json", "--grace-hours", "0", "--unpublished", *arguments]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes_going"] == sum(one["bytes"] for one in told["goes"])
    return {one["name"]: one for one in told["goes"]}


def order(state: str, expires_s: float, **more: str) -> OrderRow:
    return OrderRow(id=state, host="alpha", mode="upgrade", state=state, envelope=b"", nonce=state, issued_s=0.0,
                    expires_s=expires_s, deadline_s=expires_s, changed_s=0.0, **more)


def test_what_the_site_needs_stays(place: site.Site, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(place.store)
    refs = ("listed/1/amd64", "open/1/amd64", "expired/1/amd64", "copied/1/amd64", "rolled/1/amd64", "done/1/amd64",
            "recovery/std/1/amd64", "recovery/roll/1/amd64", "recovery/order/1/amd64", "loose/1/amd64")
    made = {ref: store.put_manifest(ref, b'{"ref":"%s"}' % ref.encode()) for ref in refs}
    Catalogue(place.catalogue, place.keys).publish("releases/listed/1/amd64.json", store.manifest("listed/1/amd64"))
    assert set(gc(capsys)) == {*refs[1:], *(made[ref] for ref in refs[1:])}  # no server ever ran, no host is known

    place.hosts.write_text(HOST)
    now = clock.wall()
    database = Database(url_for(place.database, ""))
    database.migrate()
    with database.session() as session:
        session.add(order("active", now - 1, digest=made["open/1/amd64"], recovery="recovery/order/1/amd64.json"))
        session.add(order("completed", now - 1, digest=made["expired/1/amd64"]))
        session.add(order("cancelled", now + 60, release="releases/copied/1/amd64.json"))
        for status, spec in (("running", {"release": "rolled/1", "recovery": "roll/1/amd64"}),
                             ("done", {"release": "done/1/amd64", "recovery": None})):
            session.add(RolloutRow(id=status, created_s=0.0, changed_s=0.0, status=status, spec=spec, state="{}"))
    database.close()
    loose = ("expired/1/amd64", "done/1/amd64", "loose/1/amd64")
    assert set(gc(capsys)) == {*loose, *(made[ref] for ref in loose)}
    assert set(store.refs()) == set(refs)  # nothing was removed so far
    assert set(gc(capsys, "--remove")) == {*loose, *(made[ref] for ref in loose)}
    assert set(store.refs()) == set(refs) - set(loose)
    assert not any(store.has(made[ref]) for ref in loose)
    assert gc(capsys) == {}


def test_it_says_what_and_why(place: site.Site, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(place.store)
    store.put_manifest("a/1/amd64", b"{}")
    orphan = store.add_bytes(bytes(5000))
    assert run(["image", "gc"]) == 0
    said = capsys.readouterr().out
    assert "a/1/amd64" in said and "younger than the grace time" in said
    assert "would go: 0 B in blobs, 0 of 2; what stays has 5.0 kB" in said
    assert run(["image", "gc", "--grace-hours", "0"]) == 0
    said = capsys.readouterr().out
    assert "not in the catalogue; --unpublished removes it" in said
    assert f"{orphan[:19]}…  5.0 kB  nothing names it" in said and "the same command with --remove does it" in said
    assert run(["image", "gc", "--grace-hours", "0", "--remove"]) == 0
    assert "removed: 5.0 kB in blobs, 1 of 2; what stays has 2 B" in capsys.readouterr().out
    assert not store.has(orphan)


def test_what_cannot_be_asked_is_not_collected(place: site.Site, capsys: pytest.CaptureFixture[str]) -> None:
    orphan = Store(place.store).add_bytes(b"orphan")
    place.database.write_bytes(b"no database at all" * 100)
    assert run(["image", "gc", "--grace-hours", "0", "--remove"]) == 8
    assert "nobody knows which orders are open; nothing was removed" in capsys.readouterr().err
    place.database.unlink()
    (place.catalogue / "metadata/timestamp.json").unlink()
    assert run(["image", "gc", "--grace-hours", "0", "--remove"]) == 10
    assert Store(place.store).has(orphan)
    assert "restore it" in capsys.readouterr().err


def test_needs_name_their_reasons(place: site.Site) -> None:
    assert [need.why for need in needs(place, 0.0)] == [
        f"the catalogue lists {name}" for name in ("orders/keys.json", "precious/keys.json")]


def test_withdrawing(place: site.Site, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for version in ("1", "2"):
        assert run(["image", "build", str(tmp_path / "tree"), "--name", "d", "--version", version, "--arch", "x"]) == 0
    store = Store(place.store)
    digests = {ref: found.digest for ref, found in store.refs().items()}
    database = Database(url_for(place.database, ""))
    database.migrate()
    with database.session() as session:
        session.add(order("active", clock.wall() + 60, digest=digests["d/1/x"]))
    database.close()
    assert run(["image", "withdraw", "d/1"]) == 6
    assert "needed: order active for alpha" in capsys.readouterr().err
    assert run(["image", "withdraw", "d/2"]) == 0
    assert set(Catalogue(place.catalogue, place.keys).listed()) == {
        "orders/keys.json", "precious/keys.json", "releases/d/1/x.json"}
    assert digests["d/2/x"] in gc(capsys) and digests["d/1/x"] not in gc(capsys)
    assert run(["image", "gc", "--unpublished"]) == 0
    assert "would go: 0 B in blobs, 0 of " in capsys.readouterr().out  # its grace time has just begun
