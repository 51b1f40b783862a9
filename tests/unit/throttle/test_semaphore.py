import subprocess
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from plumbing.errors import BusyError, RefusedError
from throttle.semaphore import Asker, Lease, Pool, acquire, expire, release, renew
from throttle.tickettab import Provider, Service

PATCHES = Service("hp-ux_patches", 14400, (Provider("milton", 8), Provider("hasbro", 4), Provider("tonka", 16)))


def fill(pool: Pool, count: int, now: float = 0.0) -> tuple[Pool, list[Lease]]:
    got = []
    for number in range(count):
        pool, lease = acquire(pool, Asker(f"h{number}"), now)
        got.append(lease)
    return pool, got


def test_28_tickets_in_proportion_and_the_29th_waits() -> None:
    pool, got = fill(Pool(PATCHES), 28)
    assert [sum(lease.provider == p.name for lease in got) for p in PATCHES.providers] == [8, 4, 16]
    with pytest.raises(BusyError, match="all 28 tickets of hp-ux_patches") as caught:
        acquire(pool, Asker("late"), 1.0)
    assert 1 <= caught.value.retry_after_s <= 60


def test_equal_providers_take_turns_also_when_tickets_come_back_at_once() -> None:
    pool = Pool(Service("dump", 60, tuple(Provider(name, 5) for name in "abc")))
    turns = []
    for number in range(9):
        pool, lease = acquire(pool, Asker(f"h{number}"), 0.0)
        turns.append(lease.provider)
        pool = release(pool, lease.ticket, lease.holder, 0.0)
    assert "".join(turns) == "abcabcabc"


def test_idle_unequal_providers_share_by_their_slots_without_bursts() -> None:
    pool, turns = Pool(PATCHES), []
    for number in range(28):
        pool, lease = acquire(pool, Asker(f"h{number}"), 0.0)
        turns.append(lease.provider)
        pool = release(pool, lease.ticket, lease.holder, 0.0)
    assert [turns.count(p.name) for p in PATCHES.providers] == [8, 4, 16]
    assert "tonka tonka tonka" not in " ".join(turns)


def test_itself_first_then_its_subnet_then_anyone() -> None:
    pool = Pool(Service("dump", 60, (Provider("far", 50), Provider("near", 1), Provider("self", 1))))
    asked = Asker("self", near=frozenset({"near"}))
    pool, first = acquire(pool, asked, 0.0)
    pool, second = acquire(pool, replace(asked, host="other"), 0.0)
    pool, third = acquire(pool, replace(asked, host="third"), 0.0)
    assert [first.provider, second.provider, third.provider] == ["self", "near", "far"]


def test_asking_again_is_the_same_ticket_with_a_new_lifetime() -> None:
    pool, first = acquire(Pool(PATCHES), Asker("alpha"), 0.0)
    pool, again = acquire(pool, Asker("alpha"), 100.0)
    assert again.ticket == first.ticket
    assert again.expires_s == 14500.0
    assert len(pool.leases) == 1


def test_a_holder_stopped_past_its_lifetime_is_refused_and_its_slot_is_anothers() -> None:
    one = Service("dump", 10, (Provider("milton", 1),))
    pool, stale = acquire(Pool(one), Asker("alpha"), 0.0)
    pool, fresh = acquire(pool, Asker("beta"), 10.0)
    assert fresh.fence > stale.fence
    with pytest.raises(RefusedError, match="alpha does not hold ticket milton_001"):
        renew(pool, stale.ticket, "alpha", 10.0)
    assert release(pool, stale.ticket, "alpha", 10.0) == pool


def test_another_hosts_ticket_cannot_be_renewed_or_returned() -> None:
    pool, lease = acquire(Pool(PATCHES), Asker("alpha"), 0.0)
    with pytest.raises(RefusedError):
        renew(pool, lease.ticket, "beta", 1.0)
    with pytest.raises(RefusedError):
        release(pool, lease.ticket, "beta", 1.0)


def test_fewer_slots_throw_nobody_out_and_grant_nothing() -> None:
    pool, got = fill(Pool(PATCHES), 10)
    pool = replace(pool, service=replace(PATCHES, providers=(Provider("tonka", 1),)))
    with pytest.raises(BusyError):
        acquire(pool, Asker("late"), 1.0)
    assert renew(pool, got[0].ticket, got[0].holder, 1.0)[1].fence == got[0].fence


@pytest.mark.parametrize("fence", [1, 80, 1234])
def test_the_shell_finds_the_provider_in_a_ticket(fence: int) -> None:
    ticket = Lease("hp-ux_patches", "milton", fence, "alpha", 1, 1.0).ticket
    cut = subprocess.run(["sh", "-c", 'echo "${ticket%_*}"'], env={"ticket": ticket}, capture_output=True, check=True)
    assert cut.stdout == b"milton\n"


class Interleaving(RuleBasedStateMachine):
    """Any order of asking, renewing, giving back, waiting and editing the tickettab."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(Service("dump", 10, (Provider("a", 2), Provider("b", 1), Provider("h1", 1))))
        self.now = 0.0
        self.known: dict[str, Lease] = {}

    @rule(host=st.integers(0, 7), near=st.sets(st.sampled_from(["a", "b", "h1"])))
    def ask(self, host: int, near: set[str]) -> None:
        asker = Asker(f"h{host}", near)
        live = expire(self.pool, self.now)
        had = [lease for lease in live.leases if lease.holder == asker.host]
        try:
            after, lease = acquire(self.pool, asker, self.now)
        except BusyError:
            assert not had
            assert not any(live.free().values())
            return
        if had:
            assert lease.ticket == had[0].ticket
        else:
            assert lease.fence == self.pool.last_fence + 1
            assert live.free()[lease.provider] > 0
        self.pool, self.known[asker.host] = after, lease

    @rule(host=st.integers(0, 7))
    def keep(self, host: int) -> None:
        lease = self.known.get(f"h{host}")
        if lease is None:
            return
        live = lease.ticket in {one.ticket for one in expire(self.pool, self.now).leases}
        try:
            self.pool, fresh = renew(self.pool, lease.ticket, lease.holder, self.now)
        except RefusedError:
            assert not live
        else:
            assert live
            assert fresh.expires_s == self.now + self.pool.service.lifetime_s

    @rule(host=st.integers(0, 7))
    def give_back(self, host: int) -> None:
        lease = self.known.pop(f"h{host}", None)
        if lease is not None:
            self.pool = release(self.pool, lease.ticket, lease.holder, self.now)
            assert lease.ticket not in {one.ticket for one in self.pool.leases}

    @rule(seconds=st.floats(0, 12))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(slots=st.tuples(*[st.integers(0, 3)] * 3))
    def edit(self, slots: tuple[int, int, int]) -> None:
        self.floor = {p.name: sum(lease.provider == p.name for lease in self.pool.leases)
                      for p in self.pool.service.providers}
        self.pool = replace(self.pool, service=replace(self.pool.service, providers=tuple(
            Provider(name, count) for name, count in zip(("a", "b", "h1"), slots, strict=True))))

    floor: dict[str, int] = {}  # noqa: RUF012  (tickets that were out when slots were taken away)

    @invariant()
    def never_more_live_tickets_than_slots(self) -> None:
        live = expire(self.pool, self.now).leases
        for provider in self.pool.service.providers:
            count = sum(lease.provider == provider.name for lease in live)
            assert count <= max(provider.slots, self.floor.get(provider.name, 0))

    @invariant()
    def no_two_leases_share_a_fence_or_a_holder(self) -> None:
        assert len({lease.fence for lease in self.pool.leases}) == len(self.pool.leases)
        assert len({lease.holder for lease in self.pool.leases}) == len(self.pool.leases)


TestInterleaving = Interleaving.TestCase
TestInterleaving.settings = settings(max_examples=60, stateful_step_count=40)
