"""The recovery image: a kernel, an initramfs, the host runtime and reroot's own GRUB, made on a builder.

What comes in: the interpreter that runs the builder with its installed libraries, the host-side rooms, the
distribution's kernel package and a handful of programs. What goes out: one OCI artifact in the store, and a
ledger that says for each part what it weighs and why it is carried.

The order in which the data meets the modules: `contents` (one item of an image) is what all of them speak.
`kernel` finds vmlinuz and its modules, `modules` closes over the modules a profile needs. `module_graph` finds
the Python modules that the host-side rooms reach by their import statements and `really_import` those that only
show when importing, `stand_ins` says what is left out or replaced, `python_runtime` makes the host runtime of
them with its shared objects: `closure` follows their libraries, `elf_slim` takes symbols and build paths out of
them, `selfcheck` then proves the result by running it. `programs` adds the recovery programs, `rootfs` /init
and configuration, `initramfs` writes the archive, `grub` makes the boot images, `ledger` weighs everything
against the budget, and `build` drives them in that order.
"""
