"""`reroot recovery build|ledger` on a real site: what is published, what is printed, what a mistake costs."""

from __future__ import annotations

import json
from pathlib import Path

import ko
import pytest

from cli import main
from imaging import recovery_manifest
from imaging.catalogue import Catalogue
from imaging.recovery_image import iso
from imaging.recovery_image.ledger import Ledger
from imaging.store import Store
from plumbing import clock
from plumbing.errors import TrustError
from plumbing.run import run
from recovery import ownprogram


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
    assert table[0].startswith("part") and table[-2].startswith("total") and "library cryptography" in table[1]
    assert recovery_manifest.memory_bytes(manifest) == Ledger.from_json(json.dumps(found).encode()).memory_bytes > 0
    assert reroot(site, "ledger", "debian/1", "--files") == 0
    files = capsys.readouterr().out
    assert "/bin/busybox  (modprobe, mount" in files
    assert all(line.endswith(")") and not line.endswith("()") for line in files.splitlines()[1:]), "each has its reason"


def test_iso_and_unified_image_carry_the_site(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = recovery_manifest.parts(Store(site / "store").manifest("recovery/debian/1/amd64"))
    initrd = Store(site / "store").read_json_blob(*parts["initrd.img"])
    made: dict[str, bytes] = {}
    for kind in ("iso", "uki"):
        for again in ("", "-again"):
            out = site.parent / f"recovery{again}.{kind}"
            assert reroot(site, kind, "debian/1", "-o", str(out), "--argument", "reroot.rescue") == 0
            made[kind] = made.get(kind, out.read_bytes())
            assert out.read_bytes() == made[kind], "the same image gives the same bytes"
    told = capsys.readouterr().out
    assert "dd if=" in told and str(site / "boot/recovery.efi") in told

    image = site.parent / "recovery.iso"
    tree = site.parent / "tree"
    run(["xorriso", "-osirrox", "on", "-indev", image, "-extract", "/", tree])
    (folder,) = (path for path in tree.iterdir() if path.name == "reroot-media")
    assert (folder / "initrd.img").read_bytes() == initrd
    (linux,) = (line for line in (folder / "grub.cfg").read_text().splitlines() if line.startswith("  linux"))
    assert linux.split()[2:] == ["reroot.control=http://10.0.0.1:8080", "console=tty0", "console=ttyS0,115200",
                                 "reroot.rescue"]
    report = run(["xorriso", "-indev", image, "-report_el_torito", "plain", "-report_system_area", "plain"]).text
    assert "El Torito boot img :   1  BIOS" in report and "El Torito boot img :   2  UEFI" in report
    assert "MBR grub2-mbr" in report and "0xef" in report

    for section, wanted in ((".cmdline", b" ".join(word.encode() for word in linux.split()[2:])), (".initrd", initrd)):
        run(["objcopy", "--dump-section", f"{section}={site.parent / 'section'}", site.parent / "recovery.uki",
             site.parent / "copy.uki"])
        assert (site.parent / "section").read_bytes() == wanted


def test_a_program_for_a_host_s_rescue_menu(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, out = site.parent / "script", site.parent / "recover"
    script.write_bytes(b"#!/bin/sh\necho hello\n")
    assert reroot(site, "program", "alpha", str(script), "-o", str(out)) == 4, "no such host"
    (site / "hosts.toml").write_text('[[host]]\nname = "alpha"\n')
    assert reroot(site, "program", "alpha", str(site.parent / "gone"), "-o", str(out)) == 4
    assert "cannot be read" in capsys.readouterr().err
    assert reroot(site, "program", "alpha", str(script), "-o", str(out)) == 0
    keys = Catalogue(site / "catalogue", site / "keys").read("orders/keys.json")
    now = clock.wall()
    assert ownprogram.verify(out.read_bytes(), keys, host="alpha", now=now + 29 * 86400).data == script.read_bytes()
    with pytest.raises(TrustError):
        ownprogram.verify(out.read_bytes(), keys, host="alpha", now=now + 31 * 86400)


@pytest.mark.parametrize(("given", "seconds"), [
    ({}, 315532800), ({"SOURCE_DATE_EPOCH": "1700000000"}, 1700000000), ({"SOURCE_DATE_EPOCH": "0"}, 315532800),
    ({"SOURCE_DATE_EPOCH": "9" * 99}, 315532800), ({"SOURCE_DATE_EPOCH": "yesterday"}, 315532800),
])
def test_the_date_of_a_medium(given: dict[str, str], seconds: int) -> None:
    assert iso.source_date(given) == seconds


@pytest.mark.parametrize(("kind", "words", "code", "says"), [
    ("iso", ("moon/1", "-o", "x.iso"), 4, "`reroot recovery list` shows what"),
    ("iso", ("debian/1", "-o", "/dev/null"), 2, "is no file"),
    ("uki", ("debian/1", "-o", "/no/such/folder/x.efi"), 8, "cannot be written"),
    ("iso", ("debian/1", "-o", "x.iso", "--argument", "init=$(reboot)"), 2, "cannot stand in a boot script"),
    ("iso", ("debian/1", "-o", "x.iso", "--argument", "x\n}"), 2, "cannot stand in a boot script"),
    ("uki", ("debian/1", "-o", "x.iso", "--argument", "x" * 1025), 2, "1024 are the most"),
])
def test_media_that_cannot_be_made(
    site: Path, kind: str, words: tuple[str, ...], code: int, says: str, capsys: pytest.CaptureFixture[str],
) -> None:
    assert reroot(site, kind, *words) == code
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not Path("x.iso").exists()


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
