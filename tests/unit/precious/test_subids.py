from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from precious.accounts import merge as merge_accounts
from precious.subids import END, Range, merge


def same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def test_all_lines_of_a_user_come_along() -> None:
    host = b"ada:100000:65536\nada:300000:10\ngone:1000000:5\n"
    merged, notes = merge(host, b"bob:200000:65536\n", same("ada"), "subuid")
    assert merged == b"bob:200000:65536\nada:100000:65536\nada:300000:10\n"
    assert notes == ()


def test_a_range_that_shares_ids_with_the_image_s_moves_and_is_told() -> None:
    host = b"ada:100000:65536\nada:200000:65536\n"
    merged, notes = merge(host, b"ubuntu:150000:65536\n", same("ada", "ubuntu"), "subgid")
    assert merged == b"ubuntu:150000:65536\nada:265536:65536\nada:331072:65536\n"
    assert len(notes) == 2 and all("/etc/subgid" in note and "ada" in note for note in notes)


def test_a_user_whom_the_image_gives_ranges_keeps_those() -> None:
    assert merge(b"ada:100000:65536\n", b"ada:500000:65536\n", same("ada"), "subuid") == (b"ada:500000:65536\n", ())


def test_an_id_in_place_of_a_name_counts_as_the_user() -> None:
    assert merge(b"1000:100000:65536\n", b"", {"1000": "ada"}, "subuid")[0] == b"ada:100000:65536\n"


def test_what_users_of_the_host_share_they_go_on_sharing() -> None:
    host = b"root:100000:65536\nlxd:100000:65536\n"
    assert merge(host, b"", same("root", "lxd"), "subuid") == (host, ())


def test_lines_that_are_no_ranges_are_left_out_and_told() -> None:
    merged, notes = merge(b"ada:1:x\n# a comment\nada:4294967290:100\nada:5\n", b"", same("ada"), "subuid")
    assert merged == b"" and len(notes) == 3


def test_without_a_free_place_the_range_is_left_out_and_told() -> None:
    merged, notes = merge(b"ada:100000:4000000000\n", b"bob:100000:4000000000\n", same("ada"), "subuid")
    assert merged == b"bob:100000:4000000000\n" and "left out" in notes[0]


def test_the_accounts_merge_brings_them_in() -> None:
    passwd = b"ada:x:1000:1000::/:/bin/sh\n"
    old = {"passwd": passwd, "subuid": b"ada:100000:65536\nada:300000:65536\n"}
    merged = merge_accounts(old, {"passwd": b"bob:x:1001:1001::/:/bin/sh\n", "subuid": b"bob:100000:65536\n"})
    assert merged.files["subuid"] == b"bob:100000:65536\nada:165536:65536\nada:300000:65536\n"
    assert any("subuid" in note for note in merged.notes)


ranges = st.lists(st.builds(Range, st.sampled_from(["ada", "bob", "eve"]), st.integers(0, 10**6),
                            st.integers(1, 10**6)), max_size=5)


def text(rows: list[Range]) -> bytes:
    return "".join(f"{row.name}:{row.start}:{row.count}\n" for row in rows).encode()


@given(ranges, ranges)
def test_no_carried_range_shares_ids_with_the_image_s_and_merging_twice_changes_nothing(
        host: list[Range], image: list[Range]) -> None:
    users = same("ada", "bob", "eve")
    merged, _ = merge(text(host), text(image), users, "subuid")
    rows = [line.split(":") for line in merged.decode().splitlines()]
    assert merged.startswith(text(image))
    for name, start, count in rows[len(image):]:
        assert int(start) + int(count) <= END
        assert not any(Range(name, int(start), int(count)).shares(theirs) for theirs in image)
    assert merge(text(host), merged, users, "subuid")[0] == merged
