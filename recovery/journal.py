"""The journal on /local: append-only, fsynced, checksummed; its replay says where recovery resumes.

`encode`, `decode` and `replay` are pure; `Journal` does the I/O. The format is docs/protocols/journal.md.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from plumbing import clock, durable
from plumbing.errors import CorruptError, RefusedError, UsageError

PHASES = ("network", "order", "disks", "preserve", "wipe", "restore", "verify", "putback", "bootloader", "finish")
EVERY_BOOT = frozenset({"network", "order", "disks"})
"""Phases whose result does not outlive a boot."""
EVENTS = frozenset({"order", "attempt", "begin", "done", "failed", "frames"})
NOTE_EVERY_S = 2.0
"""How often restored frames are noted, in seconds; each note costs an fsync of the filesystem that has the journal."""
START = "0" * 16
"""What stands for the check of the line before the first."""

Range = tuple[int, int]
"""First and last frame number, both included."""


@dataclass(frozen=True)
class Record:
    """One line: `at` is for people, order comes from `n`."""

    n: int
    at: str
    event: str
    phase: str | None = None
    data: Mapping[str, object] = field(default_factory=dict)
    message: str | None = None


@dataclass(frozen=True)
class State:
    """What the records add up to."""

    order: str | None = None
    mode: str | None = None
    release: str | None = None
    attempts: int = 0
    fruitless: int = 0
    """Starts of recovery since something was last done: a kernel that panics leaves nothing else behind."""
    failures: int = 0
    last_failure: str | None = None
    current: str | None = None
    done: frozenset[str] = frozenset()
    data: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    frames: frozenset[int] = frozenset()
    wiped: bool = False
    precious_order: str | None = None
    mail: Mapping[str, object] | None = None
    """The mail section of the order, which was verified when it was recorded."""

    @property
    def finished(self) -> bool:
        """Whether the last order was carried out to its end."""
        return "finish" in self.done

    @property
    def resume(self) -> str | None:
        """The first lasting phase that is not done; None when all are (or there is no order)."""
        if self.order is None:
            return None
        return next((phase for phase in PHASES if phase not in EVERY_BOOT and phase not in self.done), None)

    def must_run(self, phase: str) -> bool:
        """Whether this boot has to run `phase`.

        Until the wipe has begun preserve runs each time: the old system may have lived between two boots of recovery.
        """
        return phase in EVERY_BOOT or phase not in self.done or (phase == "preserve" and not self.wiped)


def encode(record: Record, previous_check: str) -> tuple[bytes, str]:
    """Return the line for `record` after a line with `previous_check`, and its own check."""
    value: dict[str, object] = {"n": record.n, "at": record.at, "event": record.event}
    if record.phase is not None:
        value["phase"] = record.phase
    if record.data:
        value["data"] = dict(record.data)
    if record.message is not None:
        value["message"] = record.message
    body = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    check = _check(previous_check, body)
    return check.encode() + b" " + body + b"\n", check


def decode(data: bytes) -> tuple[list[Record], int, str]:
    """Return the records, the length in bytes of the sound part, and the last check.

    A bad last line is left out; raises CorruptError for a bad line that has another after it.
    """
    records: list[Record] = []
    good, check = 0, START
    while good < len(data):
        end = data.find(b"\n", good)
        line = data[good:] if end < 0 else data[good:end]
        record = _read_line(line, check, len(records)) if end >= 0 else None
        if record is None:
            if end >= 0 and data[end + 1:].strip(b"\0\n"):
                raise CorruptError(f"line {len(records) + 1} of the journal does not match its checksum and others "
                                   "follow it; nothing was wiped: look at the disk, then move the journal away")
            break
        records.append(record)
        check = line[:16].decode()
        good = end + 1
    return records, good, check


def replay(records: Iterable[Record]) -> State:
    """Add the records up; raises CorruptError when one makes no sense."""
    state = State()
    for record in records:
        try:
            state = _apply(state, record)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(f"record {record.n} of the journal ({record.event}) makes no sense; it was written by "
                               "another version of reroot: move the journal away and issue a new order") from error
    return state


def carried_out(records: Iterable[Record], order_id: str) -> bool:
    """Whether the order with this id came to its end somewhere in `records`."""
    current: object = None
    for record in records:
        if record.event == "order":
            current = record.data.get("id")
        elif record.event == "done" and record.phase == "finish" and current == order_id:
            return True
    return False


def to_ranges(frames: Collection[int]) -> list[Range]:
    """Write frame numbers as ascending ranges."""
    ranges: list[Range] = []
    for frame in sorted(frames):
        if ranges and frame == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], frame)
        else:
            ranges.append((frame, frame))
    return ranges


class Journal:
    """The journal at `path`; one process writes it. Opening reads it and cuts a torn tail off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        data = path.read_bytes() if path.exists() else b""
        records, good, self._check = decode(data)
        if good < len(data):
            durable.write_file(path, data[:good], mode=0o600)
        self._length = good
        self.records: tuple[Record, ...] = tuple(records)
        self.state = replay(records)

    def order(self, order_id: str, mode: str, release: str | None,
              mail: Mapping[str, object] | None = None) -> State:
        """Record which verified order is being carried out; `release` is its digest. Repeating it adds nothing.

        `mail` says where the last gasp goes when a later boot cannot verify an order.

        Raises RefusedError as `refuse_repeat` does.
        """
        self.refuse_repeat(order_id)
        now = self.state
        if (now.order, now.mode, now.release, now.mail) != (order_id, mode, release, mail):
            kept = {} if mail is None else {"mail": mail}
            self._append("order", data={"id": order_id, "mode": mode, "release": release, **kept})
        return self.state

    def again(self) -> State:
        """Record that a person at the console wants the order that was carried out last carried out once more."""
        now = self.state
        return self._append("order", data={"id": now.order, "mode": now.mode, "release": now.release, "again": True})

    def attempt(self) -> State:
        """Record one more start of recovery."""
        return self._append("attempt")

    def begin(self, phase: str, data: Mapping[str, object] | None = None) -> State:
        """Record that `phase` starts: it and all later ones become undone. Durable when this returns."""
        return self._append("begin", phase, data)

    def done(self, phase: str, data: Mapping[str, object] | None = None) -> State:
        """Record that `phase` and everything it wrote is durable; `data` stays readable in state.data[phase]."""
        return self._append("done", phase, data)

    def failed(self, phase: str, message: str, data: Mapping[str, object] | None = None) -> State:
        """Record that `phase` failed, with the sentence for people."""
        return self._append("failed", phase, data, message)

    def frames(self, restored: Collection[int]) -> State:
        """Record frames as restored; sync the filesystem that holds them first. None new: nothing is written."""
        fresh = set(restored) - self.state.frames
        return self._append("frames", data=_spans(fresh)) if fresh else self.state

    def finished(self, order_id: str) -> bool:
        """Whether the order with this id was carried out to its end, ever, by this journal's account."""
        return carried_out(self.records, order_id)

    def refuse_repeat(self, order_id: str) -> None:
        """Raise RefusedError for an order that was carried out before the current one: whoever sends it replays it."""
        if self.state.order != order_id and self.finished(order_id):
            raise RefusedError(f"order {order_id} was carried out before; nothing is done: issue a new one")

    def _append(
        self, event: str, phase: str | None = None, data: Mapping[str, object] | None = None,
        message: str | None = None,
    ) -> State:
        if phase is not None and phase not in PHASES:
            raise UsageError(f"{phase} is not a phase of recovery; the phases are {', '.join(PHASES)}")
        record = Record(len(self.records), clock.iso(clock.wall()), event, phase, dict(data or {}), message)
        state = _apply(self.state, record)
        line, check = encode(record, self._check)
        try:
            durable.append(self.path, line)
        except OSError:
            # a full disk may have taken half a line: the next record must not be written behind it
            with suppress(OSError):
                os.truncate(self.path, self._length)
            raise
        self.records, self.state, self._check = (*self.records, record), state, check
        self._length += len(line)
        return state


class Noted:
    """Restored frames on their way into a journal, a record every few seconds; they are durable when they come."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._frames: set[int] = set()
        self._last = clock.monotonic()

    def add(self, frame: int) -> None:
        """Note one frame."""
        self._frames.add(frame)
        if clock.monotonic() - self._last > NOTE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Write what was noted to the journal."""
        frames, self._frames = self._frames, set()
        self._journal.frames(frames)
        self._last = clock.monotonic()


def _spans(frames: Collection[int]) -> Mapping[str, object]:
    return {"ranges": [list(span) for span in to_ranges(frames)]}


def _check(previous: str, body: bytes) -> str:
    return hashlib.sha256(previous.encode() + b" " + body).hexdigest()[:16]


def _read_line(line: bytes, previous: str, n: int) -> Record | None:
    """Return the record, or None when the line is not sound."""
    check, _, body = line.partition(b" ")
    if check != _check(previous, body).encode():
        return None
    try:
        value = json.loads(body)
        record = Record(value["n"], value["at"], value["event"], value.get("phase"), value.get("data", {}),
                        value.get("message"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    sound = (record.n == n and record.event in EVENTS and isinstance(record.data, dict)
             and record.phase in (None, *PHASES))
    return record if sound else None


def _apply(state: State, record: Record) -> State:
    phase, data = record.phase, record.data
    if record.event == "order":
        mail = data.get("mail")
        if not isinstance(mail, dict | None):
            raise TypeError(mail)
        return replace(_new_order(state, data), mail=mail)
    if record.event == "attempt":
        return replace(state, attempts=state.attempts + 1, fruitless=state.fruitless + 1)
    if record.event == "frames":
        return replace(state, fruitless=0, frames=state.frames | _numbers(data["ranges"]))
    if phase is None:
        raise ValueError(record.event)
    if record.event == "failed":
        return replace(state, failures=state.failures + 1, last_failure=record.message, current=phase)
    if record.event == "done":
        precious = state.order if phase == "preserve" else state.precious_order
        return replace(state, done=state.done | {phase}, current=None, fruitless=0, precious_order=precious,
                       data={**state.data, phase: data})
    begun = PHASES.index(phase)
    kept = frozenset(name for name in state.done if PHASES.index(name) < begun)
    if state.wiped and "preserve" in state.done:
        kept |= {"preserve"}
    wipe = phase == "wipe"
    return replace(state, current=phase, done=kept, wiped=state.wiped or wipe,
                   frames=frozenset() if wipe else state.frames,
                   data={name: state.data[name] for name in kept if name in state.data})


def _new_order(state: State, data: Mapping[str, object]) -> State:
    new_id, mode, release = str(data["id"]), str(data["mode"]), data["release"]
    if release is not None and not isinstance(release, str):
        raise ValueError(release)
    if state.order is None or state.finished:
        return State(new_id, mode, release)
    if release == state.release and mode == state.mode:
        fresh = new_id != state.order  # somebody repaired something and issued again: all tries are to be had again
        return replace(state, order=new_id, attempts=0 if fresh else state.attempts,
                       fruitless=0 if fresh else state.fruitless, failures=0 if fresh else state.failures)
    kept = frozenset({"preserve"}) & state.done if state.wiped else frozenset()
    return State(new_id, mode, release, last_failure=state.last_failure, done=kept, wiped=state.wiped,
                 precious_order=state.precious_order if kept else None,
                 data={name: state.data[name] for name in kept if name in state.data})


def _numbers(ranges: object) -> frozenset[int]:
    if not isinstance(ranges, Sequence):
        raise TypeError(ranges)
    found: set[int] = set()
    for first, last in ranges:
        if not 0 <= first <= last < 1 << 24:
            raise ValueError(first)
        found.update(range(first, last + 1))
    return frozenset(found)
