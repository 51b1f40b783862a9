import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from ticket_server import TICKET, Answer, TicketServer

from plumbing.errors import BusyError, CorruptError, NetworkError, NotFoundError, RefusedError, TrustError
from throttle import client as tickets


@pytest.fixture
def server() -> Iterator[TicketServer]:
    made = TicketServer()
    yield made
    made.client.close()
    made.stop()


GET, RENEW, RETURN = ("POST /api/v1/tickets", "POST /api/v1/tickets/milton_080/renew",
                      "DELETE /api/v1/tickets/milton_080")
BUSY: Answer = (429, {"Retry-After": "0"}, {"kind": "busy", "value": "all 28 tickets of dump are taken"})


def gone(value: str = "gone") -> Answer:
    return 403, {}, {"kind": "refused", "value": value}


def test_a_ticket_is_held_and_given_back(server: TicketServer) -> None:
    server.answer = lambda line, _: (204, {}, None) if line == RETURN else (200, {}, TICKET)
    with tickets.ticket(server.client, "dump", wait_s=0) as held:
        assert (held.ticket, held.provider, held.fence, held.lifetime_s, held.url) == (
            "milton_080", "milton", 80, 60.0, "http://milton:8081")
        held.check()
        assert server.seen == [GET]
    assert server.seen == [GET, RETURN]


def test_it_is_given_back_when_the_work_fails(server: TicketServer) -> None:
    with pytest.raises(ZeroDivisionError), tickets.ticket(server.client, "dump", wait_s=0):
        raise ZeroDivisionError
    assert server.seen == [GET, RETURN]


def test_waits_while_all_are_taken_and_says_so(server: TicketServer) -> None:
    told: list[tuple[float, str]] = []
    server.answer = lambda line, count: BUSY if line == GET and count < 4 else (200, {}, TICKET)
    with tickets.ticket(server.client, "dump", wait_s=30, on_wait=lambda *words: told.append(words)):
        assert server.seen.count(GET) == 4
    assert [why for _, why in told] == ["all 28 tickets of dump are taken"] * 3
    assert all(tickets.MIN_RETRY_S <= pause <= 1.5 * tickets.MIN_RETRY_S for pause, _ in told)


def test_waiting_has_an_end(server: TicketServer) -> None:
    server.answer = lambda _line, _count: BUSY
    with pytest.raises(BusyError, match=r"all 28 tickets of dump are taken \(waited \d s\)"):
        tickets.acquire(server.client, "dump", wait_s=2)
    assert server.seen.count(GET) > 1


def test_renewed_in_the_background_over_a_failing_server(server: TicketServer) -> None:
    def answer(line: str, count: int) -> Answer:
        if line == RENEW and count == 2:
            return 500, {}, {"kind": "internal", "value": "the database is being moved"}
        return 200, {}, {**TICKET, "lifetime_s": 6}

    server.answer = answer
    with tickets.ticket(server.client, "dump", wait_s=0) as held:
        server.wait_for(RENEW, 4)  # past the first lifetime
        held.check()


def test_a_lost_ticket_says_so(server: TicketServer) -> None:
    server.answer = lambda line, _: gone() if line == RENEW else (200, {}, {**TICKET, "lifetime_s": 3})
    with tickets.ticket(server.client, "dump", wait_s=0) as held:
        server.wait_for(RENEW)
        assert until(lambda: lost(held))
        with pytest.raises(RefusedError, match=r"ticket milton_080 was lost .*stop using milton"):
            held.check()
    assert server.seen == [GET, RENEW, RETURN]  # it was told, and did not wait for the lifetime to pass


def test_a_server_that_dies_loses_the_ticket_in_a_lifetime_and_the_end_is_quiet() -> None:
    server = TicketServer()
    server.answer = lambda _line, _count: (200, {"Connection": "close"}, {**TICKET, "lifetime_s": 3})
    with tickets.ticket(server.client, "dump", wait_s=0) as held:
        server.stop()
        held.check()
        assert until(lambda: lost(held))


def test_a_dead_server_is_one_sentence() -> None:
    server = TicketServer()
    server.stop()
    with pytest.raises(NetworkError) as caught:
        tickets.acquire(server.client, "dump", wait_s=60)
    assert caught.value.sentence.startswith("no ticket for dump: http://127.0.0.1:")
    assert "does not answer" in caught.value.sentence


@pytest.mark.parametrize(("answer", "error"), [
    ((404, {}, {"kind": "not_found", "value": "there is no service 'dump'"}), NotFoundError),
    ((401, {}, {"kind": "trust", "value": "the request's clock is 9999 s off"}), TrustError),
    ((200, {}, {"ticket": "milton_080"}), CorruptError),
    ((200, {}, {**TICKET, "lifetime_s": 0}), CorruptError),
    ((200, {}, {**TICKET, "fence": "80"}), CorruptError),
    ((200, {}, b"<html>captive portal</html>"), CorruptError),
    ((502, {}, b"<html>bad gateway</html>"), CorruptError),
    ((500, {}, [1]), CorruptError),
])
def test_other_answers_are_their_own_errors(server: TicketServer, answer: Answer, error: type[Exception]) -> None:
    server.answer = lambda _line, _count: answer
    with pytest.raises(error):
        tickets.acquire(server.client, "dump", wait_s=60)


def test_getting_renewing_and_returning_by_name(server: TicketServer) -> None:
    assert tickets.renew(server.client, "milton_080").fence == 80
    server.answer = lambda _line, _count: gone()
    with pytest.raises(RefusedError, match="milton_080 is not held any more"):
        tickets.renew(server.client, "milton_080")
    with pytest.raises(RefusedError, match="gone"):
        tickets.give_back(server.client, "milton_080")


def test_the_client_brings_no_server_library_along() -> None:
    code = "import sys, throttle.client; print([m for m in sys.modules if m.split('.')[0] in " \
           "('sqlalchemy', 'pydantic', 'fastapi', 'typer', 'rich', 'asyncio')])"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True,
                          text=True, check=True)
    assert done.stdout == "[]\n"


def lost(held: tickets.Ticket) -> bool:
    try:
        held.check()
    except RefusedError:
        return True
    return False


def until(condition: Callable[[], bool]) -> bool:
    turn = threading.Event()
    return any(condition() or turn.wait(0.01) for _ in range(2000))
