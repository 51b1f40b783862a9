import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbing.errors import RefusedError
from rollout.plan import order
from rollout.waves import default_minimum, waves

PAPER = {"main": {"netdist"}, "db1": {"named", "afsdb"}, "db2": {"named", "afsdb"}, "db3": {"named", "afsdb"},
         **{f"replica{n}": {"afs", "patches"} for n in range(1, 5)}}


def test_the_papers_servers() -> None:
    hosts = ["desk1", *PAPER, "desk2"]
    assert waves(hosts, PAPER, {"named": 2}) == [
        ["main", "db1", "replica1", "replica2"], ["db2", "replica3", "replica4"], ["db3"], ["desk1", "desk2"]]


def test_providers_that_stay_up_count() -> None:
    serves = {"a": {"dump"}, "b": {"dump"}, "c": {"dump"}}
    assert waves(["a", "b"], serves, {"dump": 1}) == [["a", "b"]]
    assert waves(["a", "b"], serves, {"dump": 2}) == [["a"], ["b"]]


def test_a_minimum_that_spares_nobody_is_refused() -> None:
    with pytest.raises(RefusedError, match="a serves dump, which cannot spare a provider"):
        waves(["x", "a"], {"a": {"dump"}, "b": {"dump"}}, {"dump": 2})


def test_no_services_one_wave_and_no_hosts_none() -> None:
    assert waves(["x", "y"], {}) == [["x", "y"]]
    assert waves([], PAPER) == []


def test_each_wave_is_interleaved_by_itself() -> None:
    hosts = [("a", "A"), ("b", "A"), ("x", "A"), ("y", "A"), ("z", "B")]
    assert order(hosts, {"a": ["dump"], "b": ["dump"]}) == (("a",), ("b",), ("x", "z", "y"))


@given(st.dictionaries(st.integers(0, 30).map(str), st.sets(st.sampled_from("STUV"))),
       st.dictionaries(st.sampled_from("STUV"), st.integers(0, 3)), st.sets(st.integers(0, 40).map(str)))
def test_no_wave_goes_below_a_minimum(
    serves: dict[str, set[str]], minimum: dict[str, int], chosen: set[str],
) -> None:
    hosts = sorted(chosen)
    total = {service: sum(service in has for has in serves.values()) for service in "STUV"}
    least = {service: minimum.get(service, default_minimum(total[service])) for service in "STUV"}
    try:
        split = waves(hosts, serves, minimum)
    except RefusedError:
        assert any(total[s] <= least[s] for host in hosts for s in serves.get(host, ()))
        return
    assert sorted(host for wave in split for host in wave) == hosts
    assert all(split)
    for wave in split:
        for service in "STUV":
            down = sum(service in serves.get(host, ()) for host in wave)
            assert not down or total[service] - down >= least[service]
    plain = [bool(serves.get(host)) for wave in split for host in wave]
    assert plain == sorted(plain, reverse=True)
