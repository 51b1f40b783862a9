"""What a walk over a real tree finds, against a release and against dpkg's lists."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3
from old_and_new import write

from imaging.index import Index, to_columns
from imaging.outline import Outline
from imaging.scan import scan
from precious.losses import Kind, LossReport
from precious.losswalk import LossWalk
from precious.policy import Policy, load

POLICY = load([("test", """
[[rule]]
keep = ["/home/**", "/etc/hosts"]
[[rule]]
keep = ["/srv/**"]
max_bytes = 10
[unlisted]
look = ["/etc/**"]
skip = ["/etc/ssl/**"]
[loss]
ignore = ["/tmp/**", "/var/log/**", "/**/__pycache__/**"]
""")])
LONG_AGO = 1_000_000_000 * 10**9


def index(root: Path) -> bytes:
    """Return what a release of `root` would have as its index."""
    entries = [replace(entry, digest=blake3((root / os.fsdecode(entry.path)).read_bytes()).digest())
               if entry.is_file else entry for entry in scan(root)]
    return zstandard.compress(json.dumps(to_columns(Index(tuple(entries), ())), separators=(",", ":")).encode())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    for path in ("etc/passwd", "etc/hosts", "usr/bin/tool", "usr/bin/other", "usr/share/doc/x", "home/ada/mail",
                 "tmp/x", "var/log/messages"):
        os.utime(write(made, path, f"{path} as the release has it\n".encode()), ns=(LONG_AGO, LONG_AGO))
    os.link(made / "usr/bin/tool", made / "usr/bin/tool-too")
    (made / "usr/bin/sh").symlink_to("other")
    return made


def newest_ctime_s(root: Path) -> float:
    return max(path.lstat().st_ctime_ns for path in [root, *root.rglob("*")]) / 1e9


def look(root: Path, outline: Outline | None, since_s: float = 0.0, policy: Policy = POLICY) -> LossReport:
    return LossWalk(root, policy, outline, int(since_s * 1e9)).report("test")


def told(report: LossReport) -> dict[tuple[str, str], set[str]]:
    return {(one.kind.value, one.where): set(one.names) for one in report.findings}


def test_a_root_as_it_was_installed_has_nothing_to_lose(root: Path) -> None:
    outline = Outline(index(root))
    assert told(look(root, outline, newest_ctime_s(root) + 1)) == {}
    assert told(look(root, outline)) == {}, "every file read, and each is as it was"
    assert look(root, outline).policy == Policy.from_json(json.loads(json.dumps(POLICY.to_json()))).digest


def edit(root: Path) -> None:
    (root / "etc/passwd").write_bytes(b"other\n")


def edit_behind_its_times(root: Path) -> None:
    before = (root / "etc/passwd").stat()
    (root / "etc/passwd").write_bytes((root / "etc/passwd").read_bytes().replace(b"release", b"esaeler"))
    os.utime(root / "etc/passwd", ns=(before.st_atime_ns, before.st_mtime_ns))


def become_setuid(root: Path) -> None:
    (root / "etc/passwd").chmod(0o4755)


def become_a_link(root: Path) -> None:
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to("/dev/null")


def become_a_fifo(root: Path) -> None:
    (root / "etc/passwd").unlink()
    os.mkfifo(root / "etc/passwd")


@pytest.mark.parametrize("change", [edit, edit_behind_its_times, become_setuid, become_a_link, become_a_fifo])
def test_a_change_is_seen_whatever_it_is(root: Path, change: Callable[[Path], None]) -> None:
    outline, since_s = Outline(index(root)), newest_ctime_s(root)
    while newest_ctime_s(root) <= since_s:  # the clock of the kernel ticks every few milliseconds
        change(root)
        (root / "tmp/x").touch()
    assert told(look(root, outline, since_s)) == {("changed", "/etc"): {"/etc/passwd"}}


def test_a_touched_file_and_a_moved_hard_link_are_no_loss(root: Path) -> None:
    outline = Outline(index(root))
    os.utime(root / "etc/passwd")
    (root / "usr/bin/tool").touch()
    os.link(root / "usr/bin/tool", root / "home/ada/tool")
    assert told(look(root, outline)) == {}


def test_new_folders_are_told_whole_and_new_files_by_name(root: Path) -> None:
    outline = Outline(index(root))
    for path in ("etc/app.conf", "usr/lib/app/bin/run", "usr/lib/app/data", "usr/bin/mine", "home/ada/precious",
                 "tmp/y", "var/log/app/log", "usr/lib/app/__pycache__/x.pyc", "etc/ssl/made", "srv/small"):
        write(root, path, b"new")
    write(root, "srv/big", b"x" * 100)
    (root / "usr/bin/editor").symlink_to("/etc/alternatives/editor")
    (root / "usr/share/empty").mkdir()
    report = look(root, outline)
    assert told(report) == {
        ("added", "/etc"): {"/etc/app.conf"}, ("added", "/usr/bin"): {"/usr/bin/mine"}, ("added", "/srv"): {"/srv/big"},
        ("added", "/usr/lib"): {"/usr/lib/app/bin/run", "/usr/lib/app/data"}}
    whole = {one.where: (one.whole, one.archived) for one in report.findings}
    assert whole == {"/etc": (False, 1), "/usr/bin": (False, 0), "/srv": (True, 0), "/usr/lib": (True, 0)}


def test_following_the_suggested_rules_leaves_nothing(root: Path) -> None:
    outline = Outline(index(root))
    for number in range(15):
        write(root, f"etc/many{number}", b"new")
    write(root, "etc/odd \"name\"*?", b"new")
    write(root, b"usr/lib/n\xff\x1b/file", b"new")
    edit(root)
    report = look(root, outline)
    text = "".join(f"[[rule]]\nkeep = {json.dumps(one.keep, ensure_ascii=False)}\n" for one in report.findings)
    policy = load([("more", text)])
    assert len(report.findings) == 3 and told(look(root, outline, policy=replace(POLICY, rules=(
        *POLICY.rules, *policy.rules)))) == {}


@pytest.fixture
def packaged(root: Path) -> Path:
    info = root / "var/lib/dpkg/info"
    write(root, "etc/tool.conf", b"as shipped\n")
    write(root, "var/lib/dpkg/status", b"Package: tool\nConffiles:\n /etc/tool.conf "
          + hashlib.md5(b"as shipped\n").hexdigest().encode() + b"\n")
    write(root, "var/lib/dpkg/info/tool.list", b"/.\n/etc\n/etc/tool.conf\n/usr\n/usr/bin\n"
          b"/usr/bin/tool\n/usr/bin/sh\n/usr/share\n/usr/share/doc\n/usr/share/doc/x\n/home\n/tmp\n/var\n/var/log\n/var/lib\n/bin/other\n")
    sums = [f"{hashlib.md5((root / path).read_bytes()).hexdigest()}  {path}"
            for path in ("usr/bin/tool", "usr/share/doc/x", "usr/bin/other")]
    (info / "tool.md5sums").write_text("\n".join(sums).replace("usr/bin/other", "bin/other"))  # of before the merge
    return root


def test_without_a_release_packages_are_what_is_compared_with(packaged: Path) -> None:
    assert told(look(packaged, None)) == {
        ("added", "/etc"): {"/etc/passwd"}, ("added", "/usr/bin"): {"/usr/bin/tool-too"},
        ("added", "/var/lib/dpkg"): {"/var/lib/dpkg/status", "/var/lib/dpkg/info/tool.list",
                                     "/var/lib/dpkg/info/tool.md5sums"}}
    (packaged / "usr/share/doc/x").write_bytes(b"edited")
    (packaged / "usr/bin/other").write_bytes(b"edited too")
    (packaged / "etc/tool.conf").write_bytes(b"edited as well")
    assert told(look(packaged, None))["changed", "tool"] == {
        "/usr/share/doc/x", "/usr/bin/other", "/etc/tool.conf"}


def test_against_a_release_a_package_s_own_files_are_told_by_package(packaged: Path) -> None:
    before = index(packaged)
    write(packaged, "usr/bin/vim", b"an editor")
    (packaged / "usr/share/doc/x").write_bytes(b"a newer version")
    write(packaged, "var/lib/dpkg/info/vim.list", b"/usr/bin/vim\n")
    write(packaged, "var/lib/dpkg/info/vim.md5sums",
          hashlib.md5(b"an editor").hexdigest().encode() + b"  usr/bin/vim\n")
    write(packaged, "var/lib/dpkg/info/tool.md5sums",
          hashlib.md5(b"a newer version").hexdigest().encode() + b"  usr/share/doc/x\n")
    found = told(look(packaged, Outline(before)))
    assert found["installed", "vim"] == {"/usr/bin/vim"} and found["updated", "tool"] == {"/usr/share/doc/x"}


def test_as_a_program_it_prints_its_progress_and_the_report(root: Path, tmp_path: Path) -> None:
    (tmp_path / "index").write_bytes(index(root))
    write(root, "etc/mine", b"x")
    job = {"root": str(root), "policy": POLICY.to_json(), "baseline": "b", "index": str(tmp_path / "index")}
    done = subprocess.run([sys.executable, "-m", "precious.losswalk"], input=json.dumps(job).encode(),
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    report = LossReport.from_json(json.loads(done.stdout.splitlines()[-1])["report"])
    assert told(report) == {("added", "/etc"): {"/etc/mine"}}
    (tmp_path / "index").write_bytes(b"rot")
    done = subprocess.run([sys.executable, "-m", "precious.losswalk"], input=json.dumps(job).encode(),
                          capture_output=True)
    assert json.loads(done.stdout)["kind"] == "corrupt" and done.returncode == 10


def test_a_root_with_nothing_to_compare_with_asks_one_question(root: Path) -> None:
    job = {"root": str(root), "policy": POLICY.to_json(), "baseline": "packages"}
    done = subprocess.run([sys.executable, "-m", "precious.losswalk"], input=json.dumps(job).encode(),
                          capture_output=True)
    report = LossReport.from_json(json.loads(done.stdout)["report"])
    assert [(one.kind, one.where, one.asks) for one in report.findings] == [(Kind.MORE, "/", True)]
