"""What rpm says of a root: a real package, built and installed by the real rpm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbing.run import run
from precious import rpm
from precious.losses import Kind
from precious.losswalk import LossWalk
from precious.policy import load

pytestmark = pytest.mark.root

SPEC = """
Name: shop
Version: 1
Release: 1
Summary: a shop
License: none
BuildArch: noarch
%description
A shop.
%install
mkdir -p %{buildroot}/etc/shop %{buildroot}/usr/bin %{buildroot}/var/log
echo as shipped > %{buildroot}/etc/shop/shop.conf
echo as shipped > %{buildroot}/etc/shop/other.conf
echo tool > %{buildroot}/usr/bin/tool
echo tool > %{buildroot}/usr/bin/edited
touch %{buildroot}/var/log/shop.log
%files
%dir /etc/shop
%config(noreplace) /etc/shop/shop.conf
%config /etc/shop/other.conf
/usr/bin/tool
/usr/bin/edited
%ghost /var/log/shop.log
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root that only rpm knows: one package installed, two files of it edited, one file of nobody."""
    work = tmp_path_factory.mktemp("rpm")
    (work / "shop.spec").write_text(SPEC)
    run(["rpmbuild", "-bb", "--define", f"_topdir {work}/build", work / "shop.spec"])
    built = next((work / "build/RPMS").rglob("*.rpm"))
    root = work / "root"
    root.mkdir()
    run(["rpm", "--root", root, "--dbpath", "/var/lib/rpm", "--initdb"])
    run(["rpm", "--root", root, "--dbpath", "/var/lib/rpm", "--install", "--nodeps", "--noscripts", built])
    assert not (root / "var/lib/dpkg").exists()
    (root / "etc/shop/shop.conf").write_text("edited by a person\n")
    (root / "usr/bin/edited").write_text("echo mine\n")
    (root / "usr/bin/mine").write_text("of nobody\n")
    return root


def test_who_has_what_and_whether_it_is_as_it_came(root: Path) -> None:
    known = rpm.read(root)
    assert known.known and known.owner(b"usr/bin/tool") == "shop" and known.owner(b"usr/bin/mine") is None
    shipped = {path: known.as_shipped(path) for path in (
        b"etc/shop/shop.conf", b"etc/shop/other.conf", b"usr/bin/tool", b"usr/bin/edited", b"var/log/shop.log")}
    assert shipped == {b"etc/shop/shop.conf": False, b"etc/shop/other.conf": True, b"usr/bin/tool": True,
                       b"usr/bin/edited": False, b"var/log/shop.log": None}
    assert set(known.conffiles) == {b"etc/shop/shop.conf", b"etc/shop/other.conf"}
    assert 0 < known.unpacked_ns("shop") <= (root / "usr/bin/mine").lstat().st_mtime_ns + 2 * 10**9


def test_the_loss_report_of_such_a_host_names_what_people_changed(root: Path) -> None:
    policy = load([("test", '[loss]\nignore = ["/var/**", "/usr/lib/sysimage/**", "/dev/**"]\n')])
    for name in ("usr/bin/edited", "etc/shop/shop.conf"):  # rpm counts in seconds, and installing takes less
        os.utime(root / name, (2e9, 2e9))
    report = LossWalk(root, policy).report("packages")
    told = {(finding.kind, name) for finding in report.findings for name in finding.names}
    assert told == {(Kind.CHANGED, "/etc/shop/shop.conf"), (Kind.CHANGED, "/usr/bin/edited"),
                    (Kind.ADDED, "/usr/bin/mine")}, report.findings


def test_without_rpm_nothing_is_known(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert not rpm.read(root).known


@given(st.lists(st.binary(max_size=60), max_size=20).map(b"\t".join) | st.binary(max_size=300))
def test_any_answer_is_understood_or_passed_over(text: bytes) -> None:
    found = rpm.parse(Path("/nonexistent"), text)
    assert all(found.as_shipped(path) in (None, False) for path in found.owned)
