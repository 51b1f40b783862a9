"""The control server's process tree: the API in this process, content in children, loops beside them; I/O.

Everything that can be wrong is found before READY: configuration, hosts, tickettab, policy, keys, catalogue, ports,
database. Then content children, API, boot services, loops. SIGTERM or SIGINT: nobody waits any more, requests under way
finish, children end, database closed.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from sqlalchemy.exc import SQLAlchemyError

from control import book, boot_services, children, door, second_copies
from control import config as configuration
from control import log as logs
from control.api.app import application
from control.audit import Audit
from control.bell import Bell
from control.catalogue import SiteCatalogue
from control.config import Config, PreciousSection, split_listen
from control.database import Database, url_for
from control.files import Library
from control.gate import Gate, boot_id
from control.notify import keep_watchdog, notify
from control.orders import Issuer
from control.parts import Directory, Parts
from control.patience import PatientOnce
from control.reboot_slots import RebootSlots
from control.rollouts import Rollouts
from control.second_copies import Limits, SecondCopies
from control.sessions import Sessions
from control.signatures import Signatures
from control.site import Site
from control.ticket_door import TicketDoor
from fleet.hosts import HostsFile
from plumbing import clock
from plumbing.errors import BusyError, ConfigError, RerootError, UsageError
from throttle.repository import SqlRepository
from throttle.service import TicketService
from throttle.upkeep import Upkeep

log = logging.getLogger("reroot.serve")

GRACE_S = 3
"""How long requests under way may still take after SIGTERM, in seconds."""

LOOK_THROUGH_S = 3600
"""How often second copies are looked through for what outlived its time, in seconds."""

KEEP_ALIVE_S = 65
BACKLOG = 1024


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers: this process has more to end than an API."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def main(root: Path) -> None:
    """Serve the site at `root` until SIGTERM or SIGINT; raises RerootError when it cannot start or go on."""
    site = Site.open(root)
    config = configuration.load(site.config)
    logs.begin(config.server.log)
    door.widen()
    logging.getLogger("tftpy").setLevel(logging.CRITICAL)  # it calls every stranger's ERROR packet an error of ours
    with asyncio.Runner(loop_factory=_loop()) as runner:
        runner.run(_until_signalled(site, config))


def _loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the event loop: Python's own, or with REROOT_UVLOOP=1 uvloop's (docs/adr/0002).

    Raises UsageError when that is asked for and not installed.
    """
    if os.environ.get("REROOT_UVLOOP") != "1":
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError as error:
        raise UsageError("REROOT_UVLOOP=1 asks for uvloop, which is not installed; pip install 'reroot[uvloop]', or "
                         "unset it") from error
    make: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return make


async def _until_signalled(site: Site, config: Config) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    logs.calm(loop)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(site, config, stop):
        log.info("serving %s: API %s, content %s", site.root, config.server.api, config.server.content)
        _calm_collector()
        notify("READY=1")
        await stop.wait()
        notify("STOPPING=1")


def _calm_collector() -> None:
    """Have the cyclic collector look seldom, and never again at what is there after the start, which stays.

    Hardly anything here is in cycles, and a third of a ticket's processor time went into looking for some.
    """
    gc.freeze()
    gc.set_threshold(20_000)


@asynccontextmanager
async def running(site: Site, config: Config, stop: asyncio.Event | None = None) -> AsyncIterator[Parts]:
    """Run the whole server inside the block; a part that fails ends it with that part's RerootError."""
    stop = stop or asyncio.Event()
    catalogue = SiteCatalogue(site)
    await asyncio.to_thread(catalogue.refresh)
    async with AsyncExitStack() as stack:
        stack.enter_context(_alone(site))
        api = stack.enter_context(_listen(config.server.api, "api"))
        files = stack.enter_context(_listen(config.server.content, "content"))
        database = Database(url_for(site.database, config.server.database))
        stack.callback(database.close)
        await asyncio.to_thread(database.migrate)
        parts = make_parts(site, config, database, catalogue)
        parts.issuer.check()
        for problem in await asyncio.to_thread(parts.problems):
            log.warning("%s", problem)
        if site.recovery_key.exists():
            log.warning("%s opens every second copy and lies on this server; take it offline: docs/trust.md",
                        site.recovery_key)
        watch = await stack.enter_async_context(children.serving(
            site, files, config.server.content_processes, database.url))
        connection: Any = partial(_connection, parts, door.Door())  # uvicorn wants a class, and calls it
        server = _Uvicorn(uvicorn.Config(
            application(parts), http=connection, lifespan="off", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S, backlog=BACKLOG))
        await stack.enter_async_context(boot_services.running(parts))
        tasks = [
            watch, asyncio.create_task(server.serve([api])), asyncio.create_task(parts.rollouts.run(stop)),
            asyncio.create_task(parts.tickets.run(stop)), asyncio.create_task(Upkeep(parts.tickets).run(stop)),
            asyncio.create_task(_keep_catalogue(catalogue, config.catalogue.refresh_s, stop)),
            asyncio.create_task(_keep_copies(parts, stop)),
            asyncio.create_task(keep_watchdog(stop)),
        ]
        guard = asyncio.create_task(_guard(tasks, stop))
        try:
            yield parts
        finally:
            stop.set()
            parts.bell.close()
            parts.rollouts.nudge()
            server.should_exit = True
            await asyncio.wait(tasks[1:])
            guard.cancel()
            with suppress(asyncio.CancelledError):
                await guard
        _raise_first(tasks)


def _connection(parts: Parts, entrance: door.Door, **uvicorns: Any) -> TicketDoor:
    """Return what answers a new connection: tickets at once, everything else by uvicorn."""
    return TicketDoor(parts, entrance, uvicorns["server_state"], partial(PatientOnce, door=entrance, **uvicorns))


def make_parts(site: Site, config: Config, database: Database, catalogue: SiteCatalogue) -> Parts:
    """Put together what the handlers share; raises ConfigError for a file that is wrong."""
    hosts_file = HostsFile(site.hosts)
    issuer = Issuer(database, catalogue, site.orders_key, site.precious, config)
    repository = SqlRepository(database.engine, boot_id())
    bell = Bell()
    rollouts = Rollouts(database, hosts_file, issuer, config.rollout, bell.ring)
    # One thread writes what is written often, so that its transactions follow one another without a lock to wait for.
    writer = ThreadPoolExecutor(1, "reroot-writer")
    tickets = TicketService(repository, site.tickettab, Directory(hosts_file, config.provider_urls()),
                            on_silent=rollouts.holder_silent, executor=writer)
    configuration.check_services(config.orders.services, tickets.names())
    configuration.check_services(config.precious.services or (), tickets.names(), "[precious] services")
    configuration.check_services((one.service for one in config.fleetlock.groups.values()), tickets.names(),
                                 "[fleetlock] groups")
    return Parts(
        site=site, config=config, admin_token=site.admin_token(), database=database, hosts_file=hosts_file,
        issuer=issuer, tickets=tickets,
        rollouts=rollouts, reboot_slots=RebootSlots(config.fleetlock.groups, tickets, hosts_file),
        library=Library(site.store, site.catalogue, site.boot), bell=bell,
        signatures=Signatures(database, writer),
        sessions=Sessions(database, lambda: hosts_file.current().by_name), gate=Gate(database, boot_id()),
        copies=_second_copies(site, config.precious), audit=Audit(site.state / "precious-audit.jsonl"),
    )


def _second_copies(site: Site, precious: PreciousSection) -> SecondCopies:
    folder = site.root / precious.folder
    second_copies.usable(folder)
    return SecondCopies(folder, Limits(precious.host_bytes, precious.reserve_bytes, precious.keep_days,
                                       precious.keep_orders))


async def _guard(tasks: list[asyncio.Task[None]], stop: asyncio.Event) -> None:
    """Stop the server when one of its parts ends before it should."""
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    stop.set()


def _raise_first(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            raise error


async def _keep_catalogue(catalogue: SiteCatalogue, refresh_s: float, stop: asyncio.Event) -> None:
    while not stop.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), refresh_s)
            return
        try:
            await asyncio.to_thread(catalogue.refresh)
        except (RerootError, OSError) as error:
            log.error("the catalogue was not refreshed: %s", error)


async def _keep_copies(parts: Parts, stop: asyncio.Event) -> None:
    """Remove second copies that outlived their time, at the start and every hour."""
    while not stop.is_set():
        try:
            needed = await asyncio.to_thread(book.unfinished, parts.database)
            for copy, why in await asyncio.to_thread(parts.copies.prune, needed, clock.wall()):
                log.info("removed the second copy of order %s of %s: %s", copy.order, copy.host, why)
        except (RerootError, SQLAlchemyError) as error:
            log.error("second copies were not looked through: %s", error)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), LOOK_THROUGH_S)


@contextmanager
def _alone(site: Site) -> Iterator[None]:
    """Hold the site's lock; raises BusyError when another server has it."""
    with ExitStack() as stack:
        try:
            handle = stack.enter_context((site.state / "serve.lock").open("ab"))
        except OSError as error:
            raise ConfigError(f"{site.state} cannot be written ({error.strerror}); run as its owner") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"another `reroot serve` runs on {site.root}; stop it first") from error
        yield


@contextmanager
def _listen(listen: str, key: str) -> Iterator[socket.socket]:
    """Bind a listening socket; raises BusyError or ConfigError naming the key to change."""
    host, port = split_listen(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise BusyError(f"[server] {key} = {listen!r}: the port is in use by another program; stop that, or "
                                "choose another port in reroot.toml") from error
            raise ConfigError(f"[server] {key} = {listen!r} cannot be listened on ({error.strerror}); choose an "
                              "address of this machine and a port this user may have") from error
        listener.setblocking(False)
        yield listener
