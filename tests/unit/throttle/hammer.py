"""One process of the repository's contract test: get and give back as fast as the disk allows, and say what it did.

Usage: hammer.py DATABASE NAME ROUNDS. Prints `got TICKET AFTER` and `back TICKET BEFORE` with monotonic seconds.
"""

import sys
import time
from functools import partial

from sqlalchemy import create_engine

from plumbing.errors import BusyError
from throttle import semaphore
from throttle.repository import SqlRepository
from throttle.semaphore import Asker, Lease, Pool
from throttle.tickettab import Provider, Service

SERVICE = Service("dump", 3600, (Provider("a", 1), Provider("b", 2)))


def main(database: str, name: str, rounds: int) -> None:
    repository = SqlRepository(create_engine(f"sqlite:///{database}", connect_args={"timeout": 30}), "this boot")
    held: list[Lease] = []
    for number in range(rounds):
        asker = Asker(f"{name}{number}")
        try:
            held.append(repository.change(SERVICE, 0.0, partial(semaphore.acquire, asker=asker, now=0.0)))
        except BusyError:
            pass
        else:
            print("got", held[-1].ticket, time.monotonic(), flush=True)
        if held and number % 3:
            back = held.pop(0)
            print("back", back.ticket, time.monotonic(), flush=True)

            def rule(pool: Pool, back: Lease = back) -> tuple[Pool, None]:
                return semaphore.release(pool, back.ticket, back.holder, 0.0), None

            repository.change(SERVICE, 0.0, rule)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
