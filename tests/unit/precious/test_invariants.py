"""Whatever accounts, trees and old release: whose the kept files are then, and that no id means two."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from old_and_new import index_of, rules, write
from test_names import acl_of

from precious import acl, keep
from precious.base import Base
from precious.mergers.sides import Link, Node
from precious.names import ids
from precious.place import PutBackReport
from precious.putback import put_back

pytestmark = pytest.mark.root

NUMBERS = st.sampled_from([0, 33, 101, 990, 996, 1000, 1001, 1002])
ACCOUNTS = st.dictionaries(st.sampled_from(["ada", "bob", "app", "sshd", "docker"]), NUMBERS.filter(bool),
                           max_size=5).filter(lambda rows: len({*rows.values()}) == len(rows))
FILES = st.dictionaries(st.sampled_from(["srv/a", "srv/b/c", "srv/b/d", "srv/e"]),
                        st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=4)
"""Path -> owner, group, and a user whom an ACL names."""
POLICY = rules('keep = ["/srv/**"]', 'keep = ["/etc/passwd", "/etc/group"]\nwhen = "merge"')


def tables(rows: dict[str, int]) -> dict[str, bytes]:
    rows = {"root": 0, **rows}
    return {"etc/passwd": "".join(f"{name}:x:{number}:{number}::/:/bin/sh\n" for name, number in rows.items()).encode(),
            "etc/group": "".join(f"{name}:x:{number}:\n" for name, number in rows.items()).encode()}


def upgraded(folder: Path, host: dict[str, int], image: dict[str, int], base: dict[str, int] | None,
             files: dict[str, tuple[int, int, int]]) -> PutBackReport:
    old, new = folder / "old", folder / "new"
    for root, rows in ((old, host), (new, image)):
        for path, data in tables(rows).items():
            write(root, path, data)
    (old / "srv").mkdir()
    for path, (uid, gid, named) in files.items():
        os.chown(write(old, path, path.encode()), uid, gid)
        os.setxattr(old / path, "system.posix_acl_access", acl_of(
            (1, 6, 0xFFFFFFFF), (2, 4, named), (4, 0, 0xFFFFFFFF), (16, 6, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)))
    listed = index_of(new)
    kept = keep.collect(old, POLICY, folder / "kept")
    if base is not None:
        nodes: dict[bytes, Node] = {path.encode(): data for path, data in tables(base).items()}
        keep.write_base(kept.folder, Base("debian/12/amd64", frozenset(), nodes))
    report = put_back(kept.folder, new, POLICY, listed)
    assert put_back(kept.folder, new, POLICY, listed) == report, "done again it ends and tells the same"
    return report


@settings(max_examples=60)
@given(ACCOUNTS, ACCOUNTS, st.none() | ACCOUNTS, FILES)
def test_kept_files_belong_to_the_same_names_and_no_id_means_two(
        host: dict[str, int], image: dict[str, int], base: dict[str, int] | None,
        files: dict[str, tuple[int, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = upgraded(Path(folder), host, image, base, files)
        old, new = Path(folder) / "old", Path(folder) / "new"
        names = {table: (ids((old / "etc" / table).read_bytes()), ids((new / "etc" / table).read_bytes()))
                 for table in ("passwd", "group")}
        for table in ("passwd", "group"):
            lines = [line.split(":") for line in (new / "etc" / table).read_text().splitlines()]
            assert len({line[2] for line in lines}) == len({line[0] for line in lines}) == len(lines)
            assert {line[0] for line in lines} >= image.keys()
        for path, (uid, gid, named) in files.items():
            info = (new / path).stat()
            value = os.getxattr(new / path, "system.posix_acl_access")
            (reader,) = acl.named(value, acl.USER)
            for table, was, now in (("passwd", uid, info.st_uid), ("group", gid, info.st_gid),
                                    ("passwd", named, reader)):
                before, after = names[table][0].get(was), names[table][1].get(now)
                told = any(f" id {was}, which had no name" in note for note in report.notes)
                assert before == after or (before is None and was == now and told), (path, table)
            assert (new / path).read_bytes() == path.encode() and path in report.put_back
        rows = [line.split(":") for line in (new / "etc/passwd").read_text().splitlines()]
        for name in {row[0] for row in rows} & (host.keys() - image.keys()):
            (primary,) = (int(row[3]) for row in rows if row[0] == name)
            assert names["group"][1].get(primary) == name, "each has a group of its own on these hosts"
        for name in host.keys() - image.keys():
            assert name in names["passwd"][1].values() or (base is not None and name in base) or any(
                f" user {name} " in row for row in report.dropped), "who does not come is told"


TEXTS = st.sampled_from([b"/usr/lib/systemd/system/a.service", b"/usr/lib/systemd/system/b.service", b"/dev/null"])
LINKS = st.dictionaries(st.sampled_from(["a.service", "b.service", "c.service"]), TEXTS)
UNITS = rules('keep = ["/etc/systemd/system/*"]\nmerge = "units"\ntype = ["link"]')


@settings(max_examples=60)
@given(LINKS, LINKS, LINKS)
def test_what_the_host_changed_since_the_old_release_decides_and_what_it_did_not_is_the_image_s(
        host: dict[str, bytes], image: dict[str, bytes], base: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        old, new, place = Path(folder) / "old", Path(folder) / "new", "etc/systemd/system"
        for root, rows in ((old, host), (new, image)):
            (root / place).mkdir(parents=True)
            for name, text in rows.items():
                (root / place / name).symlink_to(os.fsdecode(text))
        for name in ("a.service", "b.service"):
            write(new, f"usr/lib/systemd/system/{name}")
        listed = index_of(new)
        kept = keep.collect(old, UNITS, Path(folder) / "kept")
        nodes: dict[bytes, Node] = {f"{place}/{name}".encode(): Link(text) for name, text in base.items()}
        keep.write_base(kept.folder, Base("r", frozenset(), nodes))
        report = put_back(kept.folder, new, UNITS, listed)
        assert put_back(kept.folder, new, UNITS, listed) == report
        said = [*report.conflict, *report.dropped, *report.notes]
        for name in {*host, *image, *base}:
            path = new / place / name
            now = os.fsencode(path.readlink()) if path.is_symlink() else None
            ours, theirs, was = host.get(name), image.get(name), base.get(name)
            assert now == (theirs if ours == was else ours), name
            both = theirs is not None and ours not in {was, theirs}
            assert not both or any(f"/{place}/{name}:" in row for row in said), "what gave way is told"
