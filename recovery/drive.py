"""Running the machine (I/O): does what each state means, meets failures as the table says, tells everyone.

In: a Session and what to do in each phase. Out: State.REBOOT, when whatever boots this machine should have it. A defect
(an exception that is no RerootError or OSError) is not met here: it ends the process, and PID 1 starts it again.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress

from plumbing import clock
from plumbing.errors import DiskError, Kind, RerootError
from recovery import machine
from recovery.journal import EVERY_BOOT
from recovery.lastgasp import Gasp
from recovery.log import plain
from recovery.machine import Event, Standing, State
from recovery.session import Session

Action = Callable[[Session], Mapping[str, object]]
"""What a phase does; returns figures for the journal and the report."""

Jitter = Callable[[], float]
"""A number in [0, 1)."""

ADVICE: Mapping[Kind, tuple[str, ...]] = {
    Kind.NETWORK: ("check the cable, the switch port and that `reroot serve` runs",),
    Kind.TRUST: ("check the clock of this machine and the expiry of the catalogue (`reroot image list`)",
                 "issue a new order with `reroot host order`"),
    Kind.DISK: ("look at the disk (smartctl, cables); a failing one needs to be replaced",),
    Kind.REFUSED: ("the order asks for something this machine cannot do safely; correct it and issue it again",),
    Kind.CORRUPT: ("verify the release with `reroot image verify`",),
    Kind.BUSY: ("all tickets are taken; add providers to tickettab or wait",),
}
"""What to try, by kind of failure, besides what every last gasp says."""

ALWAYS = ("issue a new order for this host: it is fetched at the next attempt, by itself every 15 minutes",
          "or use the rescue menu on the machine's console (serial or screen)")


class NoOrderError(RerootError):
    """There is nothing for this machine to do, or the order is to show the menu."""

    kind = Kind.NOT_FOUND


def as_error(error: OSError) -> RerootError:
    """Return what a failed system call means, with its errno by name."""
    name = errno.errorcode.get(error.errno or 0, "unknown errno")
    where = f" on {error.filename}" if error.filename else ""
    return DiskError(f"{name}{where}: {error.strerror or error}; look at the disk and the kernel's messages")


class Drive:
    """One run of the machine, from network to reboot. `pause` waits that many seconds and keeps the watcher content."""

    def __init__(self, session: Session, actions: Mapping[State, Action], *, menu: Callable[[str, float | None], Event],
                 jitter: Jitter, pause: Callable[[float], None] | None = None, spent: int = 0) -> None:
        self._session = session
        self._actions = actions
        self._menu = menu
        self._jitter = jitter
        self._pause = pause if pause is not None else self._wait
        self._attempt = spent + 1
        self._failure: tuple[State, RerootError] | None = None
        self._lost = False
        self._slowed = False

    def run(self, state: State = State.NETWORK, why: RerootError | None = None) -> State:
        """Go from `state` to State.REBOOT; `why` is the failure when the start is not the beginning."""
        if why is not None:
            self._failure = (state, why)
        while state is not State.REBOOT:
            event = self._enter(state)
            state = machine.following(state, event)
        return state

    def _enter(self, state: State) -> Event:
        self._session.log.begin(state.value)
        if state in self._actions:
            return self._phase(state)
        return {State.RETRY: self._retry, State.FAILED: self._failed, State.GASP: self._gasp,
                State.RESCUE: self._rescue}[state]()

    def _phase(self, state: State) -> Event:
        session, phase = self._session, state.value
        if state is State.NETWORK:
            session.log.say(phase, f"attempt {self._attempt} of {self._attempts()}")
        journal = session.journal
        # finish is run always: a cut may have come between its record and the boot default
        passes = phase not in EVERY_BOOT and state is not State.FINISH
        if passes and journal is not None and not journal.state.must_run(phase):
            session.log.say(phase, "done before the restart; going on")
            return Event.DONE
        began = clock.monotonic()
        session.log.say(phase, "begins")
        session.reporter.send(phase, "begin", {"attempt": self._attempt})
        try:
            figures = dict(self._actions[state](session))
        except NoOrderError as error:
            session.log.say(phase, error.sentence)
            self._failure = (state, error)
            return Event.NO_ORDER
        except RerootError as error:
            return self._met(state, error)
        except OSError as error:
            return self._met(state, as_error(error))
        figures["seconds"] = round(clock.monotonic() - began, 2)
        session.log.say(phase, f"done in {figures['seconds']} s")
        session.reporter.send(phase, "done", figures)
        return self._fruitless() if state is State.ORDER else Event.DONE

    def _fruitless(self) -> Event:
        """Say whether boot after boot of this machine came to nothing; then it tells people and waits, once a boot.

        A kernel that panics never gets to the end of its attempts: only the journal knows how often it began.
        """
        session = self._session
        starts = session.journal.state.fruitless if session.journal is not None else 0
        if not machine.is_fruitless(starts, wiped=session.wiped, slowed=self._slowed):
            return Event.DONE
        # the count is left out: the sentence must stay the same for the mail to be sent once
        self._failure = State.ORDER, RerootError(
            "recovery was started again and again after the root was wiped and got nowhere; look at this machine's "
            "console (a kernel panic, memory, the disk), then repair it or issue a new order")
        error = self._failure[1]
        session.log.say("order", f"{starts} starts without any progress: {error.sentence}")
        session.reporter.send("order", "failed", {"kind": error.kind.value, "attempt": self._attempt, "final": True,
                                                  "wiped": True}, error.sentence)
        return Event.FRUITLESS

    def _met(self, state: State, error: RerootError) -> Event:
        session = self._session
        self._failure = (state, error)
        standing = Standing(self._attempt, self._attempts(), session.wiped, session.has_system())
        event = machine.after_failure(state, error.kind, standing)
        session.log.say(state.value, f"FAILED ({error.kind.value}): {error.sentence}")
        session.reporter.send(state.value, "failed", {
            "kind": error.kind.value, "attempt": self._attempt, "final": event is not Event.AGAIN,
            "wiped": session.wiped, "log": list(session.log.last(20))}, plain(error.sentence))
        journal = session.journal
        mine = session.order is None or (journal is not None and journal.state.order == session.order.id)
        if journal is not None and mine:  # an order that was refused leaves no trace in the journal of another
            with suppress(OSError):  # a failing /local is told about, it does not hide the first failure
                journal.failed(state.value, plain(error.sentence), {"kind": error.kind.value})
        return event

    def _attempts(self) -> int:
        return self._session.order.attempts if self._session.order is not None else self._session.default_attempts

    def _retry(self) -> Event:
        wait_s = machine.backoff_s(self._attempt, self._jitter())
        self._session.log.say("retry", f"again in {wait_s:.0f} s, with a fresh order")
        self._session.detach()
        self._pause(wait_s)
        self._attempt += 1
        self._slowed = True
        return Event.DONE

    def _failed(self) -> Event:
        session = self._session
        session.log.say("failed", "nothing was wiped; going back to the system that was there")
        try:
            session.boot_system()
        except RerootError as error:
            session.log.say("failed", f"the boot default cannot be set back: {error.sentence}")
            return Event.LOST
        if not session.reporter.flush():
            self._mail()
        return Event.DONE

    def _gasp(self) -> Event:
        self._lost = True
        self._mail()
        if not self._session.reporter.flush():
            self._session.log.say("gasp", "the control server does not take the report either")
        return Event.DONE

    def _mail(self) -> None:
        session = self._session
        state, error = self._failure or (State.NETWORK, RerootError("recovery stopped without saying why"))
        gasp = Gasp(
            session.host, session.order_id, state.value, error.kind.value, error.sentence,
            clock.iso(clock.wall()), session.log.last(), (*ADVICE.get(error.kind, ()), *ALWAYS))
        outcome = session.lastgasp.tell(gasp, session.mail)
        session.log.say("gasp", f"{outcome}: {gasp.phase} failed ({gasp.kind}): {gasp.sentence}")

    def _rescue(self) -> Event:
        error = self._failure[1].sentence if self._failure else "asked for on the kernel command line"
        # an enrolled host has nothing else to do here: it goes on asking for an order
        heals = self._lost or self._session.command_line.local is not None
        self._slowed = True
        event = self._menu(error, machine.rescue_pause_s(self._jitter()) if heals else None)
        if event is Event.AGAIN:
            self._session.detach()
            self._attempt, self._lost = 1, False
        return event

    def _wait(self, seconds: float) -> None:
        deadline, tick = clock.monotonic() + seconds, threading.Event()
        while (left := deadline - clock.monotonic()) > 0:
            self._session.log.alive()
            tick.wait(min(10.0, left))
