"""One process of the service's crash tests: get and give back as fast as the disk allows, and say what it did.

Usage: hammer.py DATABASE-URL TICKETTAB NAME ROUNDS. Prints `got TICKET AFTER` and `back TICKET BEFORE` with monotonic
seconds. Twenty hosts of this process ask at once, so that a commit holds many grants.
"""

import asyncio
import sys
import time
from pathlib import Path

from control.database import Database
from plumbing.errors import BusyError
from throttle.repository import SqlRepository
from throttle.service import TicketService


class Nowhere:
    def near(self, host: str, providers: frozenset[str]) -> dict[str, int]:
        return {}

    def url(self, provider: str) -> str:
        return ""


async def host(tickets: TicketService, name: str, rounds: int) -> None:
    for number in range(rounds):
        try:
            lease = await tickets.get("dump", name, wait_s=5.0)
        except BusyError:
            continue
        print("got", lease.ticket, time.monotonic(), flush=True)
        if number % 4:
            await asyncio.sleep(0)
        print("back", lease.ticket, time.monotonic(), flush=True)
        await tickets.give_back(lease.ticket, name)


async def main(url: str, tab: str, name: str, rounds: int) -> None:
    tickets = TicketService(SqlRepository(Database(url).engine, "this boot"), Path(tab), Nowhere())
    await asyncio.gather(*(host(tickets, f"{name}{number}", rounds) for number in range(20)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
