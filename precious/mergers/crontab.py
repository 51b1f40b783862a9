"""/etc/crontab, the system's table: what cron runs and as whom, crontab(5). Pure.

The image's file is the beginning, as it is. After it come the host's own jobs and settings, in their order, with the
comments right before them. A job that runs the scripts of a folder (run-parts) which a job of the image runs too is the
same job: it must not run twice. Tables of users (the spool) are whole files, and no merger's business.
"""

from __future__ import annotations

import re

from precious.mergers.lines import join, plain, split
from precious.mergers.sides import Fate, Told
from precious.mergers.world import World

_SETTING = re.compile(rb"\s*[A-Za-z_][A-Za-z0-9_]*\s*=")
_FOLDER = re.compile(rb"\brun-parts\b[^|;&]{0,200}?(/[^\s;|&)}]+)")


def _folder(line: bytes) -> bytes | None:
    found = _FOLDER.search(line)
    return found.group(1).rstrip(b"/") if found else None


def _user(text: bytes) -> bytes | None:
    """Return as whom a job runs; None for a setting, or what is no job."""
    if _SETTING.match(text):
        return None
    found = text.split(b" ", 6)
    at = 1 if text.startswith(b"@") else 5
    return found[at] if len(found) > at + 1 else None


def merge(path: bytes, host: bytes, image: bytes, base: bytes | None, world: World) -> tuple[bytes, list[Told]]:
    """Return the image's table, then the host's own lines."""
    told: list[Told] = []
    result = split(image)
    there = {plain(line) for line in result}
    known = set() if base is None else {plain(line) for line in split(base)}
    folders = {_folder(line) for line in result if not line.lstrip().startswith(b"#")} - {None}
    comments: list[bytes] = []

    def left(rows: list[bytes], why: str, fate: Fate = Fate.DROPPED) -> None:
        told.extend(Told(path, fate, row, why) for row in rows if plain(row) not in there)

    for line in split(host):
        text = plain(line)
        if not text:
            left(comments, "is a comment on nothing that was carried over")
            comments = []
        elif text.startswith(b"#"):
            comments.append(line)
        elif text in there:
            left(comments, "is a comment on what the image has without it")
            comments = []
        elif text in known or ((folder := _folder(line)) is not None and folder in folders):
            mine = text not in known
            left([*comments, line], "gave way to the image's job for the same folder" if mine else
                 "was the old release's, and the new one has another or none", Fate.CONFLICT if mine else Fate.DROPPED)
            comments = []
        else:
            result += [comment for comment in comments if plain(comment) not in there]
            result.append(line)
            there |= {text, *(plain(comment) for comment in comments)}
            user = _user(text)
            if user is not None and world.users and user not in world.users:
                told.append(Told(path, Fate.NOTE, line, "is to run as a user whom the new root does not have"))
            if _SETTING.match(line):
                told.append(Told(path, Fate.NOTE, line, "counts for the host's own jobs, which stand after it, and not "
                                 "for the image's"))
            comments = []
    left(comments, "is a comment on nothing that was carried over")
    return join(result), told
