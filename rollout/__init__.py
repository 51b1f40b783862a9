"""Rollout: how many hosts, in which order, how quickly, and when to stop.

In: how long one host takes, what the servers bear, who serves what, where the hosts are; then events.
Out: a plan, and actions (trigger this host, wait, halt). Everything here is pure; nothing reads a clock.
Order: `duration` (30m → 1800) → `capacity` (the paper's arithmetic) and `sortaddrs` (interleave by subnet)
and `waves` (service hosts first, a few at a time) → `plan` → `executor` (state + events + now → actions).
The control server's loop only feeds the executor and does what it says.
"""
