"""The one error hierarchy: a bounded kind, a sentence that says what to do, an exit code.

Libraries raise these; only `cli/` prints them and exits.
"""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """What went wrong, from a set small enough to be a metric label."""

    USAGE = "usage"
    CONFIG = "config"
    NOT_FOUND = "not_found"
    TRUST = "trust"
    REFUSED = "refused"
    NETWORK = "network"
    DISK = "disk"
    COMMAND = "command"
    CORRUPT = "corrupt"
    BUSY = "busy"
    INTERNAL = "internal"


EXIT_CODES: dict[Kind, int] = {
    Kind.USAGE: 2,
    Kind.CONFIG: 3,
    Kind.NOT_FOUND: 4,
    Kind.TRUST: 5,
    Kind.REFUSED: 6,
    Kind.NETWORK: 7,
    Kind.DISK: 8,
    Kind.COMMAND: 9,
    Kind.CORRUPT: 10,
    Kind.BUSY: 11,
    Kind.INTERNAL: 70,
}


class RerootError(Exception):
    """Something a person can act on: `sentence` says what is wrong, where, and what to do."""

    kind: Kind = Kind.INTERNAL

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence

    @property
    def exit_code(self) -> int:
        """The process exit status that belongs to this kind."""
        return EXIT_CODES[self.kind]


class UsageError(RerootError):
    """The call itself is wrong: a bad option, a number out of range."""

    kind = Kind.USAGE


class ConfigError(RerootError):
    """A file written by the administrator is wrong."""

    kind = Kind.CONFIG


class NotFoundError(RerootError):
    """A named thing does not exist."""

    kind = Kind.NOT_FOUND


class TrustError(RerootError):
    """A signature, digest, role or expiry does not hold."""

    kind = Kind.TRUST


class RefusedError(RerootError):
    """The request is understood and unsafe: nothing was touched."""

    kind = Kind.REFUSED


class NetworkError(RerootError):
    """A server cannot be reached or answered nonsense."""

    kind = Kind.NETWORK


class DiskError(RerootError):
    """A disk, partition or filesystem is missing, full, failing or not the one named."""

    kind = Kind.DISK


class CommandError(RerootError):
    """A program that reroot started failed; the sentence holds a command to replay."""

    kind = Kind.COMMAND


class CorruptError(RerootError):
    """Bytes are not what their format or digest says."""

    kind = Kind.CORRUPT


class BusyError(RerootError):
    """No ticket, slot or lock is free now; trying later may succeed."""

    kind = Kind.BUSY

    def __init__(self, sentence: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(sentence)
        self.retry_after_s = retry_after_s


def from_wire(kind: str, sentence: str) -> RerootError:
    """Return the error another process named by `kind`; an unknown kind becomes a plain RerootError."""
    named = next((found for found in RerootError.__subclasses__() if found.kind == kind), RerootError)
    return named(sentence)
