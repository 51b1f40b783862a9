"""What an entry of the rescue menu and a person say to each other (pure): lines, questions, programs.

An entry is a generator. It yields lines to show, an `Ask` to get what is typed next, a `Start` to give its console to a
program and get its exit status as text; what it returns is how the menu goes on. Closing it is how it is cut short.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from recovery.machine import Event

Chosen = TypeVar("Chosen")


@dataclass(frozen=True)
class Ask:
    """A question; the answer is the next line that is typed, without its ends' white space."""

    prompt: str


@dataclass(frozen=True)
class Start:
    """A program that gets the console until it ends."""

    argv: tuple[str, ...]


Step = str | Ask | Start
Dialogue = Generator[Step, str, Event | None]


@dataclass(frozen=True)
class Entry:
    """One choice of the menu: what it is called, and the dialogue that begins when it is chosen."""

    title: str
    begin: Callable[[], Dialogue]


class Sitting(StrEnum):
    """What a console is at."""

    MENU = "menu"
    ASKED = "asked"
    PROGRAM = "program"
    GONE = "gone"
    LEFT = "left"


class Turn(StrEnum):
    """What happens at a console."""

    ENDS = "entry ends"
    ASKS = "entry asks"
    STARTS = "entry starts a program"
    LEAVES = "entry leaves the menu"
    HANGS_UP = "hangs up"


def _table() -> dict[tuple[Sitting, Turn], Sitting]:
    table = {}
    for sitting in (Sitting.MENU, Sitting.ASKED, Sitting.PROGRAM):
        table[sitting, Turn.ENDS] = Sitting.MENU
        table[sitting, Turn.ASKS] = Sitting.ASKED
        table[sitting, Turn.STARTS] = Sitting.PROGRAM
        table[sitting, Turn.LEAVES] = Sitting.LEFT
        table[sitting, Turn.HANGS_UP] = Sitting.GONE
    return table


TABLE: dict[tuple[Sitting, Turn], Sitting] = _table()
"""(sitting, turn) -> next; a pair that is not here cannot happen."""


def draw() -> str:
    """Return the table as a Graphviz drawing: what docs/machines/rescue.dot must hold."""
    lines = [
        "// Written by recovery.dialogue.draw(); a test compares. One console of the rescue menu.",
        "digraph rescue {",
        "  rankdir=LR; node [shape=box, fontname=\"Helvetica\"]; edge [fontname=\"Helvetica\", fontsize=10];",
        *(f"  {ended.value} [shape=doublecircle];" for ended in (Sitting.GONE, Sitting.LEFT)),
    ]
    lines.extend(f"  {one.value} -> {to.value} [label=\"{turn.value}\"];" for (one, turn), to in TABLE.items())
    return "\n".join([*lines, "}", ""])


def show(lines: Callable[[], Iterable[str]]) -> Callable[[], Dialogue]:
    """Return the dialogue of an entry that only shows lines."""
    def begin() -> Dialogue:
        yield from lines()
        return None

    return begin


def confirm(word: str) -> Generator[Step, str, bool]:
    """Ask for `word`, whole; anything else is a no."""
    answer = yield Ask(f"type {word} to do it; anything else leaves everything as it is: ")
    if answer != word:
        yield "nothing was done"
    return answer == word


def pick(
    question: str, choices: Sequence[Chosen], text: Callable[[Chosen], str],
) -> Generator[Step, str, Chosen | None]:
    """Show what can be chosen, numbered, and ask for one; None when the answer is no number of it."""
    for number, choice in enumerate(choices, start=1):
        yield f"  {number}  {text(choice)}"
    answer = yield Ask(f"{question}, 1-{len(choices)}; anything else leaves: ")
    if answer.isascii() and answer.isdigit() and 1 <= int(answer) <= len(choices):
        return choices[int(answer) - 1]
    yield "nothing was done"
    return None
