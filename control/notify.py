"""Telling systemd how the server is (sd_notify); I/O on the socket that $NOTIFY_SOCKET names, if any."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import suppress

log = logging.getLogger("reroot.serve")


def notify(state: str) -> None:
    """Send one state, such as READY=1, STOPPING=1 or WATCHDOG=1; does nothing without systemd."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
    except OSError as error:
        log.warning("systemd's socket %s takes no %s (%s)", address, state, error)


async def keep_watchdog(stop: asyncio.Event) -> None:
    """Feed systemd's watchdog, when it has one, at a third of its time until `stop` is set."""
    period = os.environ.get("WATCHDOG_USEC", "")
    if not period.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        await stop.wait()
        return
    while not stop.is_set():
        notify("WATCHDOG=1")
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), int(period) / 3e6)
