"""Interleave hosts by subnet: one from subnet A, one from B, and so on, back to A. Pure.

Source: the SAS paper, section Sortaddrs. Where subnets differ in size, the fullest goes first, so that neighbours
in the list share a subnet only when there is no other way.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_network

from plumbing.errors import UsageError

Address = IPv4Address | IPv6Address


def subnet(address: Address, *, prefix4: int = 24, prefix6: int = 64) -> str:
    """Return the network of `address` in CIDR form; an IPv4 address written as IPv6 counts as IPv4."""
    if not (0 <= prefix4 <= 32 and 0 <= prefix6 <= 128):
        raise UsageError(f"a prefix has 0 to 32 bits for IPv4 and 0 to 128 for IPv6, not {prefix4} and {prefix6}")
    plain = (isinstance(address, IPv6Address) and address.ipv4_mapped) or address
    return str(ip_network(f"{plain}/{prefix4 if plain.version == 4 else prefix6}", strict=False))


def interleave(hosts: Iterable[tuple[str, str]]) -> list[str]:
    """Order (host, subnet) pairs so that neighbours differ in subnet whenever they can; stable within a subnet."""
    queues: dict[str, deque[str]] = {}
    for host, net in hosts:
        queues.setdefault(net, deque()).append(host)
    # (fullest first, then longest not served, then first seen); the one just served sits out a turn
    heap = [(-len(queue), 0, number, net) for number, (net, queue) in enumerate(queues.items())]
    heapq.heapify(heap)
    ordered: list[str] = []
    resting: tuple[int, int, int, str] | None = None
    while heap or resting is not None:
        if heap:
            left, _, number, net = heapq.heappop(heap)
            if resting is not None:
                heapq.heappush(heap, resting)
        else:
            assert resting is not None
            left, _, number, net = resting
        ordered.append(queues[net].popleft())
        resting = (left + 1, len(ordered), number, net) if left < -1 else None
    return ordered
