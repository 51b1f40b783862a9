from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaging.recovery_image import ledger
from imaging.recovery_image.contents import file, folder
from imaging.recovery_image.ledger import Budget, FileLine, Ledger, Line
from plumbing.errors import CorruptError, RefusedError

LINES = st.builds(Line, st.text(max_size=9), *[st.integers(0, 1 << 40)] * 3, st.text(max_size=9))


FILES = st.builds(FileLine, st.text(max_size=9), *[st.integers(0, 1 << 40)] * 2, st.text(max_size=9))


def weighed(budget: int = 1000, payload: int = 1500) -> Ledger:
    items = [file("a", bytes(range(256)) * 40, part="heavy", why="because"), file("b", b"b", part="light", why="so"),
             file("c", b"c" * 900, part="light", why="later"), folder("d")]
    return ledger.weigh(items, 1000, 500, Budget(budget, payload))


def test_shares_add_up_to_the_real_weight_and_the_heaviest_comes_first() -> None:
    found = weighed()
    assert [line.part for line in found.lines] == ["heavy", "light"]
    assert abs(sum(line.share_bytes for line in found.lines) - 1000) <= len(found.lines)
    assert found.lines[1] == Line("light", 2, 901, found.lines[1].share_bytes, "so")
    table = found.table().splitlines()
    assert table[1].startswith("heavy") and table[1].endswith("because") and table[-2].startswith("total")
    assert "a machine needs 144 MiB" in table[-1]


def test_every_file_has_its_line_and_its_reason() -> None:
    found = weighed()
    assert [(line.path, line.raw_bytes, line.why) for line in found.files] == [
        ("a", 10240, "because"), ("c", 900, "later"), ("b", 1, "so")]
    assert abs(sum(line.share_bytes for line in found.files) - 1000) <= len(found.files)
    assert found.file_table().splitlines()[1].endswith("/a  (because)")


def test_over_the_budget_is_refused_and_says_what_is_heavy() -> None:
    weighed(1000).hold_budget()
    with pytest.raises(RefusedError, match=r"over its budget of 1 KiB \(heaviest: heavy .* files: /a "):
        weighed(999).hold_budget()
    with pytest.raises(RefusedError, match="kernel and initramfs weighs"):
        weighed(1000, 1499).hold_budget()


@given(st.lists(LINES, max_size=5), st.lists(FILES, max_size=5), st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_json_round_trip(lines: list[Line], files: list[FileLine], packed: int, budget: int) -> None:
    before = Ledger(tuple(lines), packed, packed // 2, Budget(budget, 2 * budget), tuple(files))
    assert Ledger.from_json(before.to_json()) == before


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"lines": [{}]}', b'{"lines": 5, "packed_bytes": 1}', b"\xff"])
def test_garbage_is_not_a_ledger(data: bytes) -> None:
    with pytest.raises(CorruptError, match="not a ledger"):
        Ledger.from_json(data)
