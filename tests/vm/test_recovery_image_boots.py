"""The recovery image of this checkout on a machine: the kernel unpacks it, Python comes up, everything in it works."""

from __future__ import annotations

import json
import os
from pathlib import Path

from conftest import OpenLab, Tell

from imaging.recovery_image import build, kernel, python_runtime, selfcheck
from imaging.recovery_image.build import Recipe
from imaging.recovery_image.contents import file
from imaging.recovery_image.ledger import Budget
from imaging.recovery_image.python_runtime import HOME
from lab.qemu import DirectKernel, MachineSpec

CACHE = Path(os.environ.get("REROOT_LAB_CACHE") or Path(__file__).parents[2] / ".cache") / "kernels"
BOOT_S = 90.0

MAIN = '''
import json, os, subprocess, sys
def up(): return float(open("/proc/uptime").read().split()[0])
first = up()
import selfcheck
print("SELFCHECK", end=" ", flush=True)
selfcheck.main({roots!r})
print("MARKS", json.dumps({{"first_line": first, "all_imports": up(), "pid": os.getpid(), "argv": sys.argv[1:]}}))
def do(*words): subprocess.run(words, check=True)
wanted = open("/etc/reroot/modules").read().split()
subprocess.run(["modprobe", "-a", *wanted])
loaded = [line.split()[0] for line in open("/proc/modules")]
print("NOT-LOADED", json.dumps([name for name in wanted if name not in loaded]))
do("truncate", "-s", "64M", "/tmp/disk", "/tmp/fat", "/tmp/ext")
subprocess.run(["sfdisk", "-q", "/tmp/disk"], input=b"label: gpt\\n,16M,U\\n,,L\\n", check=True)
do("mkfs.vfat", "-n", "ESP", "/tmp/fat")
do("mkfs.ext4", "-q", "-L", "root", "/tmp/ext")
do("e2fsck", "-fn", "/tmp/ext")
for kind in ("fat", "ext"):
    do("mount", "-o", "loop", "/tmp/" + kind, "/mnt")
    open("/mnt/hello", "w").write("world")
    do("sync", "-f", "/mnt"); do("umount", "/mnt")
print("CARDS", sorted(os.listdir("/sys/class/net")), "USER", __import__("pwd").getpwuid(0).pw_name)
print("PROBE-END", flush=True)
do("poweroff", "-f")
'''


def test_python_comes_up_and_everything_carried_works(open_lab: OpenLab, tell: Tell, tmp_path: Path) -> None:
    roots = python_runtime.expand_roots(Recipe.source, python_runtime.HOST_ROOTS)
    probe = [file(f"{HOME}/app/probe.py", MAIN.format(roots=list(roots)).encode(), part="test", why="test"),
             file(f"{HOME}/app/selfcheck.py", Path(selfcheck.__file__).read_bytes(), part="test", why="test")]
    image = build.make(Recipe("test", "1", "amd64", kernel.from_package(CACHE), b"{}", main="probe", level=3,
                              budget=Budget(20 << 20, 40 << 20),
                              extra=tuple(probe)))
    for title in ("vmlinuz", "initrd.img"):
        (tmp_path / title).write_bytes(image.parts[title])
    spec = MachineSpec(memory_mib=512, reboots=False, kernel=DirectKernel(
        tmp_path / "vmlinuz", tmp_path / "initrd.img", "console=ttyS0 quiet panic=-1"))
    machine = open_lab().machine("probe", spec=spec)
    machine.start()
    times = json.loads(machine.wait_for_console(r"SELFCHECK (\{.*\})", BOOT_S)[1])
    marks = json.loads(machine.wait_for_console(r"MARKS (\{.*\})", BOOT_S)[1])
    not_loaded = json.loads(machine.wait_for_console(r"NOT-LOADED (\[.*\])", BOOT_S)[1])
    cards = machine.wait_for_console(r"CARDS (.*) USER root", BOOT_S)[1]
    machine.wait_for_console("PROBE-END", BOOT_S)
    machine.wait_for_power_off(BOOT_S)
    assert marks["pid"] == 1
    assert set(not_loaded) <= {"efivarfs"}  # some kernels refuse it where the firmware is BIOS
    assert "eth0" in cards
    assert set(times) == {"zstandard", "blake3", "cryptography", "tuf", "interpreter", "reroot"}
    tell(f"marks {marks}, imports {times}, bytes {[(title, len(data)) for title, data in image.parts.items()]}")
