"""Which servers a host asks, and in what order."""

from __future__ import annotations

import json

from test_order import payload

from recovery import servers
from recovery.order import Order


def test_the_tickets_providers_come_first_the_control_server_last_and_none_twice() -> None:
    order = Order.from_json(json.dumps(payload(
        control="http://control:8080", content=["http://a:8081/", "http://b:8081", "http://control:8080"])))
    assert servers.groups(order, ["http://b:8081/", "http://peer:9"]) == (
        ("http://b:8081", "http://peer:9"), ("http://a:8081", "http://control:8080"))


def test_what_is_no_url_in_a_ticket_is_left_out() -> None:
    order = Order.from_json(json.dumps(payload(content=["http://a:8081"])))
    for hostile in ("", "file:///etc/shadow", "http://", "http://a b", "http://x\r\nHost: y", "//a"):
        assert servers.groups(order, [hostile]) == (("http://a:8081",), ("http://10.77.1.1:8080",))
