"""The catalogue a site publishes: a TUF repository, written. I/O: reads keys, writes metadata and targets.

What hosts see changes by one rename. Publishing writes, in this order and each durably: the target's bytes,
`N.targets.json`, `N.snapshot.json`, and last `timestamp.json`, which alone says what the newest snapshot is; a crash
or a full disk before that leaves the old catalogue, and the next attempt writes over what nothing names. What
the roles are and who holds which key: docs/protocols/trust.md. TUF 1.0.33, consistent snapshots.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from securesystemslib.signer import Key

# tuf.api.metadata is their public place, and does not say so to type checkers.
from tuf.api._payload import MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.exceptions import LengthOrHashMismatchError, UnsignedMetadataError
from tuf.api.metadata import Metadata
from tuf.api.serialization.json import JSONSerializer

from imaging import metadata
from imaging.keyring import Keyring
from imaging.keys import load_signer, make_key
from imaging.metadata import State
from plumbing import clock
from plumbing.durable import make_folder, told, write_file
from plumbing.errors import ConfigError, CorruptError, NotFoundError, RefusedError, TrustError, UsageError

ROLES = (Root.type, Targets.type, Snapshot.type, Timestamp.type)

DAY = 86_400
LIFETIME_S = {Root.type: 5 * 365 * DAY, Targets.type: 365 * DAY, Snapshot.type: 30 * DAY, Timestamp.type: 7 * DAY}
"""How long each role's signature holds, in seconds. The timestamp's is how long somebody between a host and the
server can hold back what is new; the server may be switched off for as long before hosts refuse its catalogue."""
RENEW_S = {Targets.type: 305 * DAY, Snapshot.type: 15 * DAY, Timestamp.type: 6 * DAY}
"""`refresh` signs a role anew when it would expire within this many seconds."""
KEPT_VERSIONS = 16
"""How many versions of a file stay for hosts that are just reading the one before."""

FIRST_ROOT = "first-root.sha256"
"""In the keys folder: which 1.root.json is this site's, as sha256sum writes it."""

_TARGET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}(?:/[A-Za-z0-9][A-Za-z0-9._+-]{0,127})*")
_VERSIONED = re.compile(r"([1-9][0-9]{0,9})\.([a-z]+)\.json")

_Role = TypeVar("_Role", Root, Targets, Snapshot, Timestamp)


@dataclass(frozen=True)
class Listed:
    """One target: its length in bytes and its digest as `sha256:HEX`."""

    path: str
    length: int
    digest: str


class Catalogue:
    """The TUF repository in `folder` (metadata/ and targets/), signed with `keys`/ROLE.pem.

    A role with several keys has them as ROLE.pem, ROLE.SOMETHING.pem and so on, there or in the folders `also`. A key
    that is in none of them is missed only by what it has to sign: root by `set_keys` and `rotate`, targets by
    `publish`. Times are wall seconds; `now` is the clock's unless given. `lifetimes_s` is how long new signatures hold.
    """

    def __init__(self, folder: Path, keys: Path, also: Sequence[Path] = (),
                 lifetimes_s: Mapping[str, int] = LIFETIME_S) -> None:
        self.folder = folder
        self.keys = keys
        self.ring = Keyring(keys, also)
        self._lifetimes_s = lifetimes_s
        self._metadata = folder / "metadata"
        self._targets = folder / "targets"

    # -- reading ------------------------------------------------------------------------------------------------

    def root_json(self) -> bytes:
        """Return the newest root metadata, checked: what a host is given to trust this site."""
        metadata.roots(files := self._roots())
        return files[-1]

    def state(self, changing: Collection[str] = ()) -> State:
        """Return the four roles as published last, checked as a host would but for expiry; see metadata.load."""
        return self._load(changing)

    def listed(self) -> dict[str, Listed]:
        """Return every published target by path."""
        targets = self._load().targets.signed.targets
        return {path: Listed(path, found.length, f"sha256:{found.hashes['sha256']}")
                for path, found in sorted(targets.items())}

    def read(self, target_path: str) -> bytes:
        """Return a published target, checked; raises NotFoundError."""
        found = self._load().targets.signed.targets.get(target_path)
        if found is None:
            command = "recovery" if target_path.startswith("recovery/") else "image"
            raise NotFoundError(f"{target_path!r} is not in the catalogue {self.folder}; `reroot {command} list` shows "
                                "what is")
        path = self._targets / found.get_prefixed_paths()[0]
        try:
            data = path.read_bytes()
            found.verify_length_and_hashes(data)
        except (OSError, LengthOrHashMismatchError) as error:
            raise CorruptError(f"{path} is missing or damaged; {_remedy(target_path)}") from error
        return data

    # -- writing ------------------------------------------------------------------------------------------------

    def create(self, now: float | None = None) -> None:
        """Make the repository, and the keys that are missing; raises RefusedError when there is one already."""
        at = clock.wall() if now is None else now
        with self._disk():
            make_folder(self._metadata)
            make_folder(self._targets)
            make_folder(self.keys, 0o700)
        with self._locked():
            if (self._metadata / "1.root.json").exists():
                raise RefusedError(f"{self.folder} is a catalogue already; nothing was changed")
            root = Root(version=1, expires=self._expiry(Root.type, at), consistent_snapshot=True)
            for role in ROLES:
                path = self.keys / f"{role}.pem"
                key = load_signer(path) if path.exists() else make_key(path)
                root.add_key(key.public_key, role)
            state = State(Metadata(root), Metadata(Targets(version=1)), Metadata(Snapshot(version=1)),
                           Metadata(Timestamp(version=1)))
            with self._disk():
                first = self._write_root(state.root, state.root)
                line = f"{hashlib.sha256(first).hexdigest()}  1.root.json\n"
                write_file(self.keys / FIRST_ROOT, line.encode(), 0o600)
                self._commit(state, at, first=True)

    def publish(self, target_path: str, data: bytes, now: float | None = None) -> None:
        """Make `target_path` mean `data`; publishing the same again changes nothing."""
        self.publish_all({target_path: data}, now)

    def publish_all(self, targets: Mapping[str, bytes], now: float | None = None) -> None:
        """Publish several targets at once: a host sees all of them or none."""
        for path in targets:
            if not _TARGET.fullmatch(path):
                raise UsageError(f"{path!r} cannot be a catalogue path; use letters, digits and . _ + - between "
                                 "slashes")
        with self._locked():
            state = self._load()
            fresh = {path: data for path, data in targets.items() if not self._holds(state, path, data)}
            with self._disk():
                for path, data in fresh.items():
                    self._place(state, path, data)
                if fresh:
                    self._commit(state, clock.wall() if now is None else now, targets=True)

    def withdraw(self, *target_paths: str, now: float | None = None) -> None:
        """Take targets out of the catalogue, all or none; raises NotFoundError. Their bytes stay for who just reads."""
        with self._locked():
            state = self._load()
            for path in target_paths:
                if state.targets.signed.targets.pop(path, None) is None:
                    raise NotFoundError(f"{path!r} is not in the catalogue {self.folder}; nothing was changed")
            with self._disk():
                self._commit(state, clock.wall() if now is None else now, targets=True)

    def refresh(self, now: float | None = None) -> tuple[str, ...]:
        """Sign anew what is about to expire, and finish a rotation that was cut short; return the roles signed.

        Needs the snapshot and timestamp keys, and the targets key once a year (without it, targets is left alone until
        it has expired).
        """
        at = clock.wall() if now is None else now
        with self._locked():
            state = self._load()
            targets = self._is_due(state, state.targets, at)
            if targets and not state.targets.signed.is_expired(_when(at)):
                targets = self.ring.usable(Targets.type, state.root.signed.roles[Targets.type]) is not None
            snapshot = targets or self._is_due(state, state.snapshot, at)
            due = snapshot or self._is_due(state, state.timestamp, at)
            with self._disk():
                if due:
                    self._commit(state, at, targets=targets, snapshot=snapshot)
                for role in self.ring.rotating(state.root.signed):
                    self.ring.replace(role)
        return tuple(role for role, signed in zip(ROLES[1:], (targets, snapshot, due), strict=True) if signed)

    def renew(self, role: str, now: float | None = None) -> None:
        """Sign `role` anew whether it is due or not, and what names it; for root, publish the next version of it."""
        _check_role(role)
        if role == Root.type:
            roles = (root := self.state().root.signed).roles[role]
            self.set_keys(role, [root.keys[keyid] for keyid in roles.keyids], roles.threshold, now)
            return
        with self._locked():
            state = self._load()
            with self._disk():
                self._commit(state, clock.wall() if now is None else now, targets=role == Targets.type,
                             snapshot=role == Snapshot.type)

    def rotate(self, role: str, now: float | None = None) -> None:
        """Replace the keys of `role` by one new key and destroy keys/ROLE.pem.

        Hosts follow by themselves: the new root is signed by the old root key and the new. A crash anywhere leaves a
        catalogue that `rotate` or `refresh` completes.
        """
        _check_role(role)
        after = self.ring.next_key(role)
        key = load_signer(after) if after.exists() else make_key(after)
        self.set_keys(role, [key.public_key], 1, now)
        with self._disk():
            self.ring.replace(role)

    def set_keys(self, role: str, keys: Sequence[Key], threshold: int, now: float | None = None) -> None:
        """Publish a new root that says whose signatures, and how many, make `role` valid; then sign anew.

        The private halves have to be in the keys folder, `threshold` of them at least. What was signed by the keys
        before is believed here, so a call that was cut short is simply made again.
        """
        _check_role(role)
        if not 1 <= threshold <= len({key.keyid for key in keys}):
            raise UsageError(f"{threshold} signatures cannot come from {len(keys)} keys; choose a lower threshold")
        at = clock.wall() if now is None else now
        with self._locked():
            state = self._load(changing={role})
            root = Metadata(deepcopy(state.root.signed))
            for keyid in list(root.signed.roles[role].keyids):
                root.signed.revoke_key(keyid, role)
            for key in keys:
                root.signed.add_key(key, role)
            root.signed.roles[role].threshold = threshold
            root.signed.version += 1
            root.signed.expires = self._expiry(Root.type, at)
            state.root, before = root, state.root
            needed = {Root.type: (), Timestamp.type: ROLES[3:], Snapshot.type: ROLES[2:], Targets.type: ROLES[1:]}[role]
            for other in needed:  # or the new root would be there, and nothing that it believes
                if self.ring.usable(other, root.signed.roles[other]) is None:
                    raise self.ring.missing(other, root.signed.roles[other])
            with self._disk():
                self._write_root(before, root)
                if role != Root.type:
                    self._commit(state, at, targets=role == Targets.type, snapshot=role != Timestamp.type)

    # -- steps of writing -----------------------------------------------------------------------------------------

    def _holds(self, state: State, path: str, data: bytes) -> bool:
        found = state.targets.signed.targets.get(path)
        if found is None or found != TargetFile.from_data(path, data, ["sha256"]):
            return False
        place = self._targets / found.get_prefixed_paths()[0]
        return place.is_file() and place.read_bytes() == data

    def _place(self, state: State, path: str, data: bytes) -> None:
        target = TargetFile.from_data(path, data, ["sha256"])
        place = self._targets / target.get_prefixed_paths()[0]
        make_folder(place.parent)
        write_file(place, data)
        state.targets.signed.targets[path] = target

    def _commit(self, state: State, now: float, *, targets: bool = False, snapshot: bool = False,
                first: bool = False) -> None:
        """Sign and write what changed and all that names it; the last rename makes it the catalogue."""
        if targets or first:
            data = self._sign(state, state.targets, now, first)
            self._write(f"{state.targets.signed.version}.targets.json", data)
            state.snapshot.signed.meta["targets.json"] = _meta(state.targets.signed.version, data)
        if targets or snapshot or first:
            data = self._sign(state, state.snapshot, now, first)
            self._write(f"{state.snapshot.signed.version}.snapshot.json", data)
            state.timestamp.signed.snapshot_meta = _meta(state.snapshot.signed.version, data)
        self._write("timestamp.json", self._sign(state, state.timestamp, now, first))
        self._prune(state)

    def _sign(self, state: State, content: Metadata[_Role], now: float, first: bool) -> bytes:
        role = content.signed.type
        content.signed.version += 0 if first else 1
        content.signed.expires = self._expiry(role, now)
        wanted = state.root.signed.roles[role]
        if (signers := self.ring.usable(role, wanted)) is None:
            raise self.ring.missing(role, wanted)
        content.signatures.clear()
        for signer in signers:
            content.sign(signer, append=True)
        return content.to_bytes(_SERIALIZER)

    def _write_root(self, before: Metadata[Root], root: Metadata[Root]) -> bytes:
        """Sign a root by the keys it names and by those of the root before it, write it and return it."""
        signers = {signer.public_key.keyid: signer for signer in self.ring.signers(Root.type)}
        root.signatures.clear()
        for signer in signers.values():
            named = {*before.signed.roles[Root.type].keyids, *root.signed.roles[Root.type].keyids}
            if signer.public_key.keyid in named:
                root.sign(signer, append=True)
        data = root.to_bytes(_SERIALIZER)
        for keeper in (before.signed, root.signed):
            try:
                keeper.verify_delegate(Root.type, root.signed_bytes, root.signatures)
            except UnsignedMetadataError as error:
                raise self.ring.missing(Root.type, keeper.roles[Root.type]) from error
        self._write(f"{root.signed.version}.root.json", data)
        return data

    def _write(self, name: str, data: bytes) -> None:
        write_file(self._metadata / name, data)

    def _prune(self, state: State) -> None:
        newest = {Targets.type: state.targets.signed.version, Snapshot.type: state.snapshot.signed.version}
        for path in list(self._metadata.iterdir()):
            match = _VERSIONED.fullmatch(path.name)
            old = match and match[2] in newest and int(match[1]) <= newest[match[2]] - KEPT_VERSIONS
            if old or path.name.startswith("."):  # what a publisher that was killed left; only one is alive, this one
                path.unlink(missing_ok=True)

    # -- steps of reading -----------------------------------------------------------------------------------------

    def _expiry(self, role: str, now: float) -> datetime:
        return (_when(now) + timedelta(seconds=self._lifetimes_s[role])).replace(microsecond=0)

    @staticmethod
    def _is_due(state: State, found: Metadata[_Role], now: float) -> bool:
        role = found.signed.type
        return role in state.unfinished or found.signed.is_expired(_when(now + RENEW_S[role]))

    def _roots(self) -> list[bytes]:
        versions = [int(match[1]) for path in self._metadata.glob("*.root.json")
                    if (match := _VERSIONED.fullmatch(path.name))]
        if not versions:
            raise NotFoundError(f"{self.folder} is not a catalogue; make the site with `reroot init`")
        files = [self._read(f"{version}.root.json") for version in range(1, max(versions) + 1)]
        self._check_first(files[0])
        return files

    def _check_first(self, root: bytes) -> None:
        """Raise TrustError unless `root` is the one that `create` made: all the roots could have been replaced."""
        path = self.keys / FIRST_ROOT
        try:
            words = path.read_text("ascii").split()
        except PermissionError:  # who may not look into the keys folder has no key to be misled with
            return
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read; bring it back from a backup, or write it with sha256sum of "
                              f"{self._metadata}/1.root.json when that is surely yours") from error
        if words[:1] != [hashlib.sha256(root).hexdigest()]:
            raise TrustError(f"1.root.json of the catalogue is not the one {path} names: somebody put another site's "
                             "in its place; nothing was signed; restore it from a backup")

    def _load(self, changing: Collection[str] = ()) -> State:
        """Return what was published last, checked as a host would: nothing else may ever be signed anew."""
        chain = metadata.roots(self._roots())
        return metadata.load(chain, self._read, {*changing, *self.ring.rotating(chain[-1].signed)})

    def _read(self, name: str) -> bytes:
        try:
            return (self._metadata / name).read_bytes()
        except OSError as error:
            raise CorruptError(f"{self._metadata / name} cannot be read ({error.strerror}); restore it from a "
                               "backup") from error

    # -- the disk -------------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not self.folder.is_dir():
            raise NotFoundError(f"{self.folder} is not a catalogue; make the site with `reroot init`")
        with self._disk():
            lock = (self.folder / ".lock").open("ab")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _disk(self) -> AbstractContextManager[None]:
        return told(f"the catalogue {self.folder}", "what was published before still is")


_SERIALIZER = JSONSerializer(compact=True)


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise UsageError(f"{role!r} is not a role; choose one of {', '.join(ROLES)}")


def _remedy(target_path: str) -> str:
    """Say how a target of this kind is put back."""
    kind, *words = target_path.removesuffix(".json").split("/")
    if kind == "releases":
        return f"build {'/'.join(words)} again with `reroot image build`, or restore the file from a backup"
    if kind == "recovery":
        return f"`reroot recovery build {'/'.join(words)}` publishes it again, or restore the file from a backup"
    if kind == "deltas":
        return "make it again with `reroot image delta`, or restore the file from a backup"
    return "restore it from a backup"


def _when(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _meta(version: int, data: bytes) -> MetaFile:
    return MetaFile.from_data(version, data, ["sha256"])
