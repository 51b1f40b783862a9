"""Many small writes by one transaction: what comes while one is under way is done by the next. In the event loop; I/O
through a thread of its own.

One fsync costs some milliseconds, whatever it carries, so a server that made one for each request could answer a few
hundred a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

MAX_BATCH = 1000
"""Items of one transaction: more would make the first of them wait for the last."""


class GroupCommit(Generic[T, R]):
    """Hands items to `work`, as many at once as have come; `work` runs in `executor` and answers each in order.

    An answer that is an exception is raised to the item's caller; an exception that `work` raises, to all of them.
    """

    def __init__(
        self, work: Callable[[Sequence[T]], Sequence[R | Exception]], executor: Executor | None = None,
    ) -> None:
        self._work = work
        self._executor = executor
        self._queue: list[tuple[T, asyncio.Future[R]]] = []
        self._task: asyncio.Task[None] | None = None

    async def do(self, item: T) -> R:
        """Return the answer to `item`, once it is written."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[R] = loop.create_future()
        self._queue.append((item, answer))
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run())
        return await answer

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            await asyncio.sleep(0)  # whoever comes in this turn of the loop is of the same batch
            batch, self._queue = self._queue[:MAX_BATCH], self._queue[MAX_BATCH:]
            try:
                answers: Sequence[R | Exception] = await loop.run_in_executor(
                    self._executor, self._work, [item for item, _ in batch])
            except Exception as error:
                answers = [error] * len(batch)
            for (_, waiting), answer in zip(batch, answers, strict=True):
                if waiting.done():
                    continue
                if isinstance(answer, Exception):
                    waiting.set_exception(answer)
                else:
                    waiting.set_result(answer)
