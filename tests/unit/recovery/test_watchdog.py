"""The hardware watchdog's device, played by a pipe: what is written to it and when."""

from __future__ import annotations

import os
from pathlib import Path

from recovery.watchdog import FEED_EVERY_S, LOOK_EVERY_S, Watchdog


def test_it_is_opened_when_it_shows_up_fed_now_and_then_and_disarmed(tmp_path: Path) -> None:
    path, now, said = tmp_path / "watchdog", [100.0], list[str]()
    dog = Watchdog(path, say=said.append, now=lambda: now[0])
    dog.feed()
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    dog.feed()
    assert said == [], "it does not look again at once"
    now[0] += LOOK_EVERY_S
    for _ in range(3):
        dog.feed()
    assert os.read(reader, 100) == b"\0", "once, however often there is progress"
    assert said == ["the hardware watchdog resets this machine when nothing goes on for its own time"]
    now[0] += FEED_EVERY_S
    dog.feed()
    dog.disarm()
    assert os.read(reader, 100) == b"\0V"
    assert os.read(reader, 100) == b"", "and closed"
    dog.disarm()
    os.close(reader)


def test_a_child_leaves_it_to_its_parent(tmp_path: Path) -> None:
    """What closes the last handle without the magic byte leaves the watchdog counting: a child must not even try."""
    os.mkfifo(tmp_path / "watchdog")
    reader = os.open(tmp_path / "watchdog", os.O_RDONLY | os.O_NONBLOCK)
    dog = Watchdog(tmp_path / "watchdog", say=lambda _: None)
    dog.feed()
    child = os.fork()
    if child == 0:
        dog.leave()
        dog.disarm()
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100) == b"\0"
    dog.disarm()
    os.close(reader)


def test_a_machine_without_one(tmp_path: Path) -> None:
    dog = Watchdog(tmp_path / "none", say=lambda text: (_ for _ in ()).throw(AssertionError(text)))
    dog.feed()
    dog.disarm()
