from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from precious.accounts import FILES, merge

OLD = {
    "passwd": b"root:x:0:0:root:/root:/bin/bash\nsshd:x:105:65534::/run/sshd:/usr/sbin/nologin\n"
              b"ada:x:1000:1000:Ada:/home/ada:/bin/bash\nbob:x:1001:1001::/home/bob:/bin/sh\n_old:x:110:110::/:/bin/false\n",
    "group": b"root:x:0:\nsudo:x:27:ada,gone\nssl-cert:x:106:_old\nada:x:1000:\nbob:x:1001:ada\n_old:x:110:\n",
    "shadow": b"root:$y$secret:1:0:99999:7:::\nsshd:!:1::::::\nada:$y$ada:1:0:99999:7:::\nbob:!:1:0:99999:7:::\n",
    "gshadow": b"root:*::\nsudo:*:ada:ada\nada:!::\nbob:!::\n",
    "subuid": b"ada:100000:65536\n", "subgid": b"ada:100000:65536\n",
}
NEW = {
    "passwd": b"root:x:0:0:root:/root:/bin/bash\nsshd:x:991:65534::/run/sshd:/usr/sbin/nologin\n"
              b"systemd-x:x:1001:1001::/:/usr/sbin/nologin\n",
    "group": b"root:x:0:\nsudo:x:27:\nsystemd-x:x:1001:\nssl-cert:x:120:\n",
    "shadow": b"root:*:2:0:99999:7:::\nsshd:!*:2::::::\nsystemd-x:!*:2::::::\n",
    "gshadow": b"root:*::\nsudo:*::\nsystemd-x:!*::\nssl-cert:!::\n",
}


def table(data: bytes) -> dict[str, list[str]]:
    return {line.split(":")[0]: line.split(":") for line in data.decode().splitlines()}


def test_people_passwords_and_memberships_come_along() -> None:
    merged = merge(OLD, NEW)
    passwd, group, shadow = (table(merged.files[name]) for name in ("passwd", "group", "shadow"))
    assert passwd["ada"][2:4] == ["1000", "1000"]
    assert shadow["ada"][1] == "$y$ada"
    assert shadow["root"][1] == "$y$secret"
    assert group["sudo"][3] == "ada"
    assert passwd["sshd"][2] == "991", "a system account of the image keeps the image's id"
    assert "_old" not in passwd
    assert merged.files["subuid"] == b"ada:100000:65536\n"
    assert table(merged.files["gshadow"])["sudo"][2:] == ["ada", "ada"]


def test_a_colliding_id_is_replaced_and_told() -> None:
    merged = merge(OLD, NEW)
    passwd, group = table(merged.files["passwd"]), table(merged.files["group"])
    assert passwd["systemd-x"][2] == "1001"
    assert passwd["bob"][2] not in {"1001", "1000"}
    assert passwd["bob"][3] == group["bob"][2]
    assert any("bob" in note and "1001" in note for note in merged.notes)


def test_a_system_account_comes_along_when_kept_files_are_its() -> None:
    assert "_old" in table(merge(OLD, NEW, owners=["_old"]).files["passwd"])
    assert "_old" in table(merge(OLD, NEW, groups=["_old"]).files["group"])


def test_lines_that_are_no_accounts_are_left_out_and_told() -> None:
    merged = merge({**OLD, "passwd": OLD["passwd"] + b"nonsense\nmallory:x:-1:0::/:/bin/sh\n"}, NEW)
    assert "mallory" not in table(merged.files["passwd"])
    assert sum("left out" in note for note in merged.notes) == 2


people = st.lists(st.tuples(st.from_regex(r"[a-z]{1,6}", fullmatch=True), st.integers(100, 1010)), max_size=8,
                  unique_by=lambda row: row[0]).map(
    lambda rows: {"passwd": "".join(f"{n}:x:{i}:{i}::/:/bin/sh\n" for n, i in rows).encode(),
                  "group": "".join(f"{n}:x:{i}:\n" for n, i in rows).encode(),
                  "shadow": "".join(f"{n}:!:1::::::\n" for n, _ in rows).encode()})


@given(people, people)
def test_no_person_is_lost_no_new_collision_appears_and_merging_twice_changes_nothing(
        old: dict[str, bytes], new: dict[str, bytes]) -> None:
    merged = merge(old, new)
    passwd = table(merged.files["passwd"])
    image, host = table(new["passwd"]), table(old["passwd"])
    for name, fields in host.items():
        assert name in passwd or int(fields[2]) < 1000
    for name, fields in image.items():
        assert passwd[name] == fields
    carried = [fields[2] for name, fields in passwd.items() if name not in image]
    assert len(set(carried)) == len(carried)
    assert not set(carried) & {fields[2] for fields in image.values()}
    assert merge(old, merged.files).files == merged.files
    assert set(merged.files) == set(FILES)
