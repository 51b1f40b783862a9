"""What the server's processes say on stderr: one line per event, whatever a stranger or a host put into it; I/O."""

from __future__ import annotations

import asyncio
import logging

from plumbing import clock
from recovery.log import plain

_QUIET = ("alembic", "aiohttp", "uvicorn", "asyncio")


class Seldom:
    """Says yes at most once in `period_s` seconds: for what a stranger can make happen as often as he likes."""

    def __init__(self, period_s: float = 60.0) -> None:
        self._period_s = period_s
        self._next_s = 0.0

    def __call__(self) -> bool:
        """Tell whether it is time to say it again."""
        now = clock.monotonic()
        if now < self._next_s:
            return False
        self._next_s = now + self._period_s
        return True


class Lines(logging.Formatter):
    """One printable line per record; a traceback's lines are marked, so that none can pass for a record."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the record without control characters."""
        return plain(super().formatMessage(record))

    def formatException(self, ei: object) -> str:  # noqa: N802 - logging's name
        """Return the traceback, each line marked."""
        lines = super().formatException(ei).splitlines()  # type: ignore[arg-type]
        return "\n".join(f"  | {' ' * (len(line) - len(line.lstrip()))}{plain(line)}" for line in lines)


def begin(level: str) -> None:
    """Log to stderr from now on."""
    handler = logging.StreamHandler()
    handler.setFormatter(Lines())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def calm(loop: asyncio.AbstractEventLoop) -> None:
    """Have `loop` complain of connections it cannot accept once a minute, not a thousand times a second."""
    seldom = Seldom()

    def complain(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        if "accept" not in str(context.get("message")):
            loop.default_exception_handler(context)
        elif seldom():
            logging.getLogger("reroot.serve").error(
                "no more connections can be accepted for now (%s); raise this process's limit of open files "
                "(LimitNOFILE=), and see who holds them with ss -tnp", context.get("exception"))

    loop.set_exception_handler(complain)
