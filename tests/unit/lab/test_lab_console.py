"""The console: control sequences go, patterns are found in order, the log holds everything with times."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.console import Console, clean
from plumbing.errors import CommandError

GRUB = b"\x1b[2J\x1b[01;01H\x1b[=3h\x1b[0m\x1b[37m\x1b[40mWelcome to GRUB!\r\n\x1b[1;1H\x1b(Bdone\r\n"


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[tuple[Console, IO[bytes], IO[bytes]]]:
    """A console, the machine's end of its output, the machine's end of its keyboard."""
    out_read, out_write = os.pipe()
    key_read, key_write = os.pipe()
    machine, keyboard = os.fdopen(out_write, "wb", 0), os.fdopen(key_read, "rb", 0)
    console = Console("alpha", tmp_path / "alpha.log")
    console.attach(os.fdopen(out_read, "rb", 0), os.fdopen(key_write, "wb", 0))
    yield console, machine, keyboard
    machine.close()
    console.wait_for_end(10)
    keyboard.close()


def test_control_sequences_are_stripped() -> None:
    assert clean(GRUB) == (b"Welcome to GRUB!\ndone\n", b"")


@given(st.lists(st.integers(0, len(GRUB)), max_size=6))
def test_cutting_the_stream_anywhere_changes_nothing(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(GRUB)]
    text, held = b"", b""
    for begin, end in itertools.pairwise(places):
        cleaned, held = clean(held + GRUB[begin:end])
        text += cleaned
    assert (text, held) == (b"Welcome to GRUB!\ndone\n", b"")


@given(st.binary(max_size=600))
def test_no_bytes_are_waited_for_without_end(data: bytes) -> None:
    cleaned, held = clean(data)
    assert len(held) <= 256
    assert b"\r" not in cleaned


def test_patterns_are_found_one_after_the_other(wired: tuple[Console, IO[bytes], IO[bytes]]) -> None:
    console, machine, _ = wired
    machine.write(b"phase wipe\r\nphase restore\r\n")
    assert console.wait_for(r"^phase (\w+)$", 5)[1] == "wipe"
    assert console.wait_for(r"^phase (\w+)$", 5)[1] == "restore"
    with pytest.raises(CommandError, match="did not appear within 0 s on alpha's console") as told:
        console.wait_for("phase", 0)
    assert told.value.sentence.endswith("phase wipe\nphase restore")


def test_waiting_ends_when_the_machine_does(wired: tuple[Console, IO[bytes], IO[bytes]]) -> None:
    console, machine, _ = wired
    machine.write(b"Kernel panic\n")
    machine.close()
    with pytest.raises(CommandError, match="it is off"):
        console.wait_for("login:", 60)
    with pytest.raises(CommandError, match="it is off; start it first"):
        console.send("hello\n")


def test_what_is_typed_reaches_the_machine(wired: tuple[Console, IO[bytes], IO[bytes]]) -> None:
    console, _, keyboard = wired
    console.send("reboot -f\n")
    assert keyboard.read(10) == b"reboot -f\n"


def test_the_log_has_a_time_on_every_line(wired: tuple[Console, IO[bytes], IO[bytes]]) -> None:
    console, machine, _ = wired
    machine.write(b"one\r\ntw")
    console.wait_for("tw", 5)
    machine.write(b"o\r\nwithout end")
    machine.close()
    console.wait_for_end(5)
    lines = console.log.read_text().splitlines()
    assert [re.sub(r"^\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ +\d+\.\d{3}\] ", "", line) for line in lines] == [
        "--- power on ---", "one", "two", "without end", "--- power off ---"]


def test_a_character_may_come_in_two_pieces(wired: tuple[Console, IO[bytes], IO[bytes]]) -> None:
    console, machine, _ = wired
    machine.write("Serial Getty…".encode()[:-1])
    console.wait_for("Getty", 5)
    machine.write("…".encode()[-1:] + b"done")
    console.wait_for("done", 5)
    assert console.text == "Serial Getty…done"
