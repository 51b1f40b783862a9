"""Files follow the names of their owners: by id, by group and in ACLs."""

from __future__ import annotations

import struct

from imaging.entry import Entry, EntryType
from precious import acl
from precious.names import Names

ACCESS = b"system.posix_acl_access"
NOBODY = 0xFFFFFFFF


def acl_of(*rows: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *row) for row in rows)


def entry(path: bytes, uid: int, gid: int = 0, xattrs: tuple[tuple[bytes, bytes], ...] = (),
          kind: EntryType = EntryType.FILE) -> Entry:
    return Entry(path, kind, 0o644, uid, gid, 0, xattrs=xattrs)


OLD = {"passwd": b"root:x:0:0::/:/bin/sh\nada:x:1000:1000::/:/bin/sh\napp:x:990:990::/:/bin/false\n",
       "group": b"root:x:0:\nada:x:1000:\napp:x:990:\n"}
IMAGE = {"passwd": b"root:x:0:0::/:/bin/sh\nubuntu:x:1000:1000::/:/bin/sh\nother:x:990:990::/:/bin/false\n",
         "group": b"root:x:0:\nubuntu:x:1000:\nother:x:990:\n"}


def test_ids_of_an_acl_are_replaced_and_stay_sorted() -> None:
    value = acl_of((1, 6, NOBODY), (2, 6, 1000), (2, 4, 1500), (4, 0, NOBODY), (8, 6, 1000), (16, 6, NOBODY))
    moved = acl.renumbered(value, {1000: 2000}, {1000: 3000})
    assert moved == acl_of((1, 6, NOBODY), (2, 4, 1500), (2, 6, 2000), (4, 0, NOBODY), (8, 6, 3000), (16, 6, NOBODY))
    assert acl.named(value, acl.USER) == {1000, 1500} and acl.named(value, acl.GROUP) == {1000}


def test_what_is_no_acl_stays_as_it_is() -> None:
    for value in (b"", b"\x02\0\0\0\x01", struct.pack("<I", 3) + struct.pack("<HHI", 2, 6, 1000)):
        assert acl.renumbered(value, {1000: 2000}, {}) == value
        assert acl.named(value, acl.USER) == frozenset()


def test_an_acl_follows_the_name_that_it_gives_access_to() -> None:
    given = entry(b"home/secret", 0, xattrs=((ACCESS, acl_of((1, 6, NOBODY), (2, 6, 1000), (4, 0, NOBODY))),
                                             (b"user.x", acl_of((2, 6, 1000)))))
    names = Names.merge(OLD, IMAGE, [given])
    assert names.users[1000] not in {1000, 990, 0}
    owned = dict(names.owned(given).xattrs)
    assert acl.named(owned[ACCESS], acl.USER) == {names.users[1000]}
    assert owned[b"user.x"] == acl_of((2, 6, 1000)), "no ACL, whatever it looks like"


def test_whoever_owns_a_kept_folder_or_is_named_by_an_acl_comes_along() -> None:
    folder = entry(b"srv/drop", 990, 990, kind=EntryType.DIRECTORY)
    shared = entry(b"srv/x", 0, xattrs=((ACCESS, acl_of((1, 6, NOBODY), (2, 6, 990), (8, 6, 990))),))
    for kept in (folder, shared):
        names = Names.merge(OLD, IMAGE, [kept])
        assert b"app:x:" in names.files["passwd"] and b"app:x:" in names.files["group"]
    assert Names.merge(OLD, IMAGE, [folder]).owned(folder).uid != 990
    assert b"app" not in Names.merge(OLD, IMAGE, []).files["passwd"]
