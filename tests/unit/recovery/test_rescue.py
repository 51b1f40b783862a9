"""The rescue menu on real pseudo-terminals, and what it shows of real filesystems."""

from __future__ import annotations

import hashlib
import io
import os
import pty
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from loopdevice import attached

from plumbing.errors import DiskError
from plumbing.run import run
from recovery import disks, examine
from recovery.cmdline import CommandLine
from recovery.dialogue import Ask, Dialogue, Entry, Start, draw, show
from recovery.lastgasp import LastGasp
from recovery.log import Log
from recovery.machine import Event
from recovery.report import Reporter
from recovery.rescue import Console, Menu, console_names, open_consoles
from recovery.session import Places, Session


@dataclass
class Person:
    """Somebody at a terminal: types, and reads until something appears."""

    keyboard: int
    console: Console
    seen: str = ""

    def type(self, text: str) -> None:
        os.write(self.keyboard, text.encode())

    def wait_for(self, text: str, count: int = 1) -> str:
        deadline = time.monotonic() + 10
        while self.seen.count(text) < count:
            ready, _, _ = select.select([self.keyboard], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} never appeared; the screen shows {self.seen!r}"
            self.seen += os.read(self.keyboard, 65536).decode(errors="replace")
        return self.seen


@dataclass
class Room:
    """A menu on some terminals, served by a thread."""

    people: list[Person]
    events: list[Event] = field(default_factory=list)
    thread: threading.Thread | None = None
    beats: int = 0
    now: float = 0.0
    """What the menu's clock says: it goes only when a test moves it."""

    def serve(self, entries: Sequence[Entry], *, retry_s: float | None = None) -> None:
        menu = Menu([person.console for person in self.people], entries, why="the disk\r\n is gone", retry_s=retry_s,
                    alive=self._beat, now=lambda: self.now)
        self.thread = threading.Thread(target=lambda: self.events.append(menu.run()), daemon=True)
        self.thread.start()

    def _beat(self) -> None:
        self.beats += 1

    def looks(self, times: int) -> None:
        """Wait until the menu looked at its clock so often more, or ended."""
        until, deadline = self.beats + times, time.monotonic() + 10
        while self.beats < until and not self.events:
            assert time.monotonic() < deadline, "the menu stands still"
            select.select([], [], [], 0.01)

    def ends_with(self) -> Event:
        assert self.thread is not None
        self.thread.join(10)
        assert self.events, "the menu is still there"
        return self.events[0]


def _person() -> Person:
    keyboard, terminal = pty.openpty()
    os.set_blocking(terminal, False)
    return Person(keyboard, Console(os.ttyname(terminal), terminal))


@pytest.fixture
def room() -> Iterator[Room]:
    made = Room([_person(), _person()])
    yield made
    for person in made.people:
        os.close(person.keyboard)


def _leave(event: Event) -> Callable[[], Dialogue]:
    def begin() -> Dialogue:
        yield from ()
        return event

    return begin


def _shell() -> Dialogue:
    yield "leave the shell with `exit`"
    status = yield Start(("/bin/sh",))
    yield f"the shell said {status}"
    return None


def _choices(disks_say: Callable[[], Iterable[str]] = lambda: ["vda1: clean"], *more: Entry) -> list[Entry]:
    return [Entry("describe", show(lambda: ["host:     alpha", "evil \x1b[2J\nline"])),
            Entry("again", _leave(Event.AGAIN)), Entry("disks", show(disks_say)), Entry("shell", _shell),
            Entry("log", show(lambda: ["last line"])), Entry("reboot", _leave(Event.DONE)), *more]


def test_the_menu_is_on_every_console_and_answers_on_the_one_that_asked(room: Room) -> None:
    room.serve(_choices())
    for person in room.people:
        assert "the disk   is gone" in person.wait_for("choose 1-6: ")
    first, second = room.people
    first.type("1\n")
    assert "\x1b" not in first.wait_for("host:     alpha")
    first.wait_for("choose 1-6: ", 2)
    second.type("3\n")
    second.wait_for("vda1: clean")
    assert "alpha" not in second.seen
    second.type("5\n")
    second.wait_for("last line")
    second.type("6\n")
    assert room.ends_with() is Event.DONE
    first.wait_for("rebooting")


def test_running_the_order_again(room: Room) -> None:
    room.serve(_choices())
    room.people[1].wait_for("choose 1-6: ")
    room.people[1].type("2\n")
    assert room.ends_with() is Event.AGAIN


def test_nonsense_shows_the_menu_again(room: Room) -> None:
    room.serve(_choices())
    person = room.people[0]
    person.type("nonsense\n\n99\n")
    person.wait_for("choose 1-6: ", 4)
    assert not room.events
    person.type("6\n")
    assert room.ends_with() is Event.DONE


def test_a_failing_choice_is_a_sentence(room: Room) -> None:
    def fail() -> Iterable[str]:
        raise DiskError("vda cannot be read; look at it")

    room.serve(_choices(fail))
    person = room.people[0]
    person.type("3\n")
    person.wait_for("vda cannot be read; look at it")
    person.type("6\n")
    room.ends_with()


def test_nobody_there_runs_the_order_again(room: Room) -> None:
    room.serve(_choices(), retry_s=0.05)
    room.looks(3)
    assert not room.events, "the time is not over"
    room.now = 0.06
    assert room.ends_with() is Event.AGAIN


def test_a_key_moves_the_time_when_it_runs_by_itself(room: Room) -> None:
    room.serve(_choices(), retry_s=0.05)
    person = room.people[0]
    person.wait_for("choose 1-6: ")
    room.now = 0.04
    person.type("1\n")
    person.wait_for("choose 1-6: ", 2)
    room.now = 0.08
    room.looks(3)
    assert not room.events, "somebody was at the keyboard at 0.04"
    room.now = 0.1
    assert room.ends_with() is Event.AGAIN


def test_a_shell_has_its_terminal_and_comes_back_to_the_menu(room: Room) -> None:
    room.serve(_choices(), retry_s=0.05)
    person, other = room.people
    person.wait_for("choose 1-6: ")
    person.type("4\n")
    person.wait_for("leave the shell")
    person.type("echo $((6*7)); tty; stty -echo\n")
    person.wait_for("42\r\n")
    person.wait_for(person.console.name)
    room.now = 1000.0
    select.select([], [], [], 0.3)  # more than the menu would take to see that its time is over
    other.type("1\n")
    other.wait_for("host:     alpha")  # it is there: the order is not run again while somebody has a shell
    person.type("exit 3\n")
    person.wait_for("the shell said 3")
    person.wait_for("choose 1-6: ", 2)
    other.type("6\n")
    assert room.ends_with() is Event.DONE


def test_what_an_entry_asks_is_answered_where_it_was_asked(room: Room) -> None:
    heard: list[str] = []
    closed: list[bool] = []

    def ask() -> Dialogue:
        try:
            heard.append((yield Ask("name it:")))
            heard.append((yield Ask("and again:")))
        finally:
            closed.append(True)
        return None

    room.serve(_choices(lambda: ["vda1: clean"], Entry("ask", ask)), retry_s=0.05)
    first, second = room.people
    first.type("7\n")
    first.wait_for("name it:")
    second.type("7\n")
    second.wait_for("name it:")
    first.type("6\n")  # an answer, not a choice
    first.wait_for("and again:")
    assert heard == ["6"] and not room.events
    room.now = 1.0  # nobody went on: the order is run again, and both dialogues come to their end
    assert room.ends_with() is Event.AGAIN
    assert closed == [True, True]


def test_the_drawing_is_the_table() -> None:
    assert (Path(__file__).parents[3] / "docs/machines/rescue.dot").read_text() == draw()


def test_a_terminal_that_hangs_up_is_left_out(room: Room) -> None:
    gone = _person()
    room.people.append(gone)
    room.serve(_choices())
    gone.wait_for("choose 1-6: ")
    os.close(gone.keyboard)
    room.people.remove(gone)
    room.people[0].type("6\n")
    assert room.ends_with() is Event.DONE


def test_the_kernel_s_consoles(tmp_path: Path) -> None:
    (tmp_path / "consoles").write_text("ttyS0                -W- (EC p a)    4:64\ntty0  -WU (E  p  )    4:7\n")
    assert console_names(tmp_path / "consoles") == ["ttyS0", "tty0"]
    assert console_names(tmp_path / "none") == ["console"]
    assert open_consoles(["no-such-terminal"], tmp_path) == []


# -- looking at disks ----------------------------------------------------------------------------------------


@pytest.fixture
def filesystem(tmp_path: Path) -> Iterator[Path]:
    """A loop device with an ext4 whose journal is not empty: a careless read-only mount would write to it."""
    image = tmp_path / "image"
    with image.open("wb") as stream:
        stream.truncate(32 << 20)
    run(["mkfs.ext4", "-q", "-F", image])
    with attached(image) as device, disks.mounted(device, tmp_path / "there", "ext4") as folder:
        (folder / "file").write_text("content")
        os.sync()
        # a copy of the mounted filesystem is what a power cut leaves
        (tmp_path / "cut").write_bytes(image.read_bytes())
    with attached(tmp_path / "cut") as device:
        yield device


def _session(tmp_path: Path, device: Path) -> Session:
    log = Log([io.StringIO()])
    part = disks.Partition(device, 1, "p", "t", "data", 0, 32 << 20, device, "SERIAL")
    here = (disks.Disk(device, "SERIAL", 32 << 20, 512, (part,)),)
    return Session(Places(local=tmp_path / "local"), CommandLine(), log, Reporter(log),
                   LastGasp(say=lambda _: None), inventory=lambda: here)


@pytest.mark.root
def test_checking_disks_changes_no_byte(filesystem: Path, tmp_path: Path) -> None:
    def state() -> str:
        return hashlib.sha256((tmp_path / "cut").read_bytes()).hexdigest()

    before = state()
    lines = list(examine.check_disks(_session(tmp_path, filesystem), tmp_path / "mnt"))
    assert "mounted read-only at" in lines[0]
    mounted = tmp_path / "mnt" / filesystem.name
    try:
        assert (mounted / "file").exists()
        with pytest.raises(OSError, match="Read-only"):
            (mounted / "new").write_text("no")
        assert "already" in next(iter(examine.check_disks(_session(tmp_path, filesystem), tmp_path / "mnt")))
    finally:
        disks.unmount(mounted)
    assert state() == before


@pytest.mark.root
def test_what_this_machine_is(filesystem: Path, tmp_path: Path) -> None:
    text = "\n".join(examine.describe(_session(tmp_path, filesystem)))
    for word in ("memory:", "disk:", "SERIAL", "none that is valid", os.uname().release):
        assert word in text
