"""What people do with a catalogue's keys: look, add, remove, rotate, renew, require several. I/O: through Catalogue.

Every change of keys is a new root, signed by the root keys before it; hosts follow by themselves. A change that is cut
short is made again in the same words. docs/trust.md says when to do which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path

from securesystemslib.signer import Key

# tuf.api.metadata is its public place, and does not say so to type checkers.
from tuf.api._payload import Signed

from imaging.catalogue import ROLES, Catalogue
from imaging.keyring import SHOWN
from imaging.keys import load_signer, make_key
from imaging.metadata import State
from plumbing.errors import NotFoundError, RefusedError, UsageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,31}")


@dataclass(frozen=True)
class Standing:
    """How one role stands: keys by id and the file each is in (None: not here), `expires_s` in wall seconds."""

    role: str
    version: int
    threshold: int
    keys: Mapping[str, Path | None]
    expires_s: float

    def can_sign(self) -> bool:
        """Whether enough keys are here."""
        return sum(path is not None for path in self.keys.values()) >= self.threshold


def standings(catalogue: Catalogue) -> list[Standing]:
    """Return how every role stands; raises TrustError when the catalogue is not what its keys signed."""
    state, found = catalogue.state(), []
    for role in ROLES:
        signed, wanted = _signed(state)[role], state.root.signed.roles[role]
        files = catalogue.ring.files(role)
        found.append(Standing(role, signed.version, wanted.threshold,
                              {keyid: files.get(keyid) for keyid in wanted.keyids},
                              signed.expires.replace(tzinfo=UTC).timestamp()))
    return found


def add_key(catalogue: Catalogue, role: str, name: str, folder: Path, now: float | None = None) -> Path:
    """Make the key ROLE.NAME.pem in `folder` and let it sign for `role` beside those that do; return the file."""
    if not _NAME.fullmatch(name) or name == "next":
        raise UsageError(f"{name!r} can't name a key; use up to 32 letters, digits and -, and not next")
    keys, threshold = _keys(catalogue, role)
    path = folder / f"{role}.{name}.pem"
    key = load_signer(path) if path.exists() else make_key(path)  # there already when an earlier try was cut short
    catalogue.set_keys(role, [*keys.values(), key.public_key], threshold, now)
    return path


def remove_key(catalogue: Catalogue, role: str, keyid: str, now: float | None = None) -> str:
    """Believe a key of `role`, named by the beginning of its id, no more; return its whole id."""
    keys, threshold = _keys(catalogue, role)
    named = [one for one in keys if one.startswith(keyid.lower())]
    if len(named) != 1 or len(keyid) < 4:
        raise NotFoundError(f"{keyid!r} is not the beginning of one key's id of the role {role}, which has "
                            f"{', '.join(one[:SHOWN] for one in keys)}")
    if len(keys) <= threshold:
        raise RefusedError(f"the role {role} needs {threshold} of its {len(keys)} key(s), so none can go; add another "
                           "with `reroot trust add-key` first, or lower `reroot trust threshold`"
                           + ("; to replace the only one, `reroot trust rotate`" if len(keys) == 1 else ""))
    catalogue.set_keys(role, [key for one, key in keys.items() if one != named[0]], threshold, now)
    return named[0]


def set_threshold(catalogue: Catalogue, role: str, threshold: int, now: float | None = None) -> None:
    """Require `threshold` signatures of different keys for `role` from now on."""
    keys, _ = _keys(catalogue, role)
    if not 1 <= threshold <= len(keys):
        raise UsageError(f"the role {role} has {len(keys)} key(s), so its threshold is 1 to {len(keys)}; `reroot trust "
                         "add-key` adds keys")
    catalogue.set_keys(role, list(keys.values()), threshold, now)


def rotate(catalogue: Catalogue, role: str, now: float | None = None) -> Path:
    """Replace the only key of `role` by a new one and return its file; raises RefusedError when there are several."""
    keys, _ = _keys(catalogue, role)
    if len(keys) > 1:
        raise RefusedError(f"the role {role} has {len(keys)} keys ({', '.join(one[:SHOWN] for one in keys)}); replace "
                           "one of them with `reroot trust add-key` and `reroot trust remove-key`, so that the "
                           "threshold stays")
    path = catalogue.ring.next_key(role)
    catalogue.rotate(role, now)
    return path.with_name(f"{role}.pem")


def _keys(catalogue: Catalogue, role: str) -> tuple[dict[str, Key], int]:
    if role not in ROLES:
        raise UsageError(f"{role!r} is not a role; choose one of {', '.join(ROLES)}")
    catalogue.ring.check()
    root = catalogue.state(changing={role}).root.signed
    if catalogue.ring.usable("root", root.roles["root"]) is None:  # before a new key is made that nothing came of
        raise catalogue.ring.missing("root", root.roles["root"])
    return {keyid: root.keys[keyid] for keyid in root.roles[role].keyids}, root.roles[role].threshold


def _signed(state: State) -> Mapping[str, Signed]:
    return {"root": state.root.signed, "targets": state.targets.signed, "snapshot": state.snapshot.signed,
            "timestamp": state.timestamp.signed}
