import pytest

from bench.throttle_herd import Herd


@pytest.mark.parametrize(("hosts", "slots", "hold_s"), [(5000, 50, (0.05, 0.25)), (1500, 50, (1.0, 5.0)),
                                                        (400, 10, (30.0, 120.0))])
def test_a_herd_is_served_in_the_order_in_which_it_came(hosts: int, slots: int, hold_s: tuple[float, float]) -> None:
    herd = Herd(hosts, slots, hold_s).run()
    assert len(herd.served) == hosts
    _, p99, most = herd
    turns = slots / (sum(hold_s) / 2)  # a second
    assert p99 <= slots + 2 * turns  # what is served while a message that was lost is sent again
    assert most <= slots + 15 * turns
    assert herd.idle_share() < 0.03
