"""Who renews often does so in a session, and signs where there is none, whatever the server says of sessions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import pytest
from ticket_server import TICKET, Answer, TicketServer

from plumbing import session
from plumbing.conversation import Conversation
from plumbing.errors import RerootError
from plumbing.http import Client
from throttle import client as tickets

RENEW = "POST /api/v1/tickets/milton_080/renew"
OPEN = f"POST {session.OPENING}"
IDENTITY = "abcdefghijklmnop"


def sign(method: str, target: str, body: bytes) -> Mapping[str, str]:
    return {"Reroot-Host": "alpha", "Reroot-Signature": f"{method} {target}"}


class Sessions(TicketServer):
    """A ticket server with sessions, each good for `uses` requests."""

    def __init__(self, uses: int = 1000) -> None:
        super().__init__()
        self.told: list[str] = []
        """What each request proved itself by, the openings left out."""
        self.answer, self._uses, self._left = self._answer, uses, 0
        self._secret: session.Secret | None = None

    def _answer(self, line: str, _count: int) -> Answer:
        headers, body = self.sent[-1]
        if line == OPEN:
            assert headers["Reroot-Signature"] == line
            key, theirs = session.new_key(), json.loads(body)["public"]
            ours = session.public_of(key)
            self._secret = session.agree(key, theirs, "alpha", IDENTITY, (theirs, ours))
            self._left = self._uses
            return 201, {}, {"session": IDENTITY, "public": ours, "lifetime_s": 3600}
        if session.HEADER not in headers:
            self.told.append("signature")
            return 200, {}, {**TICKET, "lifetime_s": 3}
        identity, count, digest = session.read(headers[session.HEADER])
        assert self._secret is not None
        assert identity == IDENTITY
        method, target = line.split(" ")
        assert self._secret.holds(digest, method, target, count, body)
        self._left -= 1
        if self._left < 0:
            return 401, {}, {"kind": "trust", "value": "this server has no such session (any more)"}
        self.told.append(f"session {count}")
        return 200, {}, {**TICKET, "lifetime_s": 3}


@pytest.fixture
def server() -> Iterator[Sessions]:
    made = Sessions()
    yield made
    made.stop()


def signing(server: TicketServer) -> Client:
    return Client(server.client.base_url, timeout_s=5, signer=sign)


def talking(server: TicketServer) -> Conversation:
    return Conversation(server.client.base_url, sign, timeout_s=5)


def test_renewals_of_a_short_ticket_are_in_one_session(server: Sessions) -> None:
    client = signing(server)
    held = tickets.acquire(client, "dump", wait_s=0)
    with tickets.kept(client, held):
        server.wait_for(RENEW, 2)
    assert server.seen.count(OPEN) == 1
    assert server.told[:3] == ["signature", "session 1", "session 2"]


@pytest.mark.parametrize(("lifetime_s", "opened"), [(900, True), (903, False), (86_400, False)])
def test_who_renews_seldom_signs(server: Sessions, lifetime_s: int, opened: bool) -> None:
    held = tickets.Ticket("milton_080", "milton", 80, lifetime_s, "", tickets._Life(0.0))
    client = tickets._keeper(signing(server), held)
    assert tickets.renew(client, "milton_080").fence == 80
    assert (OPEN in server.seen, server.told) == (opened, ["session 1" if opened else "signature"])
    client.close()


def test_one_ticket_without_a_renewal_opens_none(server: Sessions) -> None:
    with tickets.ticket(signing(server), "dump", wait_s=0):
        pass
    assert OPEN not in server.seen


def test_a_session_that_is_gone_is_opened_anew_once_for_a_request() -> None:
    server = Sessions(uses=2)
    client = talking(server)
    assert [tickets.renew(client, "milton_080").fence for _ in range(5)] == [80] * 5
    assert server.seen.count(OPEN) == 3
    assert server.told == ["session 1", "session 2"] * 2 + ["session 1"]
    server._uses = 0  # every one is gone at once
    assert client.post_json("/api/v1/tickets/milton_080/renew", {}).status == 200  # there was one use left
    assert client.post_json("/api/v1/tickets/milton_080/renew", {}).status == 401
    client.close()
    server.stop()


GOOD = {"session": IDENTITY, "public": session.public_of(session.new_key()), "lifetime_s": 3600}


@pytest.mark.parametrize("told", [
    (404, {}, {"kind": "not_found", "value": "there is nothing here"}), (401, {}, {"kind": "trust", "value": "no"}),
    (200, {}, TICKET), (201, {}, b"<html>"), (201, {}, None), (201, {}, []),
    *((201, {}, {**GOOD, **odd}) for odd in (
        {"session": "x\r\nReroot-Host: beta"}, {"session": 1}, {"public": "AAAA"}, {"public": ""},
        {"lifetime_s": 0}, {"lifetime_s": 10**400}, {"lifetime_s": "1"}))])
def test_with_a_server_that_has_none_every_request_is_signed(server: Sessions, told: Answer) -> None:
    answer = server.answer
    server.answer = lambda line, count: told if line == OPEN else answer(line, count)
    client = talking(server)
    assert [tickets.renew(client, "milton_080").fence for _ in range(3)] == [80] * 3
    assert server.told == ["signature"] * 3
    assert server.seen.count(OPEN) == 1
    client.close()


def test_a_server_that_fails_now_is_asked_for_one_again(server: Sessions) -> None:
    answer = server.answer
    server.answer = lambda line, count: (
        (500, {}, {"kind": "disk", "value": "full"}) if line == OPEN and count == 1 else answer(line, count))
    client = talking(server)
    assert [tickets.renew(client, "milton_080").fence for _ in range(3)] == [80] * 3
    assert server.told == ["signature", "session 1", "session 2"]
    client.close()


def test_an_endless_answer_ends_the_request(server: Sessions) -> None:
    server.answer = lambda _line, _count: (201, {}, b"x" * (1 << 17))
    client = talking(server)
    with pytest.raises(RerootError, match="more than 65536 bytes"):
        client.post_json("/api/v1/tickets", {})
    client.close()
