"""How reroot's tickets grow: memory for hosts that wait, time of a grant in a table that fills up. I/O: a site.

`python -m bench.throttle_size wait HOSTS` and `python -m bench.throttle_size fill SIZE …` each print a line of JSON.
Both call what the API's handlers call, in one process and on SQLite: 100,000 hosts with a signature each would mostly
measure signatures.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from control import config, serve
from control import site as sites
from control.catalogue import SiteCatalogue
from control.database import Database, url_for
from plumbing.errors import BusyError

AT_ONCE = 256
PAIRS = 20_000
WAIT_S = 600.0
PATIENCE_S = 240.0
"""How long one size may take to be reached, in seconds, before it counts as out of reach."""


@asynccontextmanager
async def tickets(folder: Path, tab: str) -> AsyncIterator[Any]:
    """Make a site and open its ticket service, with whatever runs beside it."""
    site = sites.init(folder / "site", "http://127.0.0.1:8080")
    site.tickettab.write_text(site.tickettab.read_text() + tab)
    loaded = config.load(site.config)
    database = Database(url_for(site.database, loaded.server.database))
    database.migrate()
    service = serve.make_parts(site, loaded, database, SiteCatalogue(site)).tickets
    stop = asyncio.Event()
    beside = getattr(service, "run", None)
    task = None if beside is None else asyncio.create_task(beside(stop))
    try:
        yield service
    finally:
        stop.set()
        if task is not None:
            await task
        database.close()


def resident_bytes() -> int:
    """Return the memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def wait(hosts: int, folder: Path) -> dict[str, float]:
    """Have `hosts` wait for the one slot there is; returns what the process takes before and then, in bytes."""
    async with tickets(folder, "service bench 3600\npool 1\n") as service:
        await service.get("bench", "holder")
        before = resident_bytes()
        began_s = time.perf_counter()
        turned_away = 0

        async def one(number: int) -> None:
            nonlocal turned_away
            with suppress(asyncio.CancelledError):
                try:
                    await service.get("bench", f"host{number}.example.org", wait_s=WAIT_S)
                except BusyError:
                    turned_away += 1

        waiting = [asyncio.create_task(one(number)) for number in range(hosts)]
        await asyncio.sleep(0)
        with suppress(BusyError):  # whoever asks last is answered when everybody before was heard
            await service.get("bench", "last", wait_s=0.0)
        after, took_s = resident_bytes(), time.perf_counter() - began_s
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting)
    return {"before": before, "after": after, "took_s": took_s, "told_to_come_back": turned_away}


async def fill(sizes: Sequence[int], folder: Path) -> dict[int, float | None]:
    """Return the seconds of a pair with `AT_ONCE` under way, per number of tickets held already; None out of reach."""
    slots = max(sizes) + 10 * AT_ONCE
    found: dict[int, float | None] = dict.fromkeys(sizes)
    async with tickets(folder, "service bench 86400\n" + "".join(
            f"pool{number} 1000000\n" for number in range(slots // 1_000_000 + 1))) as service:
        held = 0
        for size in sorted(sizes):
            until_s = time.perf_counter() + PATIENCE_S
            while held < size and time.perf_counter() < until_s:
                batch = min(AT_ONCE * 8, size - held)
                await asyncio.gather(*(service.get("bench", f"held{held + number}") for number in range(batch)))
                held += batch
            if held < size:
                break
            found[size] = await _pairs(service)
    return found


async def _pairs(service: Any) -> float:
    async def host(number: int) -> None:
        for _ in range(PAIRS // AT_ONCE):
            lease = await service.get("bench", f"asker{number}")
            await service.give_back(lease.ticket, f"asker{number}")

    began_s = time.perf_counter()
    await asyncio.gather(*(host(number) for number in range(AT_ONCE)))
    return (time.perf_counter() - began_s) / (PAIRS // AT_ONCE * AT_ONCE)


def main(words: Sequence[str]) -> None:
    """Run one of the two and print what came out."""
    with tempfile.TemporaryDirectory(prefix="reroot-bench-") as folder:
        numbers = [int(word) for word in words[1:]]
        found = asyncio.run(wait(numbers[0], Path(folder)) if words[0] == "wait" else fill(numbers, Path(folder)))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
