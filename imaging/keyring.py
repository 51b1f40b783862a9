"""Where a site's signing keys are: its own folder, and others such as a stick that is plugged in. I/O: reads, renames.

A key of ROLE is the file ROLE.pem or ROLE.NAME.pem in any of the folders; what it is called says nothing about whether
the catalogue believes it. ROLE.next.pem waits to replace ROLE.pem beside it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from securesystemslib.signer import CryptoSigner

# tuf.api.metadata is their public place, and does not say so to type checkers.
from tuf.api._payload import Role, Root

from imaging.keys import load_signer
from plumbing.durable import sync_folder
from plumbing.errors import ConfigError

SHOWN = 12
"""Digits of a key's id that are shown; enough to tell a site's keys apart."""
OFFLINE = ("root", "targets")
"""The roles whose keys belong on a medium that is taken out."""


class Keyring:
    """The key files in `folders`, the site's own first. A folder that is not there is an error: a stick is missing."""

    def __init__(self, own: Path, others: Sequence[Path] = ()) -> None:
        self.folders = (own, *others)

    def check(self) -> None:
        """Raise ConfigError when a folder that was named is not there."""
        for folder in self.folders[1:]:
            if not folder.is_dir():
                raise ConfigError(f"there is no folder {folder}; plug in the medium with the keys, mount it, and name "
                                  "its folder with --keys")

    def files(self, role: str) -> dict[str, Path]:
        """Return the key files of a role by key id; of two files with one key the first."""
        found: dict[str, Path] = {}
        for path in self._paths(role):
            found.setdefault(load_signer(path).public_key.keyid, path)
        return found

    def signers(self, role: str) -> list[CryptoSigner]:
        """Return all keys of a role that are here, believed or not."""
        return [load_signer(path) for path in self._paths(role)]

    def usable(self, role: str, wanted: Role) -> list[CryptoSigner] | None:
        """Return those that the catalogue believes, or None when fewer than its threshold are here."""
        found = {signer.public_key.keyid: signer for signer in self.signers(role)}
        signers = [found[keyid] for keyid in wanted.keyids if keyid in found]
        return signers if len(signers) >= wanted.threshold else None

    def missing(self, role: str, wanted: Role) -> ConfigError:
        """Say which keys of a role are needed, which of them are here, and where the others were looked for."""
        files = self.files(role)
        here = [f"{keyid[:SHOWN]} in {files[keyid]}" for keyid in wanted.keyids if keyid in files]
        away = [keyid[:SHOWN] for keyid in wanted.keyids if keyid not in files]
        places = " or ".join(map(str, self.folders))
        return ConfigError(
            f"{wanted.threshold} key(s) of the role {role} are needed in {places}: here is "
            f"{' and '.join(here) or 'none'}, not here {', '.join(away)}; bring the file {role}.pem or {role}.NAME.pem "
            "with it, name its folder with --keys, and try again (`reroot trust show` lists all keys)")

    def next_key(self, role: str) -> Path:
        """Return where the new key of a role waits until everything is signed with it: beside the one it replaces."""
        for name in (f"{role}.next.pem", f"{role}.pem"):
            for folder in self.folders:
                if os.access(folder / name, os.F_OK):
                    return folder / f"{role}.next.pem"
        return (self.folders[-1] if role in OFFLINE else self.folders[0]) / f"{role}.next.pem"

    def replace(self, role: str) -> None:
        """Put the new key of a role in the place of the old, which is destroyed."""
        path = self.next_key(role)
        path.replace(path.with_name(f"{role}.pem"))
        sync_folder(path.parent)

    def rotating(self, root: Root) -> list[str]:
        """Return the roles whose rotation was cut short after `root` named the new key."""
        return [role for role in root.roles if os.access(path := self.next_key(role), os.R_OK)
                and load_signer(path).public_key.keyid in root.roles[role].keyids]

    def _paths(self, role: str) -> list[Path]:
        return [path for folder in self.folders
                for path in (folder / f"{role}.pem", *sorted(folder.glob(f"{role}.*.pem"))) if path.exists()]
