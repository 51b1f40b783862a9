"""Sessions at a real server and by themselves: opened by a signature, replayed by nobody, gone when the host is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from servers import Machine, Server, make_site, serving, wait_until

from control import sessions
from control.database import Database, HostRow
from control.sessions import Sessions
from plumbing import clock, hostauth, session
from plumbing.conversation import Conversation
from plumbing.errors import TrustError, UsageError
from plumbing.http import Client, Response

Make = Callable[[], Machine]
GET, WISH = "/api/v1/tickets", b'{"service": "root-dump"}'
WAYS = {"door": {}, "uvicorn": {"X-Unusual": "1"}}


class Speaker:
    """A machine in a session, by hand: every word of a request can be set."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.count = machine, 0
        self.key = session.new_key()
        public = session.public_of(self.key)
        answer = machine.client().post_json(session.OPENING, {"public": public})
        assert answer.status == 201, answer.body
        told = answer.json()
        assert isinstance(told, dict)
        assert told["lifetime_s"] == sessions.LIFETIME_S
        self.identity = str(told["session"])
        self.secret = session.agree(self.key, told["public"], machine.name, self.identity, (public, told["public"]))

    def header(self, method: str, target: str, body: bytes = b"", count: int | None = None) -> dict[str, str]:
        self.count += 1
        return session.speak(self.secret, self.identity, self.count if count is None else count, method, target, body)

    def ask(self, method: str = "POST", target: str = GET, body: bytes = WISH, more: Mapping[str, str] = {},
            ) -> Response:
        return self.send(method, target, body, {**self.header(method, target, body), **more})

    def send(self, method: str, target: str, body: bytes, headers: dict[str, str]) -> Response:
        return Client(self.machine.server.api).request(method, target, body=body, headers=headers)


@pytest.fixture(params=list(WAYS))
def more(request: pytest.FixtureRequest) -> dict[str, str]:
    """Headers that lead a request through the ticket door or through uvicorn."""
    return dict(WAYS[request.param])


def test_a_session_serves_every_request_of_its_host(server: Server, machine: Make, more: dict[str, str]) -> None:
    host = machine().join()
    speaker = Speaker(host)
    ticket = speaker.ask(more=more).json()
    assert isinstance(ticket, dict)
    path = f"{GET}/{ticket['ticket']}"
    assert speaker.ask("POST", f"{path}/renew", b"", more).json() == ticket
    assert [speaker.ask("DELETE", path, b"", more).status for _ in range(2)] == [204, 204]
    assert speaker.ask("GET", f"/api/v1/hosts/{host.name}/order?wait=0", b"", more).status == 204


def test_nothing_of_a_request_can_be_changed(server: Server, machine: Make, more: dict[str, str]) -> None:
    speaker = Speaker(machine().join())
    good = speaker.header("POST", GET, WISH, 7)
    identity, count, digest = good[session.HEADER].split(" ")
    assert speaker.send("POST", GET, WISH + b" ", {**good, **more}).status == 401
    assert speaker.send("POST", f"{GET}/x_1/renew", WISH, {**good, **more}).status == 401
    assert speaker.send("DELETE", f"{GET}/x_1", WISH, {**good, **more}).status == 401
    for value in (f"{identity} 8 {digest}", f"{identity} {count} {digest[::-1]}", f"{'A' * 16} {count} {digest}",
                  f"{identity} {count}", "", "x" * 1500, f"{identity} {'9' * 400} {digest}"):
        assert speaker.send("POST", GET, WISH, {session.HEADER: value, **more}).status == 401, value
    assert speaker.send("POST", GET, WISH, {**good, **more}).status == 200  # none of them used the count up


def test_a_replay_and_a_count_that_does_not_grow_are_401(server: Server, machine: Make, more: dict[str, str]) -> None:
    speaker = Speaker(machine().join())
    first, later = speaker.header("POST", GET, WISH, 5), speaker.header("POST", GET, WISH, 9)
    between = speaker.header("POST", GET, WISH, 8)
    assert [speaker.send("POST", GET, WISH, {**one, **more}).status for one in (first, first, later, later, between)
            ] == [200, 401, 200, 401, 401]


def test_a_host_speaks_for_itself_only(server: Server, machine: Make) -> None:
    one, other = Speaker(machine().join()), Speaker(machine().join())
    ticket = one.ask().json()
    assert isinstance(ticket, dict)
    assert other.ask("DELETE", f"{GET}/{ticket['ticket']}", b"").status == 403
    assert other.ask("GET", f"/api/v1/hosts/{one.machine.name}/order?wait=0", b"").status == 401
    other.identity = one.identity  # somebody else's session, without its secret
    assert other.ask().status == 401
    # in the name of another, with his own key: the signature does not hold
    thief = Machine(server, one.machine.name, "", key=Ed25519PrivateKey.generate())
    assert thief.client().post_json(session.OPENING, {"public": session.public_of(session.new_key())}).status == 401


def test_a_session_opens_no_session_and_a_bad_key_none(server: Server, machine: Make, more: dict[str, str]) -> None:
    host = machine().join()
    speaker = Speaker(host)
    body = json.dumps({"public": session.public_of(session.new_key())}).encode()
    assert speaker.ask("POST", session.OPENING, body, more).status == 401
    short, low, long = ({"public": word} for word in ("", "A" * 43 + "=", "x" * 65))
    for wrong in (short, low, long, {}, {**low, "x": "1"}):
        raw = json.dumps(wrong).encode()
        assert host.client().request("POST", session.OPENING, body=raw, headers=more).status == 400, wrong
    assert Client(server.api).request("POST", session.OPENING, body=body, headers=more).status == 401


def test_a_replaced_key_and_an_unlisted_host_end_it(server: Server, machine: Make) -> None:
    replaced, unlisted = machine().join(), machine().join()
    speakers = Speaker(replaced), Speaker(unlisted)
    assert [one.ask().status for one in speakers] == [200, 200]
    token = server.admin("POST", "/hosts", {"host": {"name": replaced.name}}).json()["token"]
    assert Machine(server, replaced.name, "").enrol(token=str(token)).status == 201
    text = server.site.hosts.read_text()
    try:
        server.site.hosts.write_text("[[host]]".join(
            part for part in text.split("[[host]]") if f'name = "{unlisted.name}"' not in part))
        changed_s = clock.monotonic()
        # a request that began a whole look after the change is never believed
        wait_until(lambda: clock.monotonic() > changed_s + sessions.LOOK_S)
        assert [one.ask().status for one in speakers] == [401, 401]
    finally:
        server.site.hosts.write_text(text)
    assert [one.ask().status for one in speakers] == [401, 401]  # and does not come back


def conversation(machine: Machine) -> tuple[Conversation, list[str]]:
    """Return a conversation of a host, and what it signed."""
    signed: list[str] = []

    def sign(method: str, target: str, body: bytes) -> dict[str, str]:
        signed.append(f"{method} {target}")
        return hostauth.sign(machine.key, machine.name, clock.wall(), method, target, body)

    return Conversation(machine.server.api, sign), signed


def test_a_client_signs_once_and_again_when_the_server_forgot(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    with serving(site) as server:
        host = Machine(server, "alpha", "52:54:00:00:00:01")
        host.join()
        client, signed = conversation(host)
        opening = f"POST {session.OPENING}"
        tickets = [client.post_json(GET, {"service": "root-dump"}).json() for _ in range(3)]
        assert signed == [opening]
    with serving(site):
        tickets += [client.post_json(GET, {"service": "root-dump"}).json() for _ in range(3)]
        assert signed == [opening] * 2
        assert len({str(ticket) for ticket in tickets}) == 1
        client.close()
        client, signed = conversation(Machine(server, "alpha", ""))  # another key
        assert client.post_json(GET, {"service": "root-dump"}).status == 401
        assert signed == [opening, f"POST {GET}"]


# --- by themselves ----------------------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'reroot.db'}")
    made.migrate()
    with made.session() as writing:
        writing.add_all(HostRow(name=f"h{number}", public_key=f"key{number}", facts={}) for number in range(10))
    yield made
    made.close()


PUBLIC = session.public_of(session.new_key())


def test_a_hundred_thousand_openings_leave_room(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What 100,000 openings by all hosts would do, with everything a hundredth as large."""
    monkeypatch.setattr(sessions, "MOST", 100)
    known = Sessions(database, lambda: ["h0"])
    for number in range(200):
        known.open("h0", "key0", PUBLIC)
        known.open(f"h{number}", "key", PUBLIC)
        assert len(known) <= 100
        assert sum(one.host == "h0" for one in known._all.values()) <= sessions.MOST_OF_HOST
    assert set(known._of) == {one.host for one in known._all.values()}


async def test_the_session_that_was_silent_longest_makes_room(database: Database) -> None:
    known = Sessions(database, lambda: ["h0"])
    all_of_them = [known.open("h0", "key0", PUBLIC)[0] for _ in range(sessions.MOST_OF_HOST)]
    for identity in all_of_them[:10] + all_of_them[11:]:
        await known.find(identity)
    known.open("h0", "key0", PUBLIC)
    with pytest.raises(TrustError, match="no such session"):
        await known.find(all_of_them[10])
    assert len(known) == sessions.MOST_OF_HOST


async def test_it_ends_by_itself(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Sessions(database, lambda: ["h0"])
    identity, _ = known.open("h0", "key0", PUBLIC)
    assert (await known.find(identity)).host == "h0"
    now = clock.monotonic()
    assert known.believed(identity, now) is not None
    assert known.believed(identity, now + sessions.LOOK_S) is None  # it must be looked at again
    monkeypatch.setattr(clock, "monotonic", lambda: now + sessions.LIFETIME_S)
    with pytest.raises(TrustError, match="no such session"):
        await known.find(identity)
    assert len(known) == 0


async def test_many_are_looked_at_together(database: Database) -> None:
    known = Sessions(database, lambda: [f"h{number}" for number in range(10)])
    all_of_them = [known.open(f"h{number}", f"key{number}", PUBLIC)[0] for number in range(10)]
    looks: list[int] = []
    look = known._looking._work
    known._looking._work = lambda batch: looks.append(len(batch)) or look(batch)  # type: ignore[func-returns-value]
    await asyncio.gather(*map(known.find, all_of_them))
    assert sum(looks) == 10
    assert len(looks) <= 2
    with pytest.raises(UsageError):
        known.open("h0", "key0", "x")
