"""What is asked of the ticket service, and what one round of it decides. Values in memory; no I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from plumbing.errors import RerootError
from throttle.line import Place
from throttle.records import Change
from throttle.waiting import Request

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Job(Generic[T]):
    """Anything but a request for a ticket: what it changes at a monotonic time, and its answer."""

    rule: Callable[[float], tuple[Sequence[Change], T]]
    answer: asyncio.Future[T]


@dataclass
class Round:
    """What one round decided and has not written yet."""

    changes: list[Change] = field(default_factory=list)
    answers: list[tuple[Job[Any] | Request, Any]] = field(default_factory=list)
    left: list[tuple[str, Place]] = field(default_factory=list)


def fail(one: Job[Any] | Request, error: RerootError) -> None:
    """Answer `one` by an error, unless it is answered."""
    if not one.answer.done():
        one.answer.set_exception(error)
