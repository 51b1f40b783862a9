"""Throttle: how many hosts may use a service at once, and through which provider.

In: a tickettab (`tickettab`: services, lifetimes, providers and their slots) and hosts that ask.
Out: tickets, which are leases with a fencing number (docs/protocols/tickets.md).
Order: `tickettab` and `tickettab_toml` text → services, kept by `tab` as the files change. What a site's tickets are
made of is in `records`, one process's knowledge of them in `view`; `semaphore` decides (pure: view + request + now →
changes), `choice` picks the provider, `line` and `waiting` say whose turn it is. `service`, the facade of the control
server's API, has each round of changes written by `repository` (rows in `tables`) before it answers; `status` shows
it all. Beside it `upkeep` asks providers whether they are well (`health`) and moves their slots by their load
(`adaptive`); `pace` is how fast a content server may serve one ticket. On the host, `client` gets, renews and gives
back over HTTP; it imports none of the others.
"""
