"""`reroot lab …`: machines and networks of the project's own, to try things on. I/O: QEMU, stdout; needs root."""

from __future__ import annotations

import contextlib
import threading
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lab import host, roots, session
from lab.machine import Machine
from lab.qemu import Firmware, MachineSpec
from lab.session import Lab
from plumbing import run
from plumbing.errors import UsageError
from recovery.order import ROOT_FILESYSTEMS

app = typer.Typer(no_args_is_help=True, help="Virtual machines on a network of their own, to try things on.")

AccelOption = Annotated[str, typer.Option("--accel", help="tcg, or kvm where it works.")]
NAMES = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel")


@app.command()
def up(
    hosts: Annotated[int, typer.Option("--hosts", help=f"How many machines, 1 to {len(NAMES)}.")] = 1,
    subnets: Annotated[int, typer.Option("--subnets", help="How many subnets they are spread over.")] = 1,
    suite: Annotated[str, typer.Option("--suite", help="The Debian release they run.")] = "bookworm",
    uefi: Annotated[bool, typer.Option("--uefi", help="UEFI firmware; otherwise BIOS.")] = False,
    name: Annotated[str, typer.Option("--name", help="The lab's name (default: made up).")] = "",
    accel: AccelOption = "tcg",
) -> None:
    """Start Debian machines, say how to reach them, and keep them until ^C; then nothing is left but the logs."""
    if not 1 <= hosts <= len(NAMES) or not 1 <= subnets <= 8:
        raise UsageError(f"a lab has 1 to {len(NAMES)} hosts on 1 to 8 subnets; choose numbers in that range")
    out = Console()
    firmware = Firmware.UEFI if uefi else Firmware.BIOS
    with Lab(subnets=range(1, subnets + 1), name=name or None) as lab:
        out.print(f"lab {lab.name}: logs in {lab.logs}, control address {lab.control_address}")
        machines = []
        for index, each in enumerate(NAMES[:hosts]):
            subnet, number = 1 + index % subnets, 10 + index // subnets
            out.print(f"{each}: building its disk")
            built = host.build(host.HostSpec(each, subnet=subnet, number=number, firmware=firmware,
                                             root=roots.RootSpec(suite)), lab.scratch / f"{each}.img")
            machines.append(lab.machine(each, subnet=subnet, host=number, disks=[built.disk],
                                        spec=MachineSpec(firmware=firmware, accel=accel)))
        for machine in machines:
            machine.start()
        for machine in machines:
            machine.wait_for_login(600)
            out.print(f"{machine.name}: up after {machine.elapsed_s():.0f} s")
        out.print(_table(machines))
        out.print("^C ends the lab.")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


@app.command()
def demo(
    hosts: Annotated[int, typer.Option("--hosts", help="How many hosts, on two subnets when more than one.")] = 1,
    uefi: Annotated[bool, typer.Option("--uefi", help="UEFI firmware; otherwise BIOS.")] = False,
    root_fs: Annotated[str, typer.Option("--root-fs", help="The root filesystem: ext4 or xfs.")] = "ext4",
    emergency: Annotated[bool, typer.Option("--emergency", help="Blank disks, booted from the network.")] = False,
    broken: Annotated[
        bool, typer.Option("--broken", help="With --emergency: the disks of hosts that start no more.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Pack the recovery image fast instead of small.")] = False,
    accel: AccelOption = "tcg",
) -> None:
    """Show the main job on real machines: Debian 12 hosts become Debian 13 hosts and lose nothing."""
    from lab import demo as showing

    if broken and not emergency:
        raise UsageError("--broken says what --emergency finds; give both")

    if root_fs not in ROOT_FILESYSTEMS:
        raise UsageError(f"--root-fs {root_fs} is none that recovery makes; choose {' or '.join(ROOT_FILESYSTEMS)}")

    wish = showing.Wish(hosts, uefi=uefi, root_fs=root_fs, emergency=emergency, broken=broken, quick=quick, accel=accel)
    showing.show(wish, lambda line: print(line, flush=True))


@app.command()
def down(
    names: Annotated[list[str] | None, typer.Argument(help="Labs to take down, whoever runs them.")] = None,
) -> None:
    """Remove what labs left behind whose owner is dead; with names, take these labs down though they live."""
    gone = session.down(names or [])
    print(f"taken down: {', '.join(gone)}" if gone else "nothing to take down")


def _table(machines: list[Machine]) -> Table:
    table = Table("machine", "address", "log in", "console")
    for machine in machines:
        table.add_row(machine.name, machine.address, run.replayable(machine.ssh().login_command()),
                      str(machine.console.log))
    return table
