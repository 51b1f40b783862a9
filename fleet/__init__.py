"""Hosts, and the agent on the living host.

Server side: `hosts` reads and writes hosts.toml. Host side, in the order a host lives through it:

1. `inventory` what it is made of: disks, partitions, firmware, memory, addresses, as an order will name them
2. `agent`     the loop: report, wait for an order, stage, boot recovery once, tell of the new system's health
3. `stage`     fetch the frames, the recovery image and the order while the host still works, under a ticket
4. `health`    whether this system is well enough to say so

Who the host is, its key and its trust root are `recovery.identity`'s: recovery needs them too.
"""
