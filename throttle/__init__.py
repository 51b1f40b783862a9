"""Throttle: how many hosts may use a service at once, and through which provider.

In: a tickettab (`tickettab`: services, lifetimes, providers and their slots) and hosts that ask.
Out: tickets, which are leases with a fencing number (docs/protocols/tickets.md).
Order: `tickettab` text → services → `semaphore` (pure: pool + now → pool + lease) inside one transaction of
`repository` (rows in `tables`), called by `service`, the facade of the control server's API. On the host,
`client` gets, renews and gives back over HTTP; it imports none of the others.
"""
