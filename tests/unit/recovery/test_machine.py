"""The table of the recovery machine: its drawing, its promises, and every transition driven once by the real Drive."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbing.errors import BusyError, CorruptError, DiskError, Kind, NetworkError, RefusedError, RerootError
from recovery import machine
from recovery.cmdline import CommandLine
from recovery.drive import Drive, NoOrderError
from recovery.journal import Journal
from recovery.lastgasp import LastGasp
from recovery.log import Log
from recovery.machine import AFTER_WIPE, BEFORE_WIPE, MOST_FRUITLESS, PHASES, TABLE, Event, Standing, State
from recovery.report import Reporter
from recovery.session import Places, Session

DRAWING = Path(__file__).parents[3] / "docs/machines/recovery.dot"


def test_the_drawing_and_the_table_say_the_same() -> None:
    text = DRAWING.read_text()
    edges = re.findall(r'^\s*(\w+) -> (\w+) \[label="(\w+)"\];', text, re.MULTILINE)
    assert len(edges) == len(TABLE)
    assert {(State(source), Event(label)): State(target) for source, target, label in edges} == TABLE
    assert text == machine.draw()


def _reached(start: State) -> set[State]:
    seen, waiting = {start}, [start]
    while waiting:
        here = waiting.pop()
        for (state, _), target in TABLE.items():
            if state is here and target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen


def test_every_state_is_reached_and_every_state_has_a_way_out() -> None:
    assert _reached(State.NETWORK) == set(State)
    for state in State:
        assert State.REBOOT in _reached(state)


def test_the_border() -> None:
    assert set(PHASES) == BEFORE_WIPE | AFTER_WIPE
    assert {State.WIPE} == BEFORE_WIPE & AFTER_WIPE
    for (state, event), target in TABLE.items():
        if event is Event.UNTOUCHED:
            assert state in BEFORE_WIPE and target is State.FAILED
    # nothing behind the border leads back to the old system but a reboot that the boot default decides
    assert all(TABLE.get((state, Event.UNTOUCHED)) is None for state in AFTER_WIPE - {State.WIPE})


@given(st.sampled_from(PHASES), st.sampled_from(list(Kind)), st.integers(1, 30), st.integers(1, 20), st.booleans(),
       st.booleans())
def test_a_failure_always_has_a_way_and_the_way_is_safe(
        state: State, kind: Kind, attempt: int, attempts: int, wiped: bool, has_system: bool) -> None:
    event = machine.after_failure(state, kind, Standing(attempt, attempts, wiped, has_system))
    assert (state, event) in TABLE
    if wiped or not has_system:
        assert event is not Event.UNTOUCHED
    if attempt >= attempts:
        assert event is not Event.AGAIN
    if has_system and not wiped and state in BEFORE_WIPE and kind not in machine.PASSING:
        assert event is Event.UNTOUCHED


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_pauses_are_bounded_and_spread(attempt: int, jitter: float) -> None:
    assert 2.5 <= machine.backoff_s(attempt, jitter) <= 450
    assert 450 <= machine.rescue_pause_s(jitter) <= 1350


# -- the Drive -----------------------------------------------------------------------------------------------


class Host(Session):
    """A session whose standing the test decides; everything else is the real thing."""

    is_wiped = False
    system = True
    boot_fails = False
    booted_system = 0

    @property
    def wiped(self) -> bool:
        return self.is_wiped

    def has_system(self) -> bool:
        return self.system and not self.is_wiped

    def boot_system(self) -> None:
        if self.boot_fails:
            raise DiskError("the ESP is gone; look at it")
        self.booted_system += 1


Script = Mapping[State, list[RerootError | OSError | None]]


class Road:
    """Drives a session by a script of failures and writes down the way."""

    def __init__(self, tmp_path: Path, script: Script, menu: list[Event] | None = None) -> None:
        self.out = io.StringIO()
        log = Log([self.out])
        self.session = Host(Places(local=tmp_path / "local", scratch=tmp_path / "scratch", sysfs=tmp_path),
                            CommandLine(), log, Reporter(log), LastGasp(say=lambda text: log.say("gasp", text)))
        self.session.default_attempts = 3
        self.way: list[State] = []
        self.pauses: list[float] = []
        self.menus: list[tuple[str, float | None]] = []
        self._script = {state: list(failures) for state, failures in script.items()}
        self._menu_events = menu or [Event.DONE]
        self.drive = Drive(self.session, {state: self._action(state) for state in PHASES}, menu=self._menu,
                           jitter=lambda: 0.5, pause=self.pauses.append)

    def _action(self, state: State) -> Callable[[Session], Mapping[str, object]]:
        def act(_: Session) -> Mapping[str, object]:
            self.way.append(state)
            if state is State.WIPE and not self._script.get(state):
                self.session.is_wiped = True
            failures = self._script.get(state)
            failure = failures.pop(0) if failures else None
            if failure is not None:
                raise failure
            return {}

        return act

    def _menu(self, why: str, retry_s: float | None) -> Event:
        self.menus.append((why, retry_s))
        return self._menu_events.pop(0)

    @property
    def events(self) -> list[dict[str, object]]:
        return [{"phase": r.phase, "event": r.event, **dict(r.data)} for r in self.session.reporter.waiting()]


@pytest.fixture
def road(tmp_path: Path) -> Callable[..., Road]:
    return lambda script, menu=None: Road(tmp_path, script, menu)


def _net() -> NetworkError:
    return NetworkError("nobody answers; look")


def test_the_way_through(road: Callable[..., Road]) -> None:
    drive = road({})
    assert drive.drive.run() is State.REBOOT
    assert drive.way == list(PHASES)
    assert drive.session.booted_system == 0
    assert not drive.menus


def test_a_refusal_before_the_wipe_goes_back_at_once(road: Callable[..., Road]) -> None:
    drive = road({State.DISKS: [RefusedError("too small; use a larger one")]})
    assert drive.drive.run() is State.REBOOT
    assert drive.way == [State.NETWORK, State.ORDER, State.DISKS]
    assert drive.session.booted_system == 1
    assert drive.events[-1] | {"log": 0} == {"phase": "disks", "event": "failed", "kind": "refused", "attempt": 1,
                                             "final": True, "wiped": False, "log": 0}


def test_the_network_is_tried_again_with_growing_pauses_and_then_given_up(road: Callable[..., Road]) -> None:
    drive = road({State.NETWORK: [_net(), _net(), _net()]})
    drive.drive.run()
    assert drive.way == [State.NETWORK] * 3
    assert drive.pauses == [5.0, 10.0]
    assert [event["final"] for event in drive.events if event["event"] == "failed"] == [False, False, True]
    assert drive.session.booted_system == 1


def test_after_the_wipe_every_kind_is_tried_again_and_then_told(road: Callable[..., Road]) -> None:
    failures: list[RerootError | OSError | None] = [
        RefusedError("no; ask"), OSError(5, "Input/output error", "/dev/vda2"), CorruptError("bad; again")]
    drive = road({State.RESTORE: failures})
    drive.drive.run()
    assert drive.way.count(State.RESTORE) == 3
    assert drive.way.count(State.ORDER) == 3, "each attempt asks for a fresh order"
    assert drive.session.booted_system == 0
    assert len(drive.menus) == 1 and drive.menus[0][1] == pytest.approx(900)
    assert "EIO on /dev/vda2" in drive.out.getvalue()


def test_a_lost_machine_heals_from_the_menu(road: Callable[..., Road]) -> None:
    drive = road({State.RESTORE: [_net()] * 3}, [Event.AGAIN])
    assert drive.drive.run() is State.REBOOT
    assert drive.way[-1] is State.FINISH


def _journal_with(folder: Path, starts: int) -> Journal:
    """A journal of a wiped host whose last `starts` boots brought nothing."""
    journal = Journal(folder / f"journal-{starts}")
    if not journal.records:
        journal.order("one", "upgrade", "sha256:1")
        journal.done("preserve")
        journal.begin("wipe")
        journal.done("wipe")
        for _ in range(starts):
            journal.attempt()
    return journal


@pytest.mark.parametrize("starts", [MOST_FRUITLESS, MOST_FRUITLESS + 1])
def test_a_machine_that_panics_after_the_wipe_tells_and_slows_down(
        road: Callable[..., Road], tmp_path: Path, starts: int) -> None:
    """Only the journal knows: a panic leaves no failed attempt, and every boot counts from one again."""
    drive = road({}, [Event.AGAIN])
    drive.session.is_wiped, drive.session.journal = True, _journal_with(tmp_path, starts)
    assert drive.drive.run() is State.REBOOT
    if starts == MOST_FRUITLESS:
        assert drive.menus == []
        return
    ((why, retry_s),) = drive.menus
    assert "got nowhere" in why and str(starts) not in why and retry_s == pytest.approx(900)
    assert "gasp" in drive.out.getvalue()
    assert drive.way[:2] == [State.NETWORK, State.ORDER] == drive.way[2:4] and drive.way[-1] is State.FINISH


def test_the_attempts_of_one_boot_are_all_had(road: Callable[..., Road], tmp_path: Path) -> None:
    """They come with pauses of their own, and an order may ask for twenty."""
    drive = road({State.RESTORE: [_net()] * 4})
    drive.session.is_wiped, drive.session.default_attempts = True, 5
    drive.session.journal = _journal_with(tmp_path, MOST_FRUITLESS - 1)
    journal = drive.session.journal

    def order(_: Session) -> Mapping[str, object]:
        journal.attempt()
        return {}

    drive.drive._actions = {**drive.drive._actions, State.ORDER: order}
    drive.drive.run()
    assert drive.menus == [] and journal.state.fruitless > MOST_FRUITLESS


def test_before_the_wipe_starts_are_not_counted_against_a_machine(road: Callable[..., Road], tmp_path: Path) -> None:
    drive = road({})
    drive.session.journal = _journal_with(tmp_path, MOST_FRUITLESS + 1)
    drive.drive.run()
    assert drive.menus == []


def test_no_order_shows_the_menu_and_waits_for_a_person(road: Callable[..., Road]) -> None:
    drive = road({State.ORDER: [NoOrderError("nothing for this machine")]})
    drive.drive.run()
    assert drive.menus == [("nothing for this machine", None)]
    assert State.DISKS not in drive.way


def test_a_defect_is_not_swallowed(road: Callable[..., Road]) -> None:
    drive = road({})
    broken = Drive(drive.session, dict.fromkeys(PHASES, _broken), menu=drive._menu, jitter=lambda: 0.0)
    with pytest.raises(KeyError):
        broken.run()


def _broken(_: Session) -> Mapping[str, object]:
    raise KeyError("a defect")


def _scenarios() -> Iterator[tuple[Script, list[Event] | None, Callable[[Host], None]]]:
    def leave(_: Host) -> None: ...

    def bare(host: Host) -> None:
        host.system = False

    def worn_out(host: Host) -> None:
        host.is_wiped = True
        host.journal = _journal_with(host.places.local.parent, MOST_FRUITLESS + 1)

    def no_way_back(host: Host) -> None:
        host.boot_fails = True

    yield {}, None, leave
    for state in PHASES:
        yield {state: [BusyError("wait; later")]}, None, leave
        yield {state: [_net()] * 3}, None, bare
        if state in BEFORE_WIPE:
            yield {state: [RefusedError("no; ask")]}, None, leave
    yield {State.ORDER: [NoOrderError("none")]}, [Event.AGAIN], leave
    yield {}, [Event.AGAIN], worn_out
    yield {State.DISKS: [RefusedError("no; ask")]}, None, no_way_back


def test_every_transition_is_exercised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[State, Event]] = set()
    real = machine.following

    def noted(state: State, event: Event) -> State:
        seen.add((state, event))
        return real(state, event)

    monkeypatch.setattr(machine, "following", noted)
    for script, menu, prepare in _scenarios():
        drive = Road(tmp_path, script, menu)
        prepare(drive.session)
        assert drive.drive.run() is State.REBOOT
    assert seen == set(TABLE)
