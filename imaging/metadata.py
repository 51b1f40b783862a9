"""A catalogue's metadata as its publisher reads it: bytes in, the four roles or an error out. Pure.

A publisher signs anew what it finds on its own disk, so it must not believe that disk: whoever can write there and has
no key could have his words signed. Everything is checked as a host checks it, in TUF's order: the roots, each by
the keys of the one before and by its own; timestamp, snapshot and targets by the newest root's keys, each exactly what
the one before names. Expiry alone is not looked at: to renew what has expired is the publisher's work.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

# tuf.api.metadata is their public place, and does not say so to type checkers.
from tuf.api._payload import MetaFile, Root, Snapshot, Targets, Timestamp
from tuf.api.exceptions import LengthOrHashMismatchError, RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata
from tuf.api.serialization import DeserializationError

from plumbing.errors import CorruptError, TrustError

_Role = TypeVar("_Role", Root, Targets, Snapshot, Timestamp)


@dataclass
class State:
    """The four roles as published last; `unfinished` are those that only the keys of an earlier root signed."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]
    unfinished: frozenset[str] = frozenset()


def roots(files: Sequence[bytes]) -> list[Metadata[Root]]:
    """Read 1.root.json, 2.root.json …; raises TrustError for the first that the one before or it itself disowns."""
    chain: list[Metadata[Root]] = []
    for version, data in enumerate(files, 1):
        name = f"{version}.root.json"
        found = _parse(Root, data, name)
        for keeper in (*chain[-1:], found):
            if not _signed(keeper, found):
                raise _forged(name, "is not signed by the root keys", "restore it from a backup")
        if found.signed.version != version:
            raise _forged(name, f"says that it is version {found.signed.version}", "restore it from a backup")
        chain.append(found)
    return chain


def load(chain: Sequence[Metadata[Root]], read: Callable[[str], bytes], changing: Collection[str] = ()) -> State:
    """Read and check what `chain`, as `roots` returns it, vouches for; `read` returns a file by its name.

    A role of `changing` is in the middle of a change of keys, and may still be signed by those it had before. Raises
    TrustError for what nobody with a key signed, CorruptError for what cannot be read at all.
    """
    newest = chain[-1]
    unfinished: set[str] = set()

    def take(kind: type[_Role], name: str, named: MetaFile | None) -> Metadata[_Role]:
        data = read(name)
        found = _parse(kind, data, name)
        if not _signed(newest, found):
            earlier = _before(chain, kind.type) if kind.type in changing else None
            if earlier is None or not _signed(earlier, found):
                raise _forged(name, f"is not signed by the keys of the role {kind.type}", "restore it from a backup, "
                              f"or, when a change of the {kind.type} keys was cut short, make that change again")
            unfinished.add(kind.type)
        if named is not None:
            _must_be(name, data, found.signed.version, named)
        return found

    timestamp = take(Timestamp, "timestamp.json", None)
    named = timestamp.signed.snapshot_meta
    snapshot = take(Snapshot, f"{named.version}.snapshot.json", named)
    listed = snapshot.signed.meta.get("targets.json")
    if listed is None:
        raise _forged(f"{named.version}.snapshot.json", "names no targets", "restore it from a backup")
    targets = take(Targets, f"{listed.version}.targets.json", listed)
    return State(newest, targets, snapshot, timestamp, frozenset(unfinished))


def _parse(kind: type[_Role], data: bytes, name: str) -> Metadata[_Role]:
    try:
        metadata = Metadata[_Role].from_bytes(data)
    except (DeserializationError, RepositoryError) as error:
        raise CorruptError(f"{name} of the catalogue is damaged; restore it from a backup") from error
    if not isinstance(metadata.signed, kind):
        raise CorruptError(f"{name} of the catalogue is of another role; restore it from a backup")
    return metadata


def _signed(keeper: Metadata[Root], found: Metadata[_Role]) -> bool:
    try:
        keeper.signed.verify_delegate(found.signed.type, found.signed_bytes, found.signatures)
    except UnsignedMetadataError:
        return False
    return True


def _before(chain: Sequence[Metadata[Root]], role: str) -> Metadata[Root] | None:
    """Return the last root under which `role` had other keys than now."""
    now = chain[-1].signed.roles[role]
    return next((root for root in reversed(chain) if root.signed.roles[role] != now), None)


def _must_be(name: str, data: bytes, version: int, named: MetaFile) -> None:
    try:
        named.verify_length_and_hashes(data)
        if version != named.version:
            raise LengthOrHashMismatchError(f"version {version}")
    except LengthOrHashMismatchError as error:
        raise _forged(name, "is not the one that the signed metadata names", "restore it from a backup") from error


def _forged(name: str, what: str, remedy: str) -> TrustError:
    return TrustError(f"{name} of the catalogue {what}: somebody without a key changed it; nothing was signed; "
                      f"{remedy}")
