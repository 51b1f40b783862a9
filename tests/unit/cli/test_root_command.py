"""`reroot` itself: one sentence and an exit code for every mistake, and `reroot host` against a real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import COMMANDS, LazyGroup, run
from plumbing.errors import RefusedError

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("words", "code", "needles"), [
    (["hots"], 2, ("'hots'", "did you mean 'host'?")),
    (["imag"], 2, ("did you mean 'image'?",)),
    (["zzz"], 2, ("'zzz'", "reroot --help")),
    (["plan", "--update-time", "1m", "--hosts", "9" * 400], 2, ("hosts is more than 1000000",)),
    (["plan", "--update-time", "1m", "--hosts", "9", "--per-server", "9" * 400], 2, ("per-server is more",)),
    (["host", "ad"], 2, ("'ad'",)),
    (["host", "add"], 2, ("name", "reroot host add --help")),
    (["plan", "--hosts", "many"], 2, ("--hosts", "integer")),
    (["plan", "--hosts", "10", "--update-time", "soon"], 2, ("'soon'", "30m")),
    (["host", "list", "--site", "/nonexistent"], 3, ("admin.token",)),
    (["serve", "--site", "/nonexistent"], 3, ("reroot init",)),
    (["precious", "check", "--site", "/nonexistent"], 3, ("reroot init",)),
    (["host", "show", ""], 2, ("host name",)),
    (["host", "order", "alpha"], 2, ("--release", "--cancel")),
    (["plan", "--hosts", "10", "--update-time", "9999999d"], 2, ("ten years",)),
    (["recovery", "build", "../1"], 2, ("'..'",)),
])
def test_mistakes(capsys: pytest.CaptureFixture[str], words: list[str], code: int, needles: tuple[str, ...]) -> None:
    assert run(words) == code
    said = capsys.readouterr().err
    assert said.startswith("reroot: ")
    assert said.count("\n") == 1
    assert all(needle in said for needle in needles), said


FULL = """
import sys
from cli.{module} import {main}
sys.argv[0] = "reroot"
{main}()
"""


@pytest.mark.parametrize(("module", "main", "words"), [
    ("main", "main", ["plan", "--hosts", "10", "--update-time", "1m"]), ("main", "main", ["--help"]),
    ("main", "main", ["plan", "--hosts", "10000", "--update-time", "1m", "--json"]), ("plan", "sortaddrs", []),
])
def test_output_that_cannot_be_written_is_one_sentence(module: str, main: str, words: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([sys.executable, "-c", FULL.format(module=module, main=main), *words], cwd=ROOT,
                              stdout=full, stderr=subprocess.PIPE, input="10.0.0.1\n", text=True, check=False)
    assert done.returncode == 8, done.stderr
    assert "standard output cannot be written (No space left on device)" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_json_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["host", "list", "--json", "--site", "/nonexistent"]) == 3
    assert json.loads(capsys.readouterr().err)["kind"] == "config"


def test_what_a_server_says_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise RefusedError("alpha is amd64\n\x1b]0;owned\x07\x1b[2J; choose another")

    monkeypatch.setattr("cli.host.Admin", fail)
    for words in (["host", "list"], ["host", "list", "--json"]):
        assert run(words) == 6
        said = capsys.readouterr().err.removesuffix("\n")
        assert said.isprintable()
        assert "choose another" in said


def test_help_lists_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in COMMANDS:
        assert name in shown
        assert run([name, "--help"]) == 0


LOADED = """
import sys
from cli.main import run
run(["plan", "--hosts", "10", "--update-time", "1m"])
print(sorted({"fastapi", "sqlalchemy", "pydantic_settings", "tuf", "aiohttp"} & set(sys.modules)))
"""


def test_a_command_loads_only_what_it_needs() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_no_words_show_the_help_and_no_complaint(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["host"]):
        assert run(words) == 2
        shown = capsys.readouterr()
        assert "Usage" in shown.out + shown.err
        assert "reroot: " not in shown.err


def test_an_impossible_server(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    site = tmp_path / "site"
    assert run(["init", str(site), "--url", "http://127.0.0.1:99999"]) == 3
    assert run(["init", str(site)]) == 0
    capsys.readouterr()
    for url, code in (("http://127.0.0.1:99999", 2), ("banana", 2), ("http://127.0.0.1:1", 7)):
        assert run(["host", "list", "--site", str(site), "--control", url]) == code
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("script", ["getticket", "sortaddrs"])
def test_the_scripts_complain_in_one_sentence_too(script: str) -> None:
    module = {"getticket": "cli.getticket", "sortaddrs": "cli.plan"}[script]
    done = subprocess.run([sys.executable, "-c", f"from {module} import {script}; {script}()", "--nope"], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--nope" in done.stderr


def test_precious_check_says_what_is_in_force_and_what_is_wrong(
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:
    site = tmp_path / "site"
    assert run(["init", str(site)]) == 0
    words = ["precious", "check", "--site", str(site)]
    (site / "precious.toml").write_text('[[rule]]\nkeep = ["/srv/www/**"]\nwhen = "beside"\n')
    capsys.readouterr()
    assert run(words) == 0
    shown = capsys.readouterr().out
    assert f"{site}/precious.toml:\n  rule 1 (beside): /srv/www/**\n" in shown
    assert "(merge fstab): /etc/fstab\n" in shown and "(merge accounts): /etc/passwd" in shown
    assert '(merge units): ' in shown and 'type = ["link"]' in shown
    assert shown.index("/etc/machine-id") < shown.index("/srv/www")
    (tmp_path / "root/srv/www/x").mkdir(parents=True)
    for name in ("class/web", "host/alpha"):
        (site / "precious" / name).parent.mkdir(parents=True, exist_ok=True)
        (site / f"precious/{name}.toml").write_text("")
    assert run([*words, "--root", str(tmp_path / "root")]) == 0
    shown = capsys.readouterr().out
    assert f"line 11: /etc/machine-id matches nothing in {tmp_path}/root" in shown and "/www/** matches" not in shown
    assert "precious/class/web.toml: no host has the class 'web'" in shown and "no host has the host 'alpha'" in shown
    (site / "precious/class/web.toml").write_text("[[rule]]\nkeep = ['/srv/www/x', '/srv/www/y']")
    (tmp_path / "root/etc").mkdir()
    (tmp_path / "root/etc/os-release").write_text('ID="rocky"\nID_LIKE="rhel fedora"\n')
    assert run([*words, "--root", str(tmp_path / "root")]) == 0
    shown = capsys.readouterr().out
    assert "default redhat.toml, line" in shown and "default debian.toml" not in shown
    assert f"class/web.toml, line 1: /srv/www/y matches nothing in {tmp_path}/root" in shown
    assert "/srv/www/x matches" not in shown
    (site / "precious/host/alpha.toml").write_text("[[rule]]\nkeep = 1")
    assert run(words) == 3 and "host/alpha.toml, line 2: rule 1, keep" in capsys.readouterr().err
    (site / "precious/host/alpha.toml").unlink()
    assert run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rules"][-1]["origin"] == f"{site}/precious.toml"
    for wrong, needles in ((b'[[rule]]\nkep = ["/a"]\n', ("rule 1", "'kep'", "'keep'")), (b"\xff", ("UTF-8",))):
        (site / "precious.toml").write_bytes(wrong)
        assert run(words) == 3
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert all(needle in said for needle in ("precious.toml", *needles)), said


NAMED = re.compile(r"`reroot ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?[^`]*`")
MISSING = ("class", "level", "simulate", "image diff")


def commands() -> set[str]:
    """Return every command as it is called: `plan`, `image`, `image list` …"""
    group = LazyGroup(name="reroot")
    found = set(COMMANDS)
    for name in COMMANDS:
        inner = group.get_command(None, name)
        found |= {f"{name} {word}" for word in getattr(inner, "commands", ())}
    return found


def test_every_command_that_a_sentence_names_is_there() -> None:
    there = commands()
    for path in (path for room in ("cli", "control", "fleet", "imaging", "lab", "plumbing", "precious", "recovery",
                                   "rollout", "throttle") for path in (ROOT / room).rglob("*.py")):
        for name, word in NAMED.findall(path.read_text()):
            assert name in there, (path, name)
            if word and any(one.startswith(f"{name} ") for one in there):
                assert f"{name} {word}" in there, (path, name, word)


def test_the_commands_that_are_documented_as_missing_are() -> None:
    limits = (ROOT / "docs/limits.md").read_text()
    for name in MISSING:
        assert f"`reroot {name}`" in limits
        assert name not in commands()
