"""Starting and stopping: what is wrong is said in one sentence; init makes a site or nothing."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from servers import ROOT, Server, child_pids, content_pids, free_port, make_site, serving, wait_until
from sqlalchemy import MetaData
from sqlalchemy.exc import OperationalError

from cli.main import run
from control import config as configuration
from control import site as sites
from control.database import MIGRATIONS, Database, metadata, unwritable
from control.site import Site
from imaging.catalogue import LIFETIME_S, Catalogue
from plumbing import clock
from plumbing.errors import ConfigError, RefusedError
from throttle.records import Lease
from throttle.repository import SqlRepository


def reroot(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", "from cli.main import main; main()", *words],
                          cwd=ROOT, capture_output=True, text=True, timeout=60)


def fails(site: Site, code: int, *needles: str) -> None:
    """Run `reroot serve` in this process: it must end with this code and one sentence."""
    said = io.StringIO()
    with redirect_stderr(said):
        assert run(["serve", "--site", str(site.root)]) == code, said.getvalue()
    (sentence,) = (line for line in said.getvalue().splitlines() if line.startswith("reroot: "))
    assert all(needle in sentence for needle in needles), sentence
    assert "Traceback" not in said.getvalue()


def test_init_makes_a_private_site_once(tmp_path: Path) -> None:
    site = sites.init(tmp_path / "a" / "site", "http://control:8080")
    assert configuration.load(site.config).server.public_url == "http://control:8080"
    assert stat.S_IMODE((site.keys / "orders.pem").stat().st_mode) == 0o600
    with pytest.raises(RefusedError, match="not an empty directory"):
        sites.init(site.root, "http://control:8080")
    with pytest.raises(ConfigError, match="public_url"):
        sites.init(tmp_path / "b", "control")
    assert not (tmp_path / "b").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_init_into_an_empty_directory_and_its_command(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    done = reroot("init", str(tmp_path / "site"), "--url", "http://c:1", "--json")
    assert json.loads(done.stdout)["site"] == str(tmp_path / "site")
    done = reroot("init", str(tmp_path / "site"), "--json")
    assert done.returncode == 6
    assert json.loads(done.stderr)["kind"] == "refused"


def test_no_site(tmp_path: Path) -> None:
    fails(Site(tmp_path), 3, "is not a site directory", "reroot init")


@pytest.mark.parametrize(("spoil", "code", "needles"), [
    (lambda s: s.config.write_text(s.config.read_text().replace("content =", "contents =")), 3,
     ("line 5", "'server.contents'", "did you mean 'content'")),
    (lambda s: s.config.write_text(s.config.read_text().replace("enabled", "enable")), 3, ("enabled",)),
    (lambda s: s.config.write_text("x = ["), 3, ("is not TOML",)),
    (lambda s: s.hosts.write_text('[[host]]\nname = "a"\n[[host]]\nname = "a"\n'), 3, ("line 4", "twice")),
    (lambda s: s.tickettab.write_text("nonsense"), 3, ("tickettab",)),
    (lambda s: s.precious.write_text("[[rule]]\nkep = []"), 3, ("precious.toml", "kep")),
    (lambda s: s.orders_key.unlink(), 3, ("orders.pem",)),
    (lambda s: (s.keys / "admin.token").write_text("short"), 3, ("admin.token", "32")),
    (lambda s: (s.keys / "admin.token").unlink(), 3, ("admin.token",)),
    (lambda s: s.config.write_text(s.config.read_text().replace("127.0.0.1:", "192.0.2.1:")), 3, ("[server] api",)),
    (lambda s: s.config.write_text(s.config.read_text().replace("[dhcp]\nenabled = false", "[dhcp]\nenabled = true")),
     3, ("[[dhcp.subnet]]",)),
    (lambda s: s.config.write_text(s.config.read_text().replace("[server]", '[server]\ndatabase = "nodb://x"')), 3,
     ("database",)),
    (lambda s: (s.catalogue / "metadata/timestamp.json").unlink(), 10, ("timestamp.json",)),
    (lambda s: s.config.write_text(s.config.read_text().replace('["root-dump"]', '["root-dumb"]')), 3,
     ("[orders] services", "'root-dumb'", "did you mean 'root-dump'?")),
    (lambda s: s.config.write_text(s.config.read_text().replace("tick_s = 0.1", "tick_s = inf")), 3,
     ("rollout.tick_s = inf",)),
])
def test_what_is_wrong_is_said(
    tmp_path: Path, spoil: Callable[[Site], object], code: int, needles: tuple[str, ...],
) -> None:
    site = make_site(tmp_path / "site")
    spoil(site)
    fails(site, code, *needles)


def test_expired_root(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    Catalogue(site.catalogue, site.keys).rotate("timestamp", clock.wall() - LIFETIME_S["root"] - 60)
    fails(site, 5, "root expired")


def test_a_recovery_image_that_is_not_there_yet_is_a_problem_until_it_is(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site", '[boot]\nrecovery = "base/1/amd64"\n')
    with serving(site) as server:
        (problem,) = server.admin("GET", "/status").json()["problems"]
        assert "[boot] recovery = 'base/1/amd64'" in problem and "reroot recovery list" in problem
        assert problem in server.log.read_text()
        Catalogue(site.catalogue, site.keys).publish("recovery/base/1/amd64.json", b"{}")
        assert server.admin("GET", "/status").json()["problems"] == []


def test_port_in_use(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    host, port = configuration.split_listen(configuration.load(site.config).server.content)
    with socket.socket() as holder:
        holder.bind((host, port))
        holder.listen()
        fails(site, 11, "[server] content", "in use")


def test_second_server_on_one_site(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    with serving(site):
        fails(site, 11, "another `reroot serve`")


def test_a_postgresql_that_is_away_is_told_as_that() -> None:
    database = Database(f"postgresql+psycopg://reroot@127.0.0.1:{free_port()}/reroot")
    with pytest.raises(OperationalError) as caught:
        database.check()
    assert re.fullmatch(r"the server's database does not answer \(.*refused.*\); ask again", unwritable(caught.value))


def test_database_of_a_newer_version(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    Database(f"sqlite:///{site.database}").migrate()
    with sqlite3.connect(site.database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    fails(site, 3, "another version of reroot")


def test_migrations_make_what_the_code_expects(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/x.db")
    database.migrate()
    database.migrate()
    whole = MetaData()
    for part in metadata():
        for table in part.tables.values():
            table.to_metadata(whole)
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), whole) == []
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
    database.close()


@pytest.mark.parametrize("boot", ["of today", "of yesterday"])
def test_live_tickets_are_kept_by_the_migration(tmp_path: Path, boot: str) -> None:
    database = Database(f"sqlite:///{tmp_path}/x.db")
    settings = AlembicConfig()
    settings.set_main_option("script_location", str(MIGRATIONS))
    with database.engine.connect() as connection:
        settings.attributes["connection"] = connection
        command.upgrade(settings, "0001")
        for statement in (f"INSERT INTO ticket_counter VALUES (1, 80, '{boot}')",
                          "INSERT INTO ticket_leases VALUES (79, 'dump', 'milton', 'alpha', 3600, 5000.5)",
                          "INSERT INTO ticket_leases VALUES (80, 'xv', 'xv', 'beta', 60, 1060.0)"):
            connection.exec_driver_sql(statement)
        connection.commit()
    database.migrate()
    found = SqlRepository(database.engine, "of today").load(now=1000.0)
    ends = (5000.5, 1060.0) if boot == "of today" else (4600.0, 1060.0)
    assert (found.version, found.last_fence) == (0, 80)
    assert list(found.records) == [Lease("dump", "milton", 79, "alpha", 3600, ends[0]),
                                   Lease("xv", "xv", 80, "beta", 60, ends[1])]
    with database.engine.connect() as connection:
        settings.attributes["connection"] = connection
        command.downgrade(settings, "0001")
        kept = connection.exec_driver_sql("SELECT fence, holder FROM ticket_leases").all()
        assert kept == [(79, "alpha"), (80, "beta")]
        connection.commit()
    database.close()


def test_ready_is_told_and_sigterm_is_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site(tmp_path / "site")
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        with serving(site) as server:
            assert listener.recv(100) == b"READY=1"
            children = child_pids(server.process.pid)
            assert children
            assert server.stop() == 0
            assert listener.recv(100) == b"STOPPING=1"
    wait_until(lambda: not any(alive(child) for child in children))
    assert "Traceback" not in server.log.read_text()


def test_content_process_that_dies_comes_back(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    with serving(site) as server:
        (child,) = content_pids(server)
        os.kill(child, 9)
        wait_until(lambda: content_pids(server) not in ([], [child]) and responds(server))


def test_children_go_when_the_server_is_killed(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    with serving(site) as server:
        children = content_pids(server)
        server.process.kill()
        server.process.wait()
        wait_until(lambda: not any(alive(child) for child in children))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def responds(server: Server) -> bool:
    from servers import answers

    return answers(server)
