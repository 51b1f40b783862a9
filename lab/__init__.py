"""Machines and networks of the project's own: QEMU in a network namespace, driven from Python.

In: a Debian suite's name, what makes a host this host and no other, a firmware. Out: running machines with
their consoles on record. Data meets the modules in this order:

1. `roots` bootstraps a real Debian root with mmdebstrap and keeps it in a cache.
2. `host` makes a copy of it one particular host (name, keys, user, agent) and `disks` turns that tree into a
   disk image that boots by itself: partitions, filesystems, GRUB in the MBR or on the ESP.
3. `session` opens a lab: a name of its own, a folder, a `keeper` process that cleans up when the lab's owner
   dies in whatever way; `network` is the lab's network namespace with a bridge for each subnet.
4. `machine` runs a disk as a QEMU machine: `qemu` writes the command line, `console` records the serial port,
   `qmp` is the power button, `ssh` the way in.
5. `mailbox` receives the mails of the last gasp.

Everything that needs root says so. Nothing in the product imports this package.
"""
