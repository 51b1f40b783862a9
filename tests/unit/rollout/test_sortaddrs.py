from collections import Counter
from ipaddress import ip_address
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plumbing.errors import UsageError
from rollout.sortaddrs import interleave, subnet


def test_one_from_each_subnet_and_back_to_the_first() -> None:
    assert interleave([(f"{net}{n}", net) for net in "ABC" for n in (1, 2)]) == ["A1", "B1", "C1", "A2", "B2", "C2"]


def test_the_fullest_subnet_is_spread_and_not_left_for_the_end() -> None:
    hosts = [("b1", "B"), ("c1", "C"), ("a1", "A"), ("a2", "A"), ("a3", "A")]
    assert interleave(hosts) == ["a1", "b1", "a2", "c1", "a3"]


def test_nothing_and_one_subnet() -> None:
    assert interleave([]) == []
    assert interleave([("x", "A"), ("y", "A")]) == ["x", "y"]


@pytest.mark.parametrize(("address", "net"), [
    ("10.1.2.3", "10.1.2.0/24"), ("::ffff:10.1.2.9", "10.1.2.0/24"), ("2001:db8::1:2:3:4", "2001:db8::/64"),
])
def test_subnets(address: str, net: str) -> None:
    assert subnet(ip_address(address)) == net


def test_prefixes() -> None:
    assert subnet(ip_address("10.1.2.3"), prefix4=16) == "10.1.0.0/16"
    assert subnet(ip_address("2001:db8:1::1"), prefix6=32) == "2001:db8::/32"
    with pytest.raises(UsageError):
        subnet(ip_address("10.1.2.3"), prefix4=33)


@given(st.lists(st.sampled_from("AAABCDE")))
def test_a_permutation_whose_neighbours_differ_whenever_they_can(nets: list[str]) -> None:
    ordered = interleave([(f"{net}{number}", net) for number, net in enumerate(nets)])
    assert sorted(ordered) == sorted(f"{net}{number}" for number, net in enumerate(nets))
    fullest = max(Counter(nets).values(), default=0)
    same = sum(a[0] == b[0] for a, b in pairwise(ordered))
    assert same == max(0, fullest - (len(nets) - fullest) - 1)
    for net in set(nets):
        numbers = [int(host[1:]) for host in ordered if host[0] == net]
        assert numbers == sorted(numbers)
