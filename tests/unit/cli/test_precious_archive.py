"""`reroot precious list|fetch|extract|prune|audit` and the recovery key, against a real server with real copies."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from servers import Machine, Server, make_site, publish_release, serving

from cli.main import run
from control import recovery_key, site
from imaging.catalogue import Catalogue
from precious import keep, sealing, sealkeys
from precious.keep import ARCHIVE
from precious.policy import load

pytestmark = pytest.mark.root
Out = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Stored:
    """A copy on the server, and what it is of."""

    server: Server
    host: str
    order: str
    kept: Path
    root: Path


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    folder = tmp_path_factory.mktemp("copies")
    root, kept = folder / "root", folder / "kept"
    (root / "etc").mkdir(parents=True)
    (root / "etc/hostname").write_text("alpha\n")
    (root / "etc/secret").write_bytes(os.urandom(2_000_000))
    keep.collect(root, load([("test", '[[rule]]\nkeep = ["/etc/**"]')]), kept)
    made = make_site(folder / "site", "[precious]\nreserve_bytes = 0\n")
    publish_release(made, folder)
    with serving(made) as server:
        machine = Machine(server, "alpha", "52:54:00:00:00:01").join()
        order = machine.issued()
        sealed = sealing.Sealed(kept, order, "alpha", recovery_key.current(Catalogue(made.catalogue, made.keys)))
        digest, client, path = sealed.digest(), machine.client(), f"/api/v1/hosts/alpha/precious/{order}"
        offset = 0
        while offset < sealed.size:
            client.post_json(path, {"bytes": sealed.size, "blake3": digest})
            offset = client.request("PUT", f"{path}?blake3={digest}&offset={offset}", body=sealed.read(
                offset, 1 << 20)).json()["offset"]
        sealed.close()
        yield Stored(server, "alpha", order, kept, root)


@pytest.fixture(autouse=True)
def _site(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REROOT_SITE", str(stored.server.site.root))


def key(stored: Stored) -> str:
    return str(stored.server.site.recovery_key)


def test_a_copy_is_listed_fetched_and_opened(stored: Stored, tmp_path: Path, capsys: Out) -> None:
    assert run(["precious", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["host"], row["order"]) == ("alpha", stored.order)
    assert run(["precious", "list", "alpha"]) == 0
    assert stored.order in capsys.readouterr().out
    sealed, opened = tmp_path / "alpha.copy", tmp_path / "alpha.tar.zst"
    assert run(["precious", "fetch", "alpha", "-o", str(sealed)]) == 0
    assert sealed.read_bytes().startswith(b"reroot 2nd copy\n") and stat.S_IMODE(sealed.stat().st_mode) == 0o600
    assert run(["precious", "fetch", "alpha", stored.order, "-o", str(opened), "--key", key(stored)]) == 0
    assert opened.read_bytes() == (stored.kept / ARCHIVE).read_bytes()
    names = subprocess.run(["tar", "--zstd", "-tf", opened], capture_output=True, text=True, check=True).stdout
    assert "etc/secret" in names, "an ordinary tar.zst"
    assert run(["precious", "fetch", "alpha", "-o", str(sealed)]) == 6
    assert run(["precious", "fetch", "alpha", "00000000-0000-4000-8000-000000000000", "-o", str(tmp_path / "x")]) == 4
    assert run(["precious", "list", "nobody"]) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alpha.copy", "alpha.tar.zst"], "no scratch is left"


@pytest.mark.parametrize("fetched", [True, False])
def test_files_are_extracted_from_a_file_or_a_host(stored: Stored, tmp_path: Path, fetched: bool, capsys: Out) -> None:
    source = "alpha"
    if fetched:
        source = str(tmp_path / "copy")
        assert run(["precious", "fetch", "alpha", "-o", source]) == 0
    out = tmp_path / "out"
    assert run(["precious", "extract", source, "/etc/secret", "-C", str(out), "--key", key(stored)]) == 0
    assert "1 files" in capsys.readouterr().out
    assert [path.name for path in out.rglob("*")] == ["etc", "secret"]
    assert (out / "etc/secret").read_bytes() == (stored.root / "etc/secret").read_bytes()
    assert run(["precious", "extract", source, "-C", str(out), "--key", key(stored)]) == 6
    assert run(["precious", "extract", source, "/etc/nothing", "-C", str(tmp_path / "x"), "--key", key(stored)]) == 4
    assert run(["precious", "extract", source, "-C", str(tmp_path / "x")]) == 2
    assert not (tmp_path / "x").exists()


def test_another_key_or_a_bent_copy_opens_nothing(stored: Stored, tmp_path: Path, capsys: Out) -> None:
    sealkeys.make(tmp_path / "other.pem")
    assert run(["precious", "extract", "alpha", "-C", str(tmp_path / "x"), "--key", str(tmp_path / "other.pem")]) == 5
    assert "does not open the copy of alpha" in capsys.readouterr().err
    copy = tmp_path / "copy"
    assert run(["precious", "fetch", "alpha", "-o", str(copy)]) == 0
    data = bytearray(copy.read_bytes())
    data[1_000_000] ^= 1
    copy.write_bytes(data)
    assert run(["precious", "extract", str(copy), "-C", str(tmp_path / "x"), "--key", key(stored)]) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "other.pem"]


def test_a_reader_has_a_name_and_ceases_to_be_one(stored: Stored, tmp_path: Path, capsys: Out) -> None:
    token, keys = tmp_path / "word", stored.server.site.keys
    site.make_token(keys / "precious.alice.token")
    token.write_bytes((keys / "precious.alice.token").read_bytes())
    asked = ["precious", "fetch", "alpha", "-o", str(tmp_path / "a"), "--token", str(token)]
    assert run(asked) == 0
    (tmp_path / "a").unlink()
    (keys / "precious.alice.token").unlink()
    assert run(asked) == 5
    token.write_text("short")
    (keys / "precious.bob.token").write_text("short")
    assert run(asked) == 5, "a token that can be guessed is none"
    (keys / "precious.bob.token").unlink()
    assert run([*asked[:-1], str(tmp_path / "missing")]) == 3
    capsys.readouterr()
    assert run(["precious", "audit", "alpha", "--limit", "3"]) == 0
    shown = capsys.readouterr().out
    assert "precious alice" in shown and "fetch" in shown
    assert run(["precious", "audit", "--json"]) == 0
    refused = [row for row in json.loads(capsys.readouterr().out) if row["outcome"] != "ok"]
    assert refused and refused[-1]["who"] == "unproven a bearer" and refused[-1]["from"] == "127.0.0.1"


def test_prune_says_what_it_would_do(stored: Stored, capsys: Out) -> None:
    for words in (["--dry-run"], []):
        assert run(["precious", "prune", *words]) == 0
        assert "every copy has its place" in capsys.readouterr().out
    (file,) = (stored.server.site.state / "precious/alpha").iterdir()
    assert file.exists()


# -- the recovery key ------------------------------------------------------------------------------------------


def test_init_makes_a_recovery_key_or_takes_one(tmp_path: Path, capsys: Out) -> None:
    assert run(["init", str(tmp_path / "a")]) == 0
    assert "take it offline now" in capsys.readouterr().out
    made = site.Site.open(tmp_path / "a")
    assert stat.S_IMODE(made.recovery_key.stat().st_mode) == stat.S_IMODE(made.precious_token.stat().st_mode) == 0o600
    assert recovery_key.current(Catalogue(made.catalogue, made.keys)) == (sealkeys.public(made.recovery_key),)
    pem, public = tmp_path / "mine.pem", tmp_path / "mine.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "X25519", "-out", pem], check=True)
    subprocess.run(["openssl", "pkey", "-in", pem, "-pubout", "-out", public], check=True)
    assert run(["init", str(tmp_path / "b"), "--recovery-key", str(public)]) == 0
    assert "take it offline" not in capsys.readouterr().out
    other = site.Site.open(tmp_path / "b")
    assert not other.recovery_key.exists()
    assert recovery_key.current(Catalogue(other.catalogue, other.keys)) == (sealkeys.public(pem),)
    assert run(["init", str(tmp_path / "c"), "--recovery-key", str(tmp_path / "a/keys/orders.pem")]) == 3
    assert not (tmp_path / "c").exists()


def test_a_site_gets_another_and_one_that_had_none_its_first(tmp_path: Path, capsys: Out) -> None:
    assert run(["init", str(tmp_path / "a")]) == 0
    made, where = site.Site.open(tmp_path / "a"), ["--site", str(tmp_path / "a")]
    catalogue = Catalogue(made.catalogue, made.keys)
    first = recovery_key.current(catalogue)
    assert run(["trust", "recovery-key", *where]) == 6
    assert "--replace" in capsys.readouterr().err
    assert run(["trust", "recovery-key", "--replace", *where]) == 6, "the file of the first is still there"
    stick = tmp_path / "stick"
    stick.mkdir()
    assert run(["trust", "recovery-key", "--also", "--into", str(stick), *where]) == 0
    both = recovery_key.current(catalogue)
    assert set(both) == {*first, sealkeys.public(stick / "recovery.pem")}
    assert run(["trust", "recovery-key", "--replace", "--recovery-key", str(stick / "recovery.pem"), *where]) == 0
    assert recovery_key.current(catalogue) == (sealkeys.public(stick / "recovery.pem"),)
    # a site of before
    catalogue.withdraw(sealkeys.TARGET)
    made.precious_token.unlink()
    made.recovery_key.unlink()
    assert run(["trust", "recovery-key", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["file"] == str(made.recovery_key)
    assert len(made.precious_token.read_text()) > 32
    (made.keys / "targets.pem").rename(stick / "targets.pem")
    again = ["trust", "recovery-key", "--replace", "--recovery-key", str(stick / "recovery.pem"), *where]
    assert run(again) == 3
    assert run([*again, "--keys", str(stick)]) == 0
