"""What runs from the initramfs: a signed order and a machine come in, a machine with its new root goes out.

In the order in which they meet the data:

- `fields`, `order`, `signed_order` (pure): the signed order, every field checked.
- `journal`: what was done already, so that a power cut resumes there.
- `gpt` (pure), `disks`: which partition is which, never by a name that can move; mounting, making filesystems.
- `ext4`, `xfs`, `filesystems` (pure): which roots can be made, what fits in; `startable`, `fstab`: whether it
  could start, what it mounts.
- `lvm_format` (pure), `devmapper`, `lvm`: plain logical volumes, found and made.
- `layout`: what an install makes of a blank disk, shown before it runs.
- `grubenv` (pure), `bootloader`, `biosboot`, `efivars`, `firststage`: the boot area on the ESP and what the
  firmware starts.
- `limits`, `cmdline` (pure), `watchdog`, `supervise`, `init`: process 1, which starts the worker and watches it.
- `identity`, `network`, `servers`: who this machine is, its way to the control server, what it asks there.
- `machine` (pure table, drawn in docs/machines/recovery.dot), `drive`, `session`: what comes after what, what is
  known and held open meanwhile.
- `phases`: `begin` (network, order, disks), `content` (where bytes come from), `keep` (preserve, wipe), `blank` (both
  for an installation), `fill` (restore, verify; `tickets` around the download), `settle` (putback, bootloader, finish;
  `hostkeys` for an installed system).
- `log`, `report`, `lastgasp`, `starttls`: who is told.
- `rescue`, `dialogue` (pure, drawn in docs/machines/rescue.dot), `emergency`, `examine`, `offload`, `ownprogram`
  (pure): what a person at the console can do.

What is touched when, and what a power cut leaves: docs/protocols/recovery.md.
"""
