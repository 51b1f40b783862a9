"""`reroot recovery build|ledger` on a real site: what is published, what is printed, what a mistake costs."""

from __future__ import annotations

import json
from pathlib import Path

import ko
import pytest

from cli import main
from imaging import recovery_manifest
from imaging.catalogue import Catalogue
from imaging.store import Store


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site") / "site"
    assert main.run(["init", str(place), "--url", "http://10.0.0.1:8080"]) == 0
    ko.tree(place.parent / "kernel")
    return place


def reroot(site: Path, *words: str) -> int:
    return main.run(["recovery", *words, "--site", str(site)])


def test_build_publishes_and_ledger_reads_it_back(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernel = str(site.parent / "kernel")
    capsys.readouterr()
    assert reroot(site, "list") == 0
    assert "reroot recovery build" in capsys.readouterr().out
    assert reroot(site, "build", "debian/1", "--kernel-root", kernel, "--level", "1", "--budget", "20", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["target"] == "recovery/debian/1/amd64.json" and told["kernel"] == ko.RELEASE
    manifest = Store(site / "store").manifest("recovery/debian/1/amd64")
    assert Catalogue(site / "catalogue", site / "keys").read(told["target"]) == manifest
    assert {title: size for title, (_, size) in recovery_manifest.parts(manifest).items()} == told["sizes"]

    assert reroot(site, "list") == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["debian/1/amd64", "yes", "yes"]
    assert reroot(site, "list", "--json") == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert listed["target"] == told["target"] and listed["stored"] and listed["published"]

    assert reroot(site, "ledger", "debian/1/amd64", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packed_bytes"] == told["sizes"]["initrd.img"] and found["budget_bytes"] == 20 << 20
    assert reroot(site, "ledger", "debian/1") == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("part") and table[-1].startswith("total") and "library cryptography" in table[1]


@pytest.mark.parametrize(("words", "code", "says"), [
    (("build", "debian"), 2, "names no recovery image"),
    (("build", "debian/1/"), 2, "names no recovery image"),
    (("build", "debian/2", "--kernel-root", "/nonexistent"), 4, "name the root of a system"),
    (("build", "debian/2/vax", "--kernel-root", "KERNEL"), 2, "made for amd64"),
    (("build", "debian/2", "--kernel-root", "KERNEL", "--level", "1", "--budget", "2"), 6, "its budget of 2048 KiB"),
    (("ledger", "moon/1"), 4, "`reroot recovery list` shows what is"),
])
def test_a_mistake_is_one_sentence_and_publishes_nothing(
    site: Path, words: tuple[str, ...], code: int, says: str, capsys: pytest.CaptureFixture[str],
) -> None:
    before = Store(site / "store").refs()
    kernel = str(site.parent / "kernel")
    assert reroot(site, *(kernel if word == "KERNEL" else word for word in words)) == code
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert Store(site / "store").refs() == before
