"""The journal: what it replays to, and what a power cut or a failing disk may do to its file."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbing.errors import CorruptError, RefusedError, UsageError
from recovery.journal import PHASES, START, Journal, Record, State, decode, encode, replay, to_ranges

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal(tmp_path / "journal")
    made.order("order-1", "upgrade", ONE)
    return made


def through(journal: Journal, *phases: str) -> None:
    for phase in phases:
        journal.begin(phase)
        journal.done(phase, {"of": phase})


def test_nothing_is_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    assert journal.state == State()
    assert journal.state.resume is None
    assert not journal.path.exists()


def test_it_reads_back_what_it_wrote(journal: Journal) -> None:
    journal.attempt()
    through(journal, "preserve", "wipe")
    journal.begin("restore")
    journal.frames({0, 1, 2, 7})
    journal.frames({2, 3})
    journal.failed("restore", "the cable is out")
    again = Journal(journal.path)
    assert again.state == journal.state
    assert again.records == journal.records
    assert again.state.frames == {0, 1, 2, 3, 7}
    assert again.state.resume == "restore"
    assert again.state.last_failure == "the cable is out"
    assert (again.state.attempts, again.state.failures, again.state.wiped) == (1, 1, True)
    assert again.state.data["preserve"] == {"of": "preserve"}
    assert journal.path.stat().st_mode & 0o777 == 0o600


def test_starts_without_progress_are_counted(journal: Journal) -> None:
    through(journal, "preserve")
    journal.begin("wipe")
    for _ in range(3):
        journal.attempt()
        journal.failed("wipe", "no")
    assert journal.state.fruitless == 3
    journal.done("wipe")
    assert journal.state.fruitless == 0
    journal.attempt()
    journal.begin("restore")
    assert journal.state.fruitless == 1
    journal.frames({1})
    assert journal.state.fruitless == 0
    journal.attempt()
    journal.order("order-1", "upgrade", ONE)
    assert journal.state.fruitless == 1, "the same order again is no repair"
    journal.order("order-2", "upgrade", ONE)
    assert Journal(journal.path).state.fruitless == journal.state.fruitless == 0


def test_an_order_that_was_carried_out_is_refused_when_another_came_after_it(journal: Journal) -> None:
    through(journal, "preserve", "wipe", "restore", "verify", "putback", "bootloader", "finish")
    journal.order("order-1", "upgrade", ONE)
    journal.order("order-2", "upgrade", TWO)
    before = journal.path.read_bytes()
    with pytest.raises(RefusedError, match="order-1 was carried out before"):
        journal.order("order-1", "upgrade", ONE)
    assert journal.path.read_bytes() == before


def test_nothing_new_writes_nothing(journal: Journal) -> None:
    journal.frames({1, 2})
    size = journal.path.stat().st_size
    journal.frames({1})
    journal.order("order-1", "upgrade", ONE)
    assert journal.path.stat().st_size == size


def test_phases_come_in_order(journal: Journal) -> None:
    lasting = [phase for phase in PHASES if phase not in {"network", "order", "disks"}]
    for phase in lasting:
        assert journal.state.resume == phase
        assert journal.state.must_run(phase)
        through(journal, phase)
        assert journal.state.must_run(phase) is (phase == "preserve"), "until the wipe it is kept anew each time"
    assert journal.state.resume is None
    assert journal.state.finished
    assert journal.finished("order-1")
    assert not journal.finished("order-2")
    assert journal.state.must_run("network")


def test_beginning_again_undoes_what_follows(journal: Journal) -> None:
    through(journal, "preserve", "wipe", "restore", "verify")
    journal.frames({1})
    assert journal.begin("restore").done == {"preserve", "wipe"}
    assert journal.state.frames == {1}
    assert journal.begin("wipe").frames == frozenset()
    assert journal.state.resume == "wipe"


def test_after_a_wipe_preserve_is_never_undone(journal: Journal) -> None:
    through(journal, "preserve")
    assert journal.begin("preserve").done == frozenset()
    through(journal, "preserve")
    journal.begin("wipe")
    assert "preserve" in journal.begin("preserve").done
    assert "preserve" in journal.begin("network").done
    assert journal.state.data["preserve"] == {"of": "preserve"}


def test_the_same_work_under_a_new_order_goes_on(journal: Journal) -> None:
    through(journal, "preserve", "wipe")
    journal.frames({1, 2})
    journal.attempt()
    journal.failed("restore", "no")
    state = journal.order("order-2", "upgrade", ONE)
    assert (state.order, state.resume, state.frames) == ("order-2", "restore", frozenset({1, 2}))
    assert (state.attempts, state.failures) == (0, 0)
    assert state.precious_order == "order-1"


def test_another_release_before_the_wipe_begins_anew(journal: Journal) -> None:
    through(journal, "preserve")
    assert journal.order("order-2", "upgrade", TWO).resume == "preserve"
    assert journal.state.precious_order is None


def test_another_release_after_the_wipe_keeps_the_archive(journal: Journal) -> None:
    through(journal, "preserve", "wipe", "restore")
    journal.frames({1})
    state = journal.order("order-2", "upgrade", TWO)
    assert (state.resume, state.precious_order, state.frames) == ("wipe", "order-1", frozenset())
    assert state.data["preserve"] == {"of": "preserve"}
    assert journal.order("order-3", "upgrade", ONE).precious_order == "order-1"
    assert journal.begin("preserve").resume == "wipe"


def test_the_same_id_with_another_release_is_other_work(journal: Journal) -> None:
    through(journal, "preserve", "wipe")
    journal.frames({1})
    assert journal.order("order-1", "upgrade", TWO).frames == frozenset()


def test_after_the_end_a_new_order_begins_from_nothing(journal: Journal) -> None:
    through(journal, *PHASES)
    assert journal.order("order-2", "upgrade", ONE) == State("order-2", "upgrade", ONE)
    assert journal.finished("order-1")


def test_every_cut_of_the_last_line_is_tolerated(journal: Journal) -> None:
    journal.begin("preserve")
    whole = journal.path.read_bytes()
    journal.done("preserve")
    longer = journal.path.read_bytes()
    for end in range(len(whole), len(longer)):
        for tail in (b"", b"\0" * 100):
            journal.path.write_bytes(longer[:end] + tail)
            again = Journal(journal.path)
            assert again.state.resume == "preserve"
            assert again.path.read_bytes() == whole
    again.done("preserve")
    assert Journal(journal.path).state.resume == "wipe"


def test_a_bad_last_line_is_tolerated(journal: Journal) -> None:
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + b"0" * 16 + b' {"n":1}\n')
    assert Journal(journal.path).state.order == "order-1"
    assert journal.path.read_bytes() == whole


def test_damage_in_the_middle_is_refused(journal: Journal) -> None:
    through(journal, "preserve", "wipe")
    data = journal.path.read_bytes()
    last = data.rindex(b"\n", 0, -1) + 1
    for at in range(0, last - 1, 7):
        journal.path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:])
        with pytest.raises(CorruptError, match="others follow"):
            Journal(journal.path)


@pytest.mark.parametrize("pick", [(0, 2, 3), (1, 0, 2, 3), (0, 1, 1, 2), (1, 2, 3)])
def test_lines_cannot_be_lost_swapped_or_repeated(journal: Journal, pick: tuple[int, ...]) -> None:
    through(journal, "preserve", "wipe")
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(b"".join(lines[n] for n in pick))
    with pytest.raises(CorruptError):
        Journal(journal.path)


def test_a_record_that_makes_no_sense_is_refused() -> None:
    line, _ = encode(Record(0, "t", "frames", data={"ranges": [[5, 1]]}), START)
    records, good, _ = decode(line)
    assert good == len(line)
    with pytest.raises(CorruptError, match="makes no sense"):
        replay(records)


def test_an_unknown_phase_is_a_mistake_of_the_caller(journal: Journal) -> None:
    with pytest.raises(UsageError, match="not a phase"):
        journal.begin("lunch")


@given(st.frozensets(st.integers(0, 300)))
def test_ranges_name_the_same_frames(frames: frozenset[int]) -> None:
    ranges = to_ranges(frames)
    assert {n for first, last in ranges for n in range(first, last + 1)} == frames
    assert all(a[1] + 1 < b[0] for a, b in pairwise(ranges))


@given(st.lists(st.one_of(
    st.tuples(st.sampled_from(["begin", "done"]), st.sampled_from(PHASES)),
    st.tuples(st.just("order"), st.sampled_from(["a", "b"])),
), max_size=40))
def test_precious_survives_any_history(history: list[tuple[str, str]]) -> None:
    """While the root is wiped and not finished, an archive that was made stays named and preserve stays done."""
    state = State()
    for n, (event, word) in enumerate([("order", "a"), *history]):
        if event == "begin" and word == "wipe" and "preserve" not in state.done:
            continue  # recovery never does that
        data = {"id": f"{word}{n}", "mode": "upgrade", "release": word} if event == "order" else {}
        before, record = state, Record(n, "t", event, None if event == "order" else word, data)
        state = _replay_on(before, record)
        if before.wiped and not before.finished and not (event == "done" and word == "preserve"):
            assert "preserve" in state.done
            assert state.precious_order == before.precious_order


def _replay_on(state: State, record: Record) -> State:
    from recovery.journal import _apply
    return _apply(state, record)
