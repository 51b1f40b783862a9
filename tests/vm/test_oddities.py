"""A host full of oddities becomes a Debian 13 host, and each of its entries is accounted for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Begin, Tell

from lab import oddities, reckoning
from lab.demo import Wish
from lab.machine import Machine
from precious.policy import load, shipped

pytestmark = pytest.mark.root

PYTHON = ("/usr/lib/reroot/lib/ld-linux-x86-64.so.2 --library-path /usr/lib/reroot/lib /usr/lib/reroot/bin/python3 -I "
          "/run/oddities.py")
MOUNT = "srv/odd/special/mount"
SETTINGS = f"""
set -e
groupadd --gid 993 operators
groupadd --gid 994 tunnels
useradd --system --uid 996 --home-dir /srv/backup --create-home --shell /usr/sbin/nologin backupper
useradd --system --uid 990 ghost
useradd --create-home --groups operators,adm --shell /bin/sh dora
usermod --append --groups operators,tunnels carol
echo dora:sunday | chpasswd
usermod --shell /bin/sh root
echo '5 5 * * 0 /usr/bin/true # own' | crontab -u dora -
echo '7 3 * * * root /usr/local/bin/job' >> /etc/crontab
echo '9 9 * * * root /usr/bin/true' > /etc/cron.d/own
echo '10.9.8.7 database.example database' >> /etc/hosts
echo 'tmpfs /{MOUNT} tmpfs size=1m 0 0' >> /etc/fstab
echo 'PrintMotd no' > /etc/ssh/sshd_config.d/own.conf
echo '# changed' >> /etc/ssh/sshd_config
dpkg-statoverride --update --add root operators 4750 /usr/bin/newgrp
dpkg-statoverride --add ghost root 700 /usr/bin/none
cd /etc/systemd/system
printf '[Service]\\nExecStart=/usr/bin/true\\n[Install]\\nWantedBy=multi-user.target\\n' > own.service
systemctl enable own.service
systemctl disable fstrim.timer
systemctl mask apt-daily.timer
update-alternatives --set pager /bin/more
echo secret > /srv/backup/dump
chown backupper:operators /srv/backup/dump
chmod 640 /srv/backup/dump
echo '#!/bin/sh' > /usr/local/bin/job
chmod 755 /usr/local/bin/job
"""
GROWING = "srv/growing"
WRITER = f"systemd-run --quiet sh -c 'while :; do date +%N >> /{GROWING}; sleep 0.1; done'"


MANY, SPARSE_BYTES, DEEP = 3000, 128 << 20, 600
"""Less than natively, for each byte and file is read seven times by an emulated processor."""


def dress(root: Path) -> None:
    oddities.make(str(root), oddities.Ids(1000, 993), many=MANY, sparse_bytes=SPARSE_BYTES, deep=DEEP)


def picture(machine: Machine) -> dict[str, dict[str, object]]:
    machine.write_file("/run/oddities.py", Path(oddities.__file__).read_bytes())
    machine.succeed(f"{PYTHON} picture / /run/picture.json", timeout_s=300)
    found: dict[str, dict[str, object]] = json.loads(machine.read_file("/run/picture.json"))
    found.pop(MOUNT)  # a filesystem of its own, made anew at every boot
    return found


def test_a_host_full_of_oddities_loses_nothing_untold(begin: Begin, tell: Tell) -> None:
    """Fault 7 and more, from Debian 12 to 13: each entry is as it was, or the report says what became of it."""
    run = begin(Wish(dress=dress))
    run.boot_fleet()
    machine = run.hosts[0].on
    machine.write_file("/run/settings.sh", SETTINGS.encode())
    machine.succeed("sh /run/settings.sh", timeout_s=120)
    machine.write_file("/run/oddities.py", Path(oddities.__file__).read_bytes())
    machine.succeed(f"{PYTHON} flag /", timeout_s=60)
    machine.succeed(f"mount /{MOUNT}; echo over > /{MOUNT}/over; sync")
    machine.succeed(WRITER)
    before = picture(machine)
    owned = frozenset(machine.succeed("cat /var/lib/dpkg/info/*.list").splitlines())
    run.order()
    run.compare({"alpha": None}, run.follow())
    after = picture(machine)
    report = json.loads(machine.succeed("cat /local/recover/precious/*/putback.json"))
    grown = before.pop(GROWING)
    policy = load([shipped()])

    def verdict(path: bytes) -> str | None:
        rule = policy.rule_for(path)
        return None if rule is None else rule.when.value

    rows = reckoning.reckon(before, after, report, verdict, image=lambda path: (
        f"/{path.decode(errors='replace')}" in owned or not policy.looks_at(path)))
    sentences = [row for name in ("conflict", "dropped", "notes") for row in report[name]]
    tell(reckoning.table(rows) + "\n" + "\n".join(sentences))
    assert reckoning.wrong(rows) == []
    fates = {row.path: row.fate for row in rows}
    assert fates["usr/local/games"] == "beside" and fates["etc/ssh/sshd_config"] == "archived"
    assert sum(path.startswith("srv/odd/many/") and fate == "kept" for path, fate in fates.items()) == MANY
    assert int(str(after[GROWING]["size"])) >= int(str(grown["size"]))
    assert int(str(after["srv/odd/sparse"]["blocks"])) * 512 < 32 << 20
    assert after["srv/backup/dump"]["user"] == "backupper" and after["srv/backup/dump"]["group"] == "operators"
    check_settings(machine, sentences)


def check_settings(machine: Machine, sentences: list[str]) -> None:
    """What was set by hand still has its effect."""
    assert machine.succeed(f"mountpoint -q /{MOUNT} && umount /{MOUNT} && cat /{MOUNT}/under").startswith("under a")
    assert machine.succeed("stat -c '%U %G %a' /usr/bin/newgrp").strip() == "root operators 4750"
    assert machine.succeed("systemctl is-enabled apt-daily.timer || true").strip() == "masked"
    assert "/bin/more" in machine.succeed("update-alternatives --query pager | grep Value")
    assert {"operators", "tunnels"} <= set(machine.succeed("id -nG carol").split())
    assert machine.succeed("crontab -l -u dora").strip().endswith("# own")
    assert "/usr/local/bin/job" in machine.read_file("/etc/crontab").decode()
    for table in ("passwd", "group"):
        ids = machine.succeed(f"getent {table} | cut -d: -f3 | sort | uniq -d").split()
        assert ids == [], f"two of {table} have one id"
    for flag, path in (("i", "flags/immutable"), ("a", "flags/append-only"), ("i", "flags/folder")):
        assert any(f"/srv/odd/{path} " in row and f"chattr +{flag}" in row for row in sentences), path
    assert any("socket" in row and "left out" in row for row in sentences)
    assert any("own.service" in row and "no unit" in row for row in sentences)
    assert any("ghost" in row for row in sentences)
