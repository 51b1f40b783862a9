"""docs/map.md names every module of every room, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = re.findall(r"^\| `([a-z_/]+)/` \| (?:[^|]*\| )?(.*) \|$", (ROOT / "docs/map.md").read_text(), re.MULTILINE)


def test_every_room_has_a_row() -> None:
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"bench"}
    assert rooms == {room for room, _ in ROWS if "/" not in room}


@pytest.mark.parametrize(("room", "modules"), ROWS, ids=[room for room, _ in ROWS])
def test_a_row_names_the_room_s_modules(room: str, modules: str) -> None:
    folder = ROOT / room
    there = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    folders = {f"{path.parent.name}/" for path in folder.glob("*/__init__.py")} | {
        "migrations/" for path in folder.glob("migrations")}
    told = set(re.findall(r"`([^`]+)`", modules))
    below = {f"{name.split('/')[-1]}/" for name, _ in ROWS if name.startswith(f"{room}/")}  # have their own rows
    assert told == there | (folders - below)
