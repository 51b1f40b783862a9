"""Who signed a request: many at once are kept by few transactions, and none is believed twice."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import event, select

from control.database import Database, HostRow, NonceRow
from control.group_commit import GroupCommit
from control.signatures import Signatures
from plumbing import hostauth
from plumbing.errors import TrustError

NOW = 1.7e9


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'reroot.db'}")
    made.migrate()
    yield made
    made.close()


def enrol(database: Database, host: str) -> Ed25519PrivateKey:
    key = Ed25519PrivateKey.generate()
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    with database.session() as session:
        session.merge(HostRow(name=host, public_key=base64.b64encode(raw).decode(), facts={}))
    return key


def signed(key: Ed25519PrivateKey, host: str) -> Mapping[str, str]:
    return hostauth.sign(key, host, NOW, "POST", "/x", b"")


async def ask(signatures: Signatures, headers: Mapping[str, str], *listed: str) -> str:
    who = await signatures.claimed(listed, headers, NOW)
    return (await signatures.authenticate(who, "POST", "/x", b"", NOW)).host


async def test_the_same_request_many_times_at_once_is_believed_once(database: Database) -> None:
    headers = signed(enrol(database, "alpha"), "alpha")
    both = Signatures(database), Signatures(database)  # as two servers
    found = await asyncio.gather(*(ask(both[n % 2], headers, "alpha") for n in range(20)), return_exceptions=True)
    assert [one for one in found if not isinstance(one, TrustError)] == ["alpha"]
    with pytest.raises(TrustError, match="was sent before"):
        await ask(Signatures(database), headers, "alpha")


async def test_many_at_once_are_kept_by_few_transactions(database: Database) -> None:
    keys = {f"h{n}": enrol(database, f"h{n}") for n in range(100)}
    signatures = Signatures(database)
    for host, key in keys.items():
        await signatures.claimed(keys, signed(key, host), NOW)
    commits: list[object] = []
    event.listen(database.engine, "commit", commits.append)
    assert await asyncio.gather(*(ask(signatures, signed(key, host), *keys) for host, key in keys.items())) == [*keys]
    assert len(commits) < 10
    with database.reading() as session:
        assert len(session.scalars(select(NonceRow)).all()) == 100
        assert session.scalars(select(HostRow.seen_s).distinct()).all() == [NOW]


async def test_a_replay_among_others_is_refused_alone(database: Database) -> None:
    keys = {f"h{n}": enrol(database, f"h{n}") for n in range(10)}
    signatures = Signatures(database)
    replayed = signed(keys["h3"], "h3")
    assert await ask(signatures, replayed, *keys) == "h3"
    asked = [replayed if host == "h3" else signed(key, host) for host, key in keys.items()]
    found = await asyncio.gather(*(ask(signatures, one, *keys) for one in asked), return_exceptions=True)
    assert [one for one in found if isinstance(one, str)] == [host for host in keys if host != "h3"]
    assert [str(one) for one in found if isinstance(one, TrustError)] == [
        "the request was sent before; h3 must sign each one anew"]


async def test_a_key_that_was_replaced_elsewhere_is_believed_no_more(database: Database) -> None:
    old = enrol(database, "alpha")
    signatures = Signatures(database)
    assert await ask(signatures, signed(old, "alpha"), "alpha") == "alpha"
    new = enrol(database, "alpha")
    with pytest.raises(TrustError, match="not signed by an enrolled host"):
        await ask(signatures, signed(old, "alpha"), "alpha")
    assert await ask(signatures, signed(new, "alpha"), "alpha") == "alpha"
    with pytest.raises(TrustError, match="not signed by the key"):
        await ask(signatures, signed(old, "alpha"), "alpha")
    with pytest.raises(TrustError, match="not signed by an enrolled host"):
        await ask(signatures, signed(new, "alpha"), "beta")  # not listed any more


async def test_one_item_s_failure_is_its_own_and_a_failed_write_everybody_s() -> None:
    def work(batch: object) -> list[int | Exception]:
        assert isinstance(batch, list)
        if "broken" in batch:
            raise OSError("the disk is full")
        return [ValueError(one) if one == "bad" else len(one) for one in batch]

    group: GroupCommit[str, int] = GroupCommit(work)
    found = await asyncio.gather(*(group.do(one) for one in ("a", "bad", "ccc")), return_exceptions=True)
    assert [repr(one) for one in found] == ["1", "ValueError('bad')", "3"]
    found = await asyncio.gather(*(group.do(one) for one in ("a", "broken")), return_exceptions=True)
    assert [type(one) for one in found] == [OSError, OSError]
