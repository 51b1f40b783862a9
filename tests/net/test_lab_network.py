"""The lab's network and its cleaning up, on real namespaces."""

from __future__ import annotations

import os
import signal
import smtplib
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic, sleep

import pytest
from pyroute2 import netns
from pyroute2.iproute.linux import NetNS

from lab import keeper, session
from lab.mailbox import Mailbox
from lab.session import Lab
from plumbing.errors import NotFoundError, RerootError, UsageError
from plumbing.run import run

pytestmark = pytest.mark.root

OWNER = """
import signal, sys
from pathlib import Path
from lab.session import Lab
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite started in the background has it ignored
with Lab(logs=Path(sys.argv[1])) as lab:
    child = lab.program(["sleep", "1000"], name="sleeper")
    print(lab.name, child.pid, lab._keeper.pid, lab.scratch, flush=True)
    child.wait(1000)
"""


def until(true: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    deadline = monotonic() + timeout_s
    while not true():
        if monotonic() > deadline:
            return False
        sleep(0.02)
    return True


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(subnets=(1, 2), logs=tmp_path) as opened:
        yield opened


def test_addresses_and_routes(lab: Lab) -> None:
    shown = lab.network.run(["ip", "-br", "-4", "addr"]).text
    assert "10.77.1.1/24" in shown
    assert "10.77.2.1/24" in shown
    assert "default" not in lab.network.run(["ip", "route"]).text
    with lab.network.inside():
        assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "1\n"
    assert "lan1" not in run(["ip", "-br", "link"]).text


def test_packets_cross_from_one_subnet_to_the_other(lab: Lab) -> None:
    clients = []
    try:
        for number in (1, 2):
            space = f"{lab.network.namespace}-c{number}"
            netns.create(space)
            clients.append(space)
            with NetNS(lab.network.namespace) as link:
                link.link("add", ifname=f"wire{number}", kind="veth", peer={"ifname": "eth0", "net_ns_fd": space})
                link.link("set", index=link.link_lookup(ifname=f"wire{number}")[0], state="up",
                          master=link.link_lookup(ifname=f"lan{number}")[0])
            with NetNS(space) as link:
                index = link.link_lookup(ifname="eth0")[0]
                link.addr("add", index=index, address=f"10.77.{number}.9", prefixlen=24)
                link.link("set", index=index, state="up")
                link.route("add", gateway=f"10.77.{number}.1")
        inside = ["nsenter", f"--net=/run/netns/{clients[0]}", "--", sys.executable, "-c"]
        server = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{clients[1]}", "--", sys.executable, "-c",
             "import socket; s = socket.create_server(('10.77.2.9', 99)); print('up', flush=True); "
             "c, who = s.accept(); c.sendall(who[0].encode())"], stdout=subprocess.PIPE)
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"
        said = run([*inside, "import socket; print(socket.create_connection(('10.77.2.9', 99), 10).recv(99).decode())"])
        assert said.text == "10.77.1.9\n"
        assert server.wait(10) == 0
    finally:
        for space in clients:
            netns.remove(space)


def test_taps_join_their_bridge(lab: Lab) -> None:
    first, second = lab.network.tap(1), lab.network.tap(2)
    assert first != second
    assert f" {first}:" in lab.network.run(["ip", "link", "show", "master", "lan1"]).text
    assert f" {second}:" in lab.network.run(["ip", "link", "show", "master", "lan2"]).text
    with pytest.raises(NotFoundError, match=r"no subnet 7; it has \[1, 2\]"):
        lab.network.tap(7)


def test_labs_run_side_by_side_with_the_same_addresses(lab: Lab, tmp_path: Path) -> None:
    with Lab(logs=tmp_path / "other") as other:
        for each in (lab, other):
            each.program([sys.executable, "-m", "http.server", "--bind", "10.77.1.1", "80"], name="http",
                         cwd=each.scratch)
            (each.scratch / "name").write_text(each.name)
        for each in (lab, other):
            assert until(partial(each.network.listening, "10.77.1.1", 80))
            got = each.network.run([sys.executable, "-c", "import urllib.request as u; "
                                    "print(u.urlopen('http://10.77.1.1/name').read().decode())"])
            assert got.text.strip() == each.name
        with pytest.raises(UsageError, match="there is a lab"):
            Lab(name=other.name).open()
    assert other.name not in keeper.labs()
    assert lab.name in keeper.labs()


def test_mailbox_keeps_what_is_sent(lab: Lab) -> None:
    box = Mailbox(lab, port=2525)
    with lab.network.inside(), smtplib.SMTP(box.address, box.port, timeout=10) as client:
        client.sendmail("alpha@fleet", ["night@crew"], "Subject: last gasp\n\nwipe: no such disk\n")
    mail, = box.wait_for_mail(10)
    assert (mail["Subject"], mail["X-Envelope-To"]) == ("last gasp", "night@crew")
    assert mail.get_content().replace("\r\n", "\n") == "wipe: no such disk\n"
    with pytest.raises(RerootError, match="1 of 2 mails"):
        box.wait_for_mail(0, count=2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_of_a_lab_whose_owner_is_killed(number: signal.Signals, tmp_path: Path) -> None:
    owner, name, sleeper, _, scratch = _owner(tmp_path)
    owner.send_signal(number)
    owner.wait(20)
    assert until(lambda: name not in keeper.labs())
    assert until(lambda: keeper.start_ticks(sleeper) is None)
    assert not scratch.exists()
    assert (tmp_path / "sleeper.log").exists()


def test_lab_down_removes_what_a_dead_keeper_left(tmp_path: Path) -> None:
    owner, name, sleeper, keeper_pid, scratch = _owner(tmp_path)
    assert name not in session.down()
    os.kill(keeper_pid, signal.SIGKILL)
    owner.kill()
    owner.wait(20)
    assert name in keeper.labs()
    assert name in session.down()
    assert name not in keeper.labs()
    assert until(lambda: keeper.start_ticks(sleeper) is None)
    assert not scratch.exists()
    with pytest.raises(UsageError, match="there is no lab"):
        session.down([name])


def _owner(logs: Path) -> tuple[subprocess.Popen[bytes], str, int, int, Path]:
    path = os.fspath(Path(__file__).parents[2])
    owner = subprocess.Popen([sys.executable, "-c", OWNER, logs], stdout=subprocess.PIPE, start_new_session=True,
                             env={**os.environ, "PYTHONPATH": path})
    assert owner.stdout is not None
    name, sleeper, keeper_pid, scratch = owner.stdout.readline().decode().split()
    return owner, name, int(sleeper), int(keeper_pid), Path(scratch)
