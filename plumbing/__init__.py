"""The bottom of the house: processes, durable files, clock, error kinds, HTTP client.

Everything here runs on a host as well as on a server, so it uses the standard library and
`cryptography` only. Nothing here imports a room.
"""
