"""The initramfs as a tree: /init, the runtime, programs, modules, and the few files programs expect. Pure."""

from __future__ import annotations

import json

from imaging.recovery_image.contents import Item, device, file, folder, link
from imaging.recovery_image.python_runtime import HOME

INIT = f"""#!/bin/busybox sh
# The kernel starts this as process 1. Python takes over at once; what it needs before that is only /dev.
export PATH=/bin HOME=/root LANG=C.UTF-8
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
# randomness first: without it Python waits a second or more for the kernel to gather some
/bin/busybox modprobe -a virtio_pci virtio_rng 2>/dev/null
exec /{HOME}/bin/python3 -I -m {{main}} "$@"
"""


def skeleton(root_json: bytes, identity: dict[str, str], main: str = "recovery.init") -> list[Item]:
    """Return everything that is neither runtime nor program nor module.

    `root_json` is the catalogue's root of trust; `identity` (name, version, arch, kernel) is what the image calls
    itself in /etc/reroot/image.json.
    """
    identity_json = json.dumps(identity, indent=1, sort_keys=True).encode() + b"\n"
    texts = {
        "etc/passwd": (b"root:x:0:0:root:/root:/bin/sh\n", "names for user 0"),
        "etc/group": (b"root:x:0:\n", "names for group 0"),
        "etc/nsswitch.conf": (b"passwd: files\ngroup: files\nhosts: files dns\n", "glibc resolves names by it"),
        "etc/hosts": (b"127.0.0.1 localhost\n::1 localhost\n", "localhost without a name server"),
    }
    items = [file(path, data, part="configuration", why=why) for path, (data, why) in texts.items()]
    items += [
        file("init", INIT.format(main=main).encode(), part="configuration", why="first process", mode=0o755),
        file("etc/reroot/root.json", root_json, part="configuration", why="root of trust of the catalogue"),
        file("etc/reroot/image.json", identity_json, part="configuration", why="which image this is"),
        # the loader's and libc's built-in paths lead into the runtime, so programs and /init need no long argv
        link("lib64/ld-linux-x86-64.so.2", f"/{HOME}/lib/ld-linux-x86-64.so.2"),
        link("lib/x86_64-linux-gnu", f"/{HOME}/lib"),
        link("usr/lib/x86_64-linux-gnu", f"/{HOME}/lib"),
        link("sbin", "bin"), link("usr/bin", "../bin"), link("usr/sbin", "../bin"),
        device("dev/console", 5, 1), device("dev/null", 1, 3, 0o666), device("dev/kmsg", 1, 11, 0o644),
        folder("tmp", 0o1777), folder("root", 0o700),
    ]
    items += [folder(path) for path in ("dev", "proc", "sys", "run", "mnt", "var", "bin")]
    items.append(link("var/run", "/run"))
    return items
