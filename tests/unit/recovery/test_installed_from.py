"""The third side of merges on the whole road: what the release that the host was installed from had."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from one_host import Host, drive, old_tree, reissue

from imaging.release import Release
from plumbing.errors import NetworkError
from recovery.phases import oldrelease
from recovery.session import Session

pytestmark = pytest.mark.root

POLICY: dict[str, object] = {"rules": [
    {"keep": ["/etc/hostname", "/etc/ssh/ssh_host_*"], "exclude": [], "when": "host", "origin": "test"},
    {"keep": ["/etc/crontab"], "exclude": [], "when": "merge", "merge": "crontab", "origin": "test"},
    {"keep": ["/etc/hosts"], "exclude": [], "when": "merge", "merge": "hosts", "origin": "test"},
    {"keep": ["/etc/passwd", "/etc/group"], "exclude": [], "when": "merge", "origin": "test"},
    {"keep": ["/etc/systemd/system/*.wants/*"], "exclude": [], "when": "merge", "merge": "units", "origin": "test"}],
    "unlisted": {"look": [], "skip": [], "max_bytes": 0}}
WANTS = "etc/systemd/system/timers.target.wants"
PASSWD = "root:x:0:0:root:/root:/bin/bash\nbackup:x:34:34::/var/backups:/usr/sbin/nologin\n"
GROUP = "root:x:0:\nbackup:x:34:\n"
OLD_JOB, NEW_JOB, OWN_JOB = ("1 1 * * * root old\n", "2 2 * * * root new\n", "3 3 * * * root own\n")


def fill(root: Path, job: str) -> None:
    (root / "etc/crontab").write_text(job)
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    (root / WANTS).mkdir(parents=True, exist_ok=True)
    for name in ("a.timer", "b.timer"):
        (root / "usr/lib/systemd/system").mkdir(parents=True, exist_ok=True)
        (root / "usr/lib/systemd/system" / name).touch()
        (root / WANTS / name).symlink_to(f"/usr/lib/systemd/system/{name}")


@pytest.fixture
def installed(alpha: Host) -> Host:
    """A host that release 12 of this site was installed on, and where somebody has changed things since."""
    tree = alpha.folder / "release-12"
    tree.mkdir()
    old_tree(tree)
    fill(tree, OLD_JOB)
    release = alpha.site.release(tree, "12")
    fill(alpha.folder / "new", NEW_JOB)
    with alpha.mounted("root") as root:
        fill(root, OLD_JOB + OWN_JOB)
        (root / "etc/passwd").write_text(PASSWD.replace("/var/backups", "/srv/backups"))
        (root / WANTS / "b.timer").unlink()
        (root / "etc/reroot").mkdir()
        (root / "etc/reroot/release.json").write_text(json.dumps(
            {"release": "test/12/amd64", "digest": release.digest, "order": "x"}))
    reissue(alpha, release=alpha.site.release(alpha.folder / "new", "13b"), precious=POLICY)
    return alpha


def outcome(made: Host) -> tuple[dict[str, str], dict[str, list[str]], set[str]]:
    """Drive the upgrade; return the merged files, the report, and what is enabled."""
    _, menus = drive(made)
    assert menus == []
    with made.mounted("root") as root, made.mounted("local") as local:
        files = {name: (root / "etc" / name).read_text() for name in ("crontab", "hosts", "passwd")}
        (told,) = (local / "recover/precious").glob("*/putback.json")
        return files, json.loads(told.read_bytes()), {path.name for path in (root / WANTS).iterdir()}


def test_what_the_old_release_had_decides(installed: Host) -> None:
    read = installed.site.blobs_read
    files, report, enabled = outcome(installed)
    assert installed.site.blobs_read > read
    assert files["crontab"] == NEW_JOB + OWN_JOB, "the old release's job is no job of the host's"
    assert any("was the old release's" in row for row in report["dropped"])
    assert "/srv/backups" in files["passwd"], "the host changed it, the image did not"
    assert enabled == {"a.timer"} and any("b.timer: is the image's" in row for row in report["notes"])
    assert not any("host was installed from" in row for row in report["notes"])


def old_release(made: Host) -> Release:
    (manifest,) = (made.site.folder / "catalogue/targets/releases/test/12").glob("*.amd64.json")
    return Release.parse(manifest.read_bytes())


def _gone(made: Host) -> None:
    made.site.store.blob_path(old_release(made).layer_digest).unlink()


def _lying(made: Host) -> None:
    """Of the old release's layer the index comes right and no frame does."""
    old = old_release(made)
    layer = made.site.store.blob_path(old.layer_digest).read_bytes()

    def spoil(offset: int, data: bytes) -> bytes:
        return bytes(len(data)) if offset < old.index_offset and layer[offset:].startswith(data) else data

    made.site.break_blob = spoil


def _another(made: Host) -> None:
    with made.mounted("root") as root:
        (root / "etc/reroot/release.json").write_text(json.dumps(
            {"release": "test/12/amd64", "digest": "sha256:" + "0" * 64}))


def _never(made: Host) -> None:
    with made.mounted("root") as root:
        (root / "etc/reroot/release.json").write_text(json.dumps({"release": "test/11/amd64", "digest": "sha256:1"}))


@pytest.mark.parametrize(("damage", "why"), [
    (_gone, "copy the release to it"), (_lying, "other bytes"), (_another, "is another one"),
    (_never, "is not in the catalogue")])
def test_what_cannot_be_had_is_noted_and_merging_goes_on(
        installed: Host, damage: Callable[[Host], None], why: str) -> None:
    damage(installed)
    files, report, _ = outcome(installed)
    assert files["crontab"] == NEW_JOB + OLD_JOB + OWN_JOB, "two-way: it might be the host's own"
    assert [why in row for row in report["notes"] if "test/1" in row] == [True]


@pytest.mark.parametrize("said", [b"", b"{}", b"[1]", b'{"release": "../x", "digest": "y"}', b"[" * 20_000, None])
def test_a_host_that_does_not_say_what_it_is_is_asked_nothing(installed: Host, said: bytes | None) -> None:
    with installed.mounted("root") as root:
        path = root / "etc/reroot/release.json"
        path.unlink()
        if said is None:
            path.symlink_to("/proc/self/environ")
        else:
            path.write_bytes(said)
        assert oldrelease.installed(root) is None
    files, report, _ = outcome(installed)
    assert OLD_JOB in files["crontab"] and not any("installed from" in row for row in report["notes"])


def test_a_restart_before_the_wipe_asks_again(installed: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an attempt left beside its archive is not taken for what the next one finds."""
    asked: list[Session] = []
    real = oldrelease.ask

    def failing(session: Session, *rest: object) -> object:
        asked.append(session)
        if len(asked) == 1:
            raise NetworkError("the network went")
        return real(session, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(oldrelease, "ask", failing)
    files, _, _ = outcome(installed)
    assert len(asked) == 2 and files["crontab"] == NEW_JOB + OWN_JOB
