"""What each phase does (I/O), each of them safe to do again: a Session comes in fuller than it went.

- `begin`: network, order, disks: who this is, what it is told, what it is made of; nothing is touched.
- `content`, `room`: where bytes come from, and whether they fit.
- `keep`: preserve and wipe, on both sides of the border; `second` the copy that is sent away between them.
- `blank`: what is different when the order is to install a blank or broken machine.
- `fill`: restore and verify.
- `settle`: putback, bootloader, finish.

Modules are imported when their phase begins, because every import counts on a slow machine and a recovery that
ends in the rescue menu needs none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from recovery.machine import State
from recovery.session import Session

_WHERE: Mapping[State, tuple[str, str]] = {
    State.NETWORK: ("begin", "connect"), State.ORDER: ("begin", "obtain"), State.DISKS: ("begin", "identify"),
    State.PRESERVE: ("keep", "preserve"), State.WIPE: ("keep", "wipe"),
    State.RESTORE: ("fill", "restore"), State.VERIFY: ("fill", "verify"),
    State.PUTBACK: ("settle", "put_back"), State.BOOTLOADER: ("settle", "make_bootable"),
    State.FINISH: ("settle", "finish"),
}


def _late(state: State) -> Callable[[Session], Mapping[str, object]]:
    def act(session: Session) -> Mapping[str, object]:
        module, name = _WHERE[state]
        figures: Mapping[str, object] = getattr(import_module(f"recovery.phases.{module}"), name)(session)
        return figures

    return act


ACTIONS: Mapping[State, Callable[[Session], Mapping[str, object]]] = {state: _late(state) for state in _WHERE}
"""What the machine runs in each phase."""
