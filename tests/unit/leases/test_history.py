"""The judge itself: what a right service can do is let pass, and each thing that a wrong one does is found."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from history import Op, Outcome, Seen, Verb, judge, parse
from hypothesis import given
from hypothesis import strategies as st

LIFE_S = 10.0


def op(holder: str, verb: Verb, at_s: float, ticket: str = "", outcome: Outcome = "ok", took_s: float = 0.1) -> Op:
    answered = None if outcome == "unknown" else at_s + took_s
    return Op(holder, verb, at_s, answered, outcome, ticket, LIFE_S if outcome == "ok" else 0.0)


def faults(ops: Sequence[Op], slots: int = 1, seen: Sequence[Seen] = ()) -> list[str]:
    return sorted({fault.split(":")[0] for fault in judge(
        sorted(ops, key=lambda one: one.invoked_s), {"m": slots, "n": 1}, seen).faults})


A, B, C = "a", "b", "c"
GOOD = {
    "one after the other": [op(A, "get", 1, "m_1"), op(A, "return", 2, "m_1"), op(B, "get", 3, "m_2")],
    "after it expired": [op(A, "get", 1, "m_1"), op(B, "get", 11.01, "m_2")],
    "expired and refused": [op(A, "get", 1, "m_1"), op(B, "get", 12, "m_2"), op(A, "renew", 13, "m_1", "refused")],
    "the return was under way": [op(A, "get", 1, "m_1"), op(A, "return", 2, "m_1", took_s=9), op(B, "get", 2.1, "m_2")],
    "the return's answer was lost": [
        op(A, "get", 1, "m_1"), op(A, "return", 2, "m_1", "unknown"), op(B, "get", 3, "m_2")],
    "the return was lost": [op(A, "get", 1, "m_1"), op(A, "return", 2, "m_1", "unknown"), op(A, "get", 3, "m_1"),
                            op(A, "return", 4, "m_1"), op(B, "get", 5, "m_2")],
    "a grant's answer was lost": [op(A, "get", 1, outcome="unknown"), op(B, "get", 2, outcome="busy"),
                                  op(A, "get", 3, "m_1")],
    "a lost grant was found again later": [op(A, "get", 1, outcome="unknown"), op(B, "get", 2, "n_2"),
                                           op(A, "get", 3, "m_1")],
    "renewed in time": [op(A, "get", 1, "m_1"), op(A, "renew", 9, "m_1"), op(B, "get", 10, outcome="busy")],
    "a renewal's answer was lost": [
        op(A, "get", 1, "m_1"), op(A, "renew", 9, "m_1", "unknown"), op(B, "get", 11.2, "m_2")],
    "asked twice, given once": [op(A, "get", 1, "m_1"), op(A, "get", 2, "m_1")],
    "another after its own expired": [op(A, "get", 1, "m_1"), op(A, "get", 12, "m_2")],
    "asked at once, answered in any order": [op(A, "get", 1, "m_2", took_s=1), op(A, "return", 2.5, "m_2"),
                                             op(B, "get", 1.5, "m_1", took_s=8)],
    "the answer took a lifetime": [op(A, "get", 1, "m_1", took_s=11), op(B, "get", 11.5, "m_2")],
}
BAD = {
    "two at once": (["slots"], [op(A, "get", 1, "m_1"), op(B, "get", 2, "m_2")]),
    "two at once by renewal": (["slots"], [op(A, "get", 1, "m_1"), op(A, "renew", 10, "m_1"), op(B, "get", 12, "m_2")]),
    "returned by nobody": (["slots"], [
        op(A, "get", 1, "m_1"), op(A, "renew", 5, "m_1", "unknown"), op(B, "get", 6, "m_2")]),
    "a provider nobody has": (["slots"], [op(A, "get", 1, "x_1")]),
    "the grant was forgotten": (["lost"], [op(A, "get", 1, "m_1"), op(A, "renew", 5, "m_1", "refused")]),
    "forgotten at the return": (["lost"], [op(A, "get", 1, "m_1"), op(A, "return", 5, "m_1", "refused")]),
    "forgotten when asked again": (["lost"], [op(A, "get", 1, "m_1"), op(A, "get", 5, outcome="busy")]),
    "another one instead": (["lost", "slots"], [op(A, "get", 1, "m_1"), op(A, "get", 5, "m_2")]),
    "one ticket, two holders": (["fences", "slots", "twice"], [op(A, "get", 1, "m_1"), op(B, "get", 2, "m_1")]),
    "a fence used again": (["fences", "twice"], [
        op(A, "get", 1, "m_1"), op(A, "return", 2, "m_1"), op(B, "get", 3, "m_1")]),
    "its own old fence": (["fences", "twice"], [
        op(A, "get", 1, "m_1"), op(A, "return", 2, "m_1"), op(A, "get", 3, "m_2"), op(A, "return", 4, "m_2"),
        op(A, "get", 5, "m_1")]),
    "a stranger's ticket renewed": (["twice"], [op(A, "get", 1, "m_1"), op(B, "renew", 2, "m_1")]),
    "fences go back": (["fences"], [op(A, "get", 1, "m_5"), op(A, "return", 2, "m_5"), op(B, "get", 3, "m_4")]),
    "fences go back over a busy one": (["fences"], [
        op(A, "get", 1, "m_5"), op(A, "return", 2, "m_5"), op(B, "get", 3, outcome="busy"), op(B, "get", 4, "m_4")]),
}


@pytest.mark.parametrize("ops", GOOD.values(), ids=GOOD)
def test_what_a_right_service_can_do(ops: list[Op]) -> None:
    assert faults(ops) == []


@pytest.mark.parametrize(("kinds", "ops"), BAD.values(), ids=BAD)
def test_what_only_a_wrong_one_does(kinds: list[str], ops: list[Op]) -> None:
    assert faults(ops) == kinds


def test_the_status_must_show_what_is_held_and_no_more_than_the_slots() -> None:
    held = [op(A, "get", 1, "m_1"), op(A, "return", 5, "m_1")]
    assert faults(held, seen=[Seen(2, 2.1, {"m_1": A}), Seen(6, 7, {}), Seen(4.9, 5.1, {}), Seen(0, 1.05, {})]) == []
    assert faults(held, seen=[Seen(2, 2.1, {})]) == ["lost"]
    assert faults(held, seen=[Seen(2, 2.1, {"m_1": B})]) == ["lost"]
    assert faults(held, seen=[Seen(6, 7, {"m_2": B, "m_3": C, "n_4": A})]) == ["slots"]


def test_overtaking_counts_who_came_later_and_was_served_before() -> None:
    line = [op(A, "get", 1, "m_9", took_s=20), *(op(f"h{n}", "get", 2 + n, f"m_{n}") for n in range(5)),
            op(B, "get", 0.9, "m_8", took_s=30)]
    assert judge(sorted(line, key=lambda one: one.invoked_s), {"m": 9}).overtaken == 5
    asked_again = [op(A, "get", 1, outcome="busy"), op(B, "get", 2, "m_1"), op(A, "get", 4, "m_2")]
    assert judge(asked_again, {"m": 9}).overtaken == 1


def test_two_requests_of_one_host_at_once_are_no_history() -> None:
    with pytest.raises(AssertionError, match="two things at once"):
        faults([op(A, "get", 1, "m_1", took_s=5), op(A, "renew", 2, "m_1")])


def test_lines_without_an_answer_are_unknown_and_half_a_line_is_none() -> None:
    asked = {"id": "1", "holder": A, "verb": "get", "invoked_s": 1.0}
    answered = {"id": "1", "returned_s": 2.0, "outcome": "ok", "ticket": "m_1", "lifetime_s": 3.0}
    lines = [json.dumps(asked) + "\n", json.dumps({**asked, "id": "2", "invoked_s": 4.0}) + "\n",
             json.dumps(answered) + "\n", '{"id": "3", "hol']
    assert parse(lines) == [Op(A, "get", 1.0, 2.0, "ok", "m_1", 3.0), Op(A, "get", 4.0, None, "unknown")]


@dataclass
class Model:
    """A service that grants at one moment between question and answer, and can be told to be wrong."""

    slots: int
    wrong: str = ""
    fence: int = 0
    live: dict[str, tuple[str, float]] = field(default_factory=dict)

    def serve(self, holder: str, verb: Verb, ticket: str, now: float) -> tuple[Outcome, str]:
        early = LIFE_S / 2 if self.wrong == "early" else 0
        self.live = {one: (who, end) for one, (who, end) in self.live.items() if end - early > now}
        mine = next((one for one, (who, _) in self.live.items() if who == holder), None)
        if verb == "return":
            self.live.pop(ticket if mine == ticket else "", None)
            return "ok", ticket
        if verb == "renew" and mine != ticket:
            return "refused", ticket
        if mine is None:
            if len(self.live) >= self.slots + (self.wrong == "more"):
                return "busy", ""
            self.fence += 1
            mine = f"m_{self.fence}"
        self.live[mine] = (holder, now + LIFE_S)
        return "ok", mine

    def crash(self) -> None:
        if self.wrong == "forgets":
            self.live.clear()
        if self.wrong == "reuses":
            self.fence = max(0, self.fence - 2)


def play(seed: int, model: Model, steps: int = 150) -> list[Op]:
    """Have four hosts ask at random, one request after the other each, with some answers lost and crashes between."""
    chance = random.Random(seed)
    free_s = dict.fromkeys("abcd", 0.0)
    tickets: dict[str, str] = {}
    asked: list[tuple[float, Op]] = []
    for _ in range(steps):
        holder = min(free_s, key=lambda one: free_s[one])
        verb: Verb = chance.choice(("renew", "renew", "return")) if tickets.get(holder) else "get"
        begin = free_s[holder]
        moment, answered = begin + chance.random(), begin + 1 + chance.random()
        lost = chance.random() < 0.15
        asked.append((moment, Op(holder, verb, begin, None if lost else answered, "unknown", tickets.get(holder, ""))))
        free_s[holder] = answered + chance.choice((0.0, 1.0, 12.0))
        # Whoever asks next begins no earlier than this one did: no answer comes before a question that is served later.
        outcome, ticket = model.serve(holder, verb, tickets.get(holder, ""), moment)
        if not lost:
            asked[-1] = (moment, replace(asked[-1][1], outcome=outcome, ticket=ticket,
                                         lifetime_s=LIFE_S if outcome == "ok" and verb != "return" else 0.0))
            tickets[holder] = ticket if outcome == "ok" and verb != "return" else ""
        elif verb == "return":
            tickets[holder] = ""
        if chance.random() < 0.1:
            model.crash()
    return sorted((one for _, one in asked), key=lambda one: one.invoked_s)


@given(st.integers(0, 2**32), st.integers(1, 3))
def test_a_right_service_is_never_blamed(seed: int, slots: int) -> None:
    assert judge(play(seed, Model(slots)), {"m": slots}).faults == ()


@pytest.mark.parametrize("wrong", ["more", "early", "forgets", "reuses"])
def test_a_wrong_service_is_found_out(wrong: str) -> None:
    found = [bool(judge(play(seed, Model(1, wrong)), {"m": 1}).faults) for seed in range(20)]
    assert sum(found) >= 18
