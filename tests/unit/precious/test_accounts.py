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


# -- Debian 12 to 13 -----------------------------------------------------------------------------------------------

STATIC = ("root:0", "daemon:1", "bin:2", "sys:3", "sync:4", "games:5", "man:6", "lp:7", "mail:8", "news:9", "uucp:10",
          "proxy:13", "www-data:33", "backup:34", "list:38", "irc:39", "_apt:42", "nobody:65534")
"""Accounts that base-passwd gives the same ids in both."""


def system(*dynamic: str) -> dict[str, bytes]:
    """The account files of a Debian system; an account is NAME:ID, its group has the same id."""
    rows = [row.split(":") for row in (*STATIC, *dynamic)]
    return {"passwd": "".join(f"{n}:x:{i}:{i}::/nonexistent:/usr/sbin/nologin\n" for n, i in rows).encode(),
            "group": "".join(f"{n}:x:{i}:\n" for n, i in [*rows, ["shadow", "42424"], ["sudo", "27"]]).encode(),
            "shadow": "".join(f"{n}:{'*' if int(i) < 100 else '!'}:19700:0:99999:7:::\n" for n, i in rows).encode(),
            "gshadow": "".join(f"{n}:*::\n" for n, i in rows).encode()}


def test_a_debian_12_host_on_a_debian_13_image() -> None:
    """12 gives its services ids from 100 on as they come, 13 from 999 downwards; those of a host are in the way."""
    old = system("systemd-network:998", "messagebus:100", "sshd:101", "postgres:102", "prometheus:103", "ada:1000",
                 "bob:1001")
    old["group"] = old["group"].replace(b"sudo:x:27:", b"sudo:x:27:ada")
    new = system("systemd-network:998", "systemd-timesync:997", "messagebus:996", "sshd:995", "polkitd:102",
                 "debian:1000")
    merged = merge(old, new, owners=["postgres"])
    passwd, group = table(merged.files["passwd"]), table(merged.files["group"])
    image = table(new["passwd"])
    assert {name: passwd[name] for name in image} == image
    assert {"ada", "bob", "postgres"} == passwd.keys() - image.keys(), "nothing kept is prometheus's"
    assert passwd["bob"][2:4] == ["1001", "1001"] and group["sudo"][3] == "ada"
    assert passwd["ada"][2] not in {"1000", "1001"} and passwd["ada"][3] == group["ada"][2]
    assert passwd["postgres"][2] not in {"102", *(row[2] for row in image.values())}
    assert len({row[2] for row in passwd.values()}) == len(passwd), "no id twice"
    assert group["postgres"][2] == passwd["postgres"][3] not in {row[2] for row in table(new["group"]).values()}
    assert sorted(note.split()[1] for note in merged.notes) == ["ada", "ada", "postgres", "postgres"]
    assert [row.split()[2] for row in merged.dropped] == ["prometheus", "prometheus"]
    assert merge(old, merged.files, owners=["postgres"]).files == merged.files


def test_there_is_an_id_for_each_of_many() -> None:
    old = system(*(f"s{number}:{number}" for number in range(100, 1000)))
    new = system(*(f"t{number}:{number}" for number in range(100, 1000)))
    passwd = table(merge(old, new, owners=[f"s{number}" for number in range(100, 1000)]).files["passwd"])
    assert len({row[2] for row in passwd.values()}) == len(passwd) == len(STATIC) + 1800
