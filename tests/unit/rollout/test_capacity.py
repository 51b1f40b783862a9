import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from plumbing.errors import RefusedError, UsageError
from rollout import plan as planning
from rollout.capacity import MAX_COUNT, Load, bound, capacity, check_blast, servers_needed

PAPER = Load(hosts=1500, update_s=30 * 60, download_s=15 * 60, servers=10, per_server=5)
HOUR_S = 3600

loads = st.builds(
    lambda hosts, download, rest, servers, per: Load(hosts, download + rest, download, servers, per),
    st.integers(1, 5000), st.integers(1, 10_000), st.integers(0, 10_000), st.integers(1, 50), st.integers(1, 50))


def test_the_papers_numbers() -> None:
    found = capacity(PAPER)
    assert (found.whole.interval_s, found.whole.total_s) == (36.0, 15 * HOUR_S)
    assert found.download.interval_s == 18.0
    assert round(found.download.total_s / HOUR_S) == 8
    assert round(found.download.last_done_s / HOUR_S, 2) == 8.0
    assert found.download.in_flight == 100


def test_the_papers_deadline_needs_the_papers_servers() -> None:
    assert servers_needed(PAPER, 8 * HOUR_S) == 10
    assert servers_needed(PAPER, 4 * HOUR_S) == 22
    with pytest.raises(RefusedError, match="no number of servers updates 1500 hosts in 30m"):
        servers_needed(PAPER, 30 * 60)
    assert servers_needed(replace(PAPER, hosts=1), 30 * 60) == 1


def test_a_plan_over_its_blast_budget_is_refused_and_told_the_way_out() -> None:
    quick = capacity(PAPER).download
    check_blast(PAPER, quick, 100)
    with pytest.raises(RefusedError, match=r"100 hosts would be in flight .* no faster than every 18\.2s"):
        check_blast(PAPER, quick, 99)
    refused = planning.plan(PAPER, deadline_s=4 * HOUR_S, blast_budget=50)
    assert "no faster than every 36s" in refused.refused
    assert (refused.capacity.servers_needed, refused.meets_deadline) == (22, False)
    hopeless = planning.plan(PAPER, deadline_s=60)
    assert hopeless.refused.startswith("no number of servers")
    assert hopeless.meets_deadline is None


def test_the_plan_in_words_and_in_json() -> None:
    answer = planning.plan(PAPER, deadline_s=8 * HOUR_S, blast_budget=100)
    for words in ("a host every 36s", "total 15h", "a host every 18s", "total 7h45m", "after 7h59m42s", "100 hosts",
                  "servers needed for 8h: 10 (met)"):
        assert words in answer.text()
    told = answer.to_json()
    assert told["whole_time"] == {"interval_s": 36.0, "total_s": 54000.0, "last_done_s": 55764.0, "in_flight": 50}
    assert (told["in_flight"], told["servers_needed"], told["meets_deadline"], told["refused"]) == (100, 10, True, None)


@pytest.mark.parametrize("wrong", [{"hosts": 0}, {"servers": 0}, {"per_server": -1}, {"download_s": 0},
                                   {"download_s": 1801}])
def test_a_load_that_makes_no_sense(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        replace(PAPER, **wrong)


@given(loads)
def test_at_the_interval_no_more_hosts_hold_a_slot_than_there_are(load: Load) -> None:
    found = bound(load, load.download_s)
    at_once = min(load.hosts, math.ceil(load.download_s / found.interval_s - 1e-9))
    assert at_once <= load.servers * load.per_server
    assert found.last_done_s >= load.update_s
    assert 1 <= found.in_flight <= load.hosts
    assert found.interval_s <= bound(load, load.update_s).interval_s


@given(loads, st.integers(1, 100_000))
def test_the_servers_needed_suffice_and_one_fewer_does_not(load: Load, spare_s: int) -> None:
    deadline_s = load.update_s + spare_s
    needed = servers_needed(load, deadline_s)
    assume(needed <= MAX_COUNT)
    enough = bound(replace(load, servers=needed), load.download_s)
    assert enough.last_done_s <= deadline_s * (1 + 1e-12)
    if needed > 1:
        assert bound(replace(load, servers=needed - 1), load.download_s).last_done_s > deadline_s * (1 - 1e-12)


@given(loads, st.integers(1, 500))
def test_the_interval_named_in_a_refusal_fits_the_budget(load: Load, budget: int) -> None:
    rules = planning.pace(load, blast_budget=budget, failure_budget=3)
    assert load.update_s / rules.target_s <= budget * (1 + 1e-9)
    assert rules.start_s >= rules.target_s
