"""The control server: what hosts, administrators and network boots talk to.

What comes in: a site directory (reroot.toml, hosts.toml, tickettab, keys, store, catalogue) and requests.
What goes out: signed orders, tickets, files, and a database that remembers who reported what.
It holds no rules: it calls imaging, throttle, rollout, recovery.order and precious.policy and keeps what they return.

In the order a site meets them: config (reroot.toml to values), site (the directory and `reroot init`), database
(tables and migrations), auth (who is asking), orders (facts + catalogue + policy to a signed order), progress
(what a host said to an order's next state), book (hosts, orders and events kept), api/ (HTTP by noun), content (files,
in processes of their own), dhcp, tftp and ipxe (network boot), rollouts (the loop that feeds rollout.executor),
serve (the process tree).
"""
