"""Whose the kept files are in the new root (pure: account files and entries in, entries out).

The image may have given an id of the old host to another account. Kept files follow their owner's name: their owner,
their group and the ids in their ACLs are replaced by those that the names have now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace

from imaging.entry import Entry
from precious import accounts, acl


@dataclass(frozen=True)
class Names:
    """The merged account files, what there is to tell of them, and how the ids of kept files change with them."""

    files: Mapping[str, bytes]
    notes: tuple[str, ...]
    users: Mapping[int, int]
    groups: Mapping[int, int]
    conflict: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @classmethod
    def merge(cls, old: Mapping[str, bytes], image: Mapping[str, bytes], kept: Iterable[Entry],
              base: Mapping[str, bytes] | None = None, has: Callable[[str], bool] = lambda _path: True) -> Names:
        """Merge the host's account files `old` into those of the image; `kept` are entries as the host had them.

        Accounts that own one of them, or that an ACL names, are carried. Without passwd and group nothing changes.
        `base` are the old release's files and `has` tells of the new root, both as in `accounts.merge`.
        """
        if "passwd" not in old or "group" not in old:
            return cls({}, (), {}, {})
        users, groups = ids(old["passwd"]), ids(old["group"])
        uids, gids = set[int](), set[int]()
        for entry in kept:
            uids.add(entry.uid)
            gids.add(entry.gid)
            for name, value in entry.xattrs:
                if name in acl.NAMES:
                    uids |= acl.named(value, acl.USER)
                    gids |= acl.named(value, acl.GROUP)
        result = accounts.merge(old, image, {users[uid] for uid in uids & users.keys()},
                                {groups[gid] for gid in gids & groups.keys()}, base=base, has=has)
        strays = (*_strays("user", uids - users.keys(), ids(result.files["passwd"])),
                  *_strays("group", gids - groups.keys(), ids(result.files["group"])))
        return cls({name: result.files[name] for name in old}, (*result.notes, *strays),
                   _moves(users, result.files["passwd"]),
                   _moves(groups, result.files["group"]), result.conflict, result.dropped)

    def is_merged(self, entry: Entry) -> bool:
        """Tell whether an entry is one of the account files that were merged."""
        return entry.path.startswith(b"etc/") and entry.path[4:].decode("utf-8", "surrogateescape") in self.files

    def owned(self, entry: Entry) -> Entry:
        """Return the entry with the ids that its owner, its group and those in its ACLs have in the new root."""
        xattrs = tuple((name, acl.renumbered(value, self.users, self.groups) if name in acl.NAMES else value)
                       for name, value in entry.xattrs)
        return replace(entry, uid=self.users.get(entry.uid, entry.uid), gid=self.groups.get(entry.gid, entry.gid),
                       xattrs=xattrs)


def _strays(kind: str, nameless: Set[int], new: Mapping[int, str]) -> Iterator[str]:
    """Yield a sentence for each id that kept files have, that the host has no name for, and the new root has."""
    for number in sorted(nameless & new.keys()):
        yield (f"files that were kept have the {kind} id {number}, which had no name on the host: they belong to "
               f"{new[number]} now")


def ids(table: bytes) -> dict[int, str]:
    """Return id -> name of a passwd or group file; the first name of an id counts."""
    found: dict[int, str] = {}
    for line in table.decode("utf-8", "surrogateescape").splitlines():
        fields = line.split(":")
        if len(fields) > 3 and fields[2].isascii() and fields[2].isdigit():
            found.setdefault(int(fields[2]), fields[0])
    return found


def _moves(old: Mapping[int, str], new: bytes) -> dict[int, int]:
    numbers = {name: number for number, name in ids(new).items()}
    return {number: numbers[name] for number, name in old.items() if numbers.get(name, number) != number}
