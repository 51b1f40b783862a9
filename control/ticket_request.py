"""The ticket requests of a fleet as they come over the wire: one exact shape, everything else is not read. Pure.

A parser that understands little and gives the rest away cannot disagree with the other one about what it understands:
docs/adr/0013-ticket-door.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from plumbing import session

MAX_HEAD = 2048
MAX_BODY = 1024
"""Bytes; what is longer is not of the shape."""
_SIGNED = ("reroot-host", "reroot-time", "reroot-nonce", "reroot-signature")
_PLAIN = frozenset({*_SIGNED, "host", "content-length", "content-type", "user-agent", "accept", "accept-encoding",
                     "connection"})
_FIRST = re.compile(
    rb"(POST|DELETE) (/api/v1/(?:tickets(?:/([A-Za-z0-9][A-Za-z0-9._-]*)(/renew)?)?|session)) HTTP/1\.1\r\n")
_SESSION = re.compile(rb"\r\nReroot-Session: ([A-Za-z0-9_-]{16}) ([1-9][0-9]{0,15}) ([0-9a-f]{32})(?=\r\n)")
_OPENING = session.OPENING.encode()
_WHAT = {(b"POST", False, False): "get", (b"POST", True, True): "renew", (b"DELETE", True, False): "return"}


class Ask(NamedTuple):
    """A request of the shape: `what` is get, renew or return of a ticket (the path's), or open of a session.

    `spoken` is identity, count and digest of a request in a session; any other has its `headers` instead.
    """

    what: str
    method: str
    target: str
    ticket: str
    headers: Mapping[str, str]
    body: bytes
    spoken: tuple[str, str, str] | None = None


def read(data: bytes) -> tuple[Ask, int] | int | None:
    """Return the request at the beginning of `data` and its length in bytes; None when it is not of the shape.

    When its head has come whole and its body has not, return the length that is waited for.
    """
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD)
    first = _FIRST.match(data)
    if end < 0 or first is None:
        return None
    method, target, ticket, tail = first.groups()
    what = _WHAT.get((method, ticket is not None, tail is not None))
    if what == "get" and target == _OPENING:
        what = "open"
    if what is None:
        return None
    begin, spoken = first.end(), _SESSION.search(data, first.end() - 2, end + 2)
    if spoken is None:
        found = headers(data[begin:end])
    else:
        # What remains without it is the same for all requests of a client, and read once.
        found = _usual(data[begin - 2:spoken.start()] + data[spoken.end():end])
    if found is None:
        return None
    whole = end + 4 + found[1]
    if len(data) < whole:
        return whole
    ask = Ask(what, method.decode(), target.decode(), ticket.decode() if ticket else "",
              found[0] if spoken is None else {}, data[end + 4:whole],
              None if spoken is None else (spoken[1].decode(), spoken[2].decode(), spoken[3].decode()))
    return ask, whole


def headers(lines: bytes) -> tuple[Mapping[str, str], int] | None:
    """Return the headers and the body's length in bytes; None when there is anything unusual."""
    found: dict[str, str] = {}
    try:
        text = lines.decode("ascii")
    except UnicodeDecodeError:
        return None
    for line in text.split("\r\n"):
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or name not in _PLAIN or name in found or not value.isprintable():
            return None
        found[name] = value.strip(" ")
    length = found.get("content-length", "0")
    if "host" not in found or found.get("connection", "keep-alive").lower() != "keep-alive":
        return None
    if not length.isdigit() or len(length) > 4 or int(length) > MAX_BODY:
        return None
    return found, int(length)


@lru_cache(256)
def _usual(lines: bytes) -> tuple[Mapping[str, str], int] | None:
    return headers(lines.removeprefix(b"\r\n"))
