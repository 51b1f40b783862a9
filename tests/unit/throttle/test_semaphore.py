import shutil
import subprocess
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from plumbing.errors import RefusedError, UsageError
from throttle import semaphore
from throttle.choice import free
from throttle.records import Change, Lease, Record, fence_of, net
from throttle.semaphore import Asker
from throttle.tickettab import Provider, Service
from throttle.view import View

PATCHES = Service("hp-ux_patches", 14400, (Provider("milton", 8), Provider("hasbro", 4), Provider("tonka", 16)))
ONE = Service("dump", 10, (Provider("milton", 1),))


def ask(view: View, service: Service, host: str, now: float = 0.0, **near: int) -> Lease | None:
    """Do what a repository's owner does: decide, then fold."""
    tidy(view, service, now)
    granted = semaphore.acquire(view, service, Asker(host, near), now)
    if granted is None:
        return None
    fold(view, granted[0])
    return granted[1]


def got(view: View, service: Service, host: str, now: float = 0.0, **near: int) -> Lease:
    lease = ask(view, service, host, now, **near)
    assert lease is not None
    return lease


def back(view: View, lease: Lease) -> None:
    fold(view, semaphore.release(view, lease.ticket, lease.holder))


def tidy(view: View, service: Service, now: float) -> list[Change]:
    done: list[Change] = []
    while changes := semaphore.expire(view, service.name, now):
        fold(view, changes)
        done += changes
    return done


def fold(view: View, changes: list[Change]) -> None:
    for change in changes:
        view.fold(change)


def test_28_tickets_in_proportion_and_the_29th_waits() -> None:
    view = View()
    leases = [got(view, PATCHES, f"h{number}") for number in range(28)]
    assert [sum(lease.provider == p.name for lease in leases) for p in PATCHES.providers] == [8, 4, 16]
    assert ask(view, PATCHES, "late", 1.0) is None


def test_equal_providers_take_turns_also_when_tickets_come_back_at_once() -> None:
    view, service, turns = View(), Service("dump", 60, tuple(Provider(name, 5) for name in "abc")), []
    for number in range(9):
        lease = got(view, service, f"h{number}")
        turns.append(lease.provider)
        back(view, lease)
    assert "".join(turns) == "abcabcabc"


def test_idle_unequal_providers_share_by_their_slots_without_bursts() -> None:
    view, turns = View(), []
    for number in range(28):
        lease = got(view, PATCHES, f"h{number}")
        turns.append(lease.provider)
        back(view, lease)
    assert [turns.count(p.name) for p in PATCHES.providers] == [8, 4, 16]
    assert "tonka tonka tonka" not in " ".join(turns)


def test_itself_first_then_the_longest_prefix_then_anyone() -> None:
    view, service = View(), Service("dump", 60, tuple(
        Provider(name, slots) for name, slots in (("far", 50), ("near", 1), ("nearest", 1), ("self", 1))))
    turns = [got(view, service, host, near=16, nearest=24).provider for host in ("self", "b", "c", "d")]
    assert turns == ["self", "nearest", "near", "far"]


def test_a_provider_that_is_down_is_left_out() -> None:
    granted = semaphore.acquire(View(), PATCHES, Asker("milton"), 0.0, down={"milton", "tonka"})
    assert granted is not None
    assert granted[1].provider == "hasbro"
    assert semaphore.acquire(View(), ONE, Asker("alpha"), 0.0, down={"milton"}) is None


def test_asking_again_is_the_same_ticket_with_a_new_lifetime() -> None:
    view = View()
    first, again = got(view, PATCHES, "alpha"), got(view, PATCHES, "alpha", 100.0)
    assert again == replace(first, expires_s=14500.0)
    assert list(view.pool(PATCHES.name).held.values()) == [again]


def test_a_holder_stopped_past_its_lifetime_is_quarantined_and_its_slot_is_anothers() -> None:
    view = View()
    stale = got(view, ONE, "alpha")
    fresh = got(view, ONE, "beta", 10.0)
    assert fresh.fence > stale.fence
    assert view.lease(stale.fence) == replace(stale, quarantined=True)
    with pytest.raises(RefusedError, match="milton_001 was not renewed in 10 s and is quarantined"):
        semaphore.renew(view, ONE, stale.ticket, "alpha", 10.0)


def test_quarantine_ends_when_the_holder_is_back_or_after_a_day() -> None:
    view = View()
    stale = got(view, ONE, "alpha")
    other = got(view, ONE, "beta", 10.0)
    assert list(view.pool("dump").quarantined) == ["alpha"]
    back(view, stale)
    assert view.lease(stale.fence) is None
    got(view, ONE, "gamma", 20.0)
    assert list(view.pool("dump").quarantined) == ["beta"]
    assert ask(view, ONE, "beta", 21.0) is None  # asking is not yet being back
    assert got(view, ONE, "beta", 31.0).fence > other.fence
    assert list(view.pool("dump").quarantined) == ["gamma"]
    tidy(view, ONE, 32.0 + semaphore.QUARANTINED_S)
    assert list(view.pool("dump").quarantined) == ["beta"]


def test_a_thousand_quarantined_tickets_are_kept_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semaphore, "MAX_QUARANTINED", 3)
    view, service = View(), replace(ONE, providers=(Provider("milton", 9),))
    for number in range(5):
        got(view, service, f"h{number}", float(number))
    tidy(view, service, 100.0)
    assert list(view.pool("dump").quarantined) == ["h2", "h3", "h4"]


@pytest.mark.parametrize("ticket", ["milton_001", "hasbro_001", "milton_002", "milton_", "_1", "1", "", "milton_1e3",
                                    "milton_" + "9" * 5000])
def test_foreign_replayed_and_made_up_tickets_hurt_nobody(ticket: str) -> None:
    view = View()
    lease = got(view, ONE, "alpha")
    with pytest.raises(RefusedError, match="beta does not hold ticket"):
        semaphore.renew(view, ONE, ticket, "beta", 1.0)
    try:
        assert semaphore.release(view, ticket, "beta") == []
    except RefusedError:
        assert ticket == lease.ticket
    if ticket != lease.ticket:
        assert semaphore.release(view, ticket, "alpha") == []


def test_a_return_that_comes_twice_does_not_end_the_next_ticket() -> None:
    view = View()
    first = got(view, ONE, "alpha")
    back(view, first)
    second = got(view, ONE, "alpha")
    assert semaphore.release(view, first.ticket, "alpha") == []
    assert view.lease(second.fence) == second


def test_fewer_slots_throw_nobody_out_and_grant_nothing() -> None:
    view = View()
    leases = [got(view, PATCHES, f"h{number}") for number in range(10)]
    fewer = replace(PATCHES, providers=(Provider("tonka", 1),))
    assert ask(view, fewer, "late", 1.0) is None
    assert semaphore.renew(view, fewer, leases[0].ticket, "h0", 1.0)[1].fence == leases[0].fence
    assert semaphore.renew(view, None, leases[0].ticket, "h0", 1.0)[1].expires_s == 14401.0


def test_a_finished_host_offers_its_stage_for_a_while() -> None:
    view, service = View(), replace(ONE, offer_slots=2)
    fold(view, semaphore.offer(view, service, "peer", 2, "http://peer:8081", 60, 0.0))
    assert [got(view, service, host, peer=24).provider for host in ("a", "b", "c")] == ["peer", "peer", "milton"]
    fold(view, semaphore.offer(view, service, "peer", 1, "http://peer:8081", 60, 5.0))
    assert free(service, view.pool("dump"), 5.0) == {}
    assert free(replace(service, offer_slots=0), view.pool("dump"), 5.0) == {}
    tidy(view, service, 65.0)
    assert view.pool("dump").offers == {}
    assert semaphore.withdraw(view, "dump", "peer") == []


@pytest.mark.parametrize(("slots", "lifetime_s"), [(0, 60), (3, 60), (-1, 60), (1, 0), (1, 10**9)])
def test_an_offer_out_of_range_is_refused(slots: int, lifetime_s: int) -> None:
    with pytest.raises(UsageError, match="1 to 2 slots"):
        semaphore.offer(View(), replace(ONE, offer_slots=2), "peer", slots, "http://peer", lifetime_s, 0.0)
    with pytest.raises(RefusedError, match="takes no offers"):
        semaphore.offer(View(), ONE, "peer", 1, "http://peer", 60, 0.0)


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
@pytest.mark.parametrize(("provider", "fence"), [("milton", 1), ("xv", 1234), ("mil_ton", 80), ("_", 7),
                                                 ("a__b_", 10**9)])
def test_the_shell_finds_the_provider_in_a_ticket(shell: str, provider: str, fence: int) -> None:
    ticket = Lease("hp-ux_patches", provider, fence, "alpha", 1, 1.0).ticket
    path = shutil.which(shell)
    assert path is not None
    words = [path, "sh"] if shell == "busybox" else [path]
    cut = subprocess.run([*words, "-c", 'echo "${ticket%_*}"'], env={"ticket": ticket}, capture_output=True, check=True)
    assert cut.stdout.decode() == f"{provider}\n"
    assert fence_of(ticket) == fence


def test_net_changes_are_one_for_each_record() -> None:
    lease = got(View(), ONE, "alpha")
    fresh = replace(lease, expires_s=99.0)
    assert net([Change(None, lease), Change(lease, fresh)]) == [Change(None, fresh)]
    assert net([Change(None, lease), Change(lease, None)]) == []


def state(view: View) -> tuple[object, ...]:
    """Everything of a view that rules read, and what an undone change must bring back."""
    return (dict(view.records), {name: (dict(pool.taken), dict(pool.held), dict(pool.quarantined), dict(pool.offers))
                                 for name, pool in view.pools.items()})


class Interleaving(RuleBasedStateMachine):
    """Any order of asking, renewing, giving back, waiting, losing a commit, reading anew, and editing the tickettab."""

    def __init__(self) -> None:
        super().__init__()
        self.service = Service("dump", 10, (Provider("a", 2), Provider("b", 1), Provider("h1", 1)), offer_slots=1)
        self.view = View()
        self.now = 0.0
        self.known: dict[str, Lease] = {}
        self.floor: dict[str, int] = {}  # tickets that were out when slots were taken away
        self.highest = 0

    def commit(self, changes: list[Change]) -> None:
        """Fold, lose the commit, undo: nothing may be left of it. Then fold for good."""
        before = state(self.view)
        fold(self.view, changes)
        for change in reversed(changes):
            self.view.fold(change.undone())
        assert state(self.view) == before
        fold(self.view, changes)

    def tidy(self) -> None:
        while changes := semaphore.expire(self.view, "dump", self.now):
            self.commit(changes)

    @rule(host=st.integers(0, 7), near=st.dictionaries(st.sampled_from(["a", "b", "h1"]), st.integers(1, 32)))
    def ask(self, host: int, near: dict[str, int]) -> None:
        self.tidy()
        pool = self.view.pool("dump")
        held, left = pool.held.get(f"h{host}"), free(self.service, pool, self.now)
        granted = semaphore.acquire(self.view, self.service, Asker(f"h{host}", near), self.now)
        if granted is None:
            assert held is None
            assert not left
            return
        changes, lease = granted
        if held is not None:
            assert lease.ticket == held.ticket
        else:
            assert lease.fence > self.highest
            assert left[lease.provider] > 0
            self.highest = lease.fence
        self.commit(changes)
        self.known[lease.holder] = lease

    @rule(host=st.integers(0, 7))
    def keep(self, host: int) -> None:
        lease = self.known.get(f"h{host}")
        if lease is None:
            return
        self.tidy()
        live = self.view.pool("dump").held.get(lease.holder)
        try:
            changes, fresh = semaphore.renew(self.view, self.service, lease.ticket, lease.holder, self.now)
        except RefusedError:
            assert live is None or live.ticket != lease.ticket
        else:
            assert live is not None
            assert fresh.expires_s == self.now + self.service.lifetime_s
            self.commit(changes)

    @rule(host=st.integers(0, 7))
    def give_back(self, host: int) -> None:
        lease = self.known.pop(f"h{host}", None)
        if lease is not None:
            self.commit(semaphore.release(self.view, lease.ticket, lease.holder))
            assert self.view.lease(lease.fence) is None

    @rule(host=st.integers(0, 7), lifetime_s=st.integers(1, 20))
    def offer(self, host: int, lifetime_s: int) -> None:
        self.commit(semaphore.offer(self.view, self.service, f"h{host}", 1, "", lifetime_s, self.now))

    @rule(seconds=st.floats(0, 12))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def restart(self) -> None:
        """Another process reads what is written, in any order."""
        records: list[Record] = list(self.view.records.values())
        self.view = View(self.view.version, self.view.last_fence, reversed(records))

    @rule(slots=st.tuples(*[st.integers(0, 3)] * 3))
    def edit(self, slots: tuple[int, int, int]) -> None:
        self.floor = dict(self.view.pool("dump").taken)
        self.service = replace(self.service, providers=tuple(
            Provider(name, count) for name, count in zip(("a", "b", "h1"), slots, strict=True)))

    @invariant()
    def never_more_live_tickets_than_slots(self) -> None:
        live = [lease for lease in self.view.pool("dump").held.values() if lease.expires_s > self.now]
        slots = {p.name: p.slots for p in self.service.providers}
        for provider in {lease.provider for lease in live}:
            count = sum(lease.provider == provider for lease in live)
            # An offer is one slot; the ticket on it may outlive it.
            assert count <= max(slots.get(provider, 1), self.floor.get(provider, 0))

    @invariant()
    def the_indices_agree_with_the_records(self) -> None:
        leases = [one for one in self.view.records.values() if isinstance(one, Lease)]
        live = {one.holder: one for one in leases if not one.quarantined}
        pool = self.view.pool("dump")
        assert pool.held == live
        assert len(live) == sum(not one.quarantined for one in leases)
        assert pool.quarantined == {one.holder: one for one in leases if one.quarantined}
        assert dict(pool.taken) == {name: sum(one.provider == name for one in live.values())
                                    for name in {one.provider for one in live.values()}}


TestInterleaving = Interleaving.TestCase
TestInterleaving.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
