"""The HTTP API, one router per noun; docs/protocols/host-api.md is what it speaks.

A request meets: `app` (errors to JSON), `requests` (body within its limit, signature or admin token), then its noun:
`hosts` (enrol, order, report), `tickets`, `fleetlock` (tickets for clients of others), `boot` (machines without a key,
and files), `admin`, `rollouts`.
"""
