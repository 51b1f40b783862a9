"""The boot area on the ESP: the menu's text (`menu`, pure), its files, and which entry starts.

Everything here works on the mounted ESP, or any folder that stands for it. The rules are docs/protocols/boot-area.md.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from plumbing import durable
from plumbing.errors import CorruptError, DiskError, NotFoundError, RefusedError
from recovery import grubenv
from recovery.disks import free_bytes, require_space

Entry = Literal["system", "recovery"]
SAFE_WORD = re.compile(r"[A-Za-z0-9._:/=,@%+~\[\]-]+")
_SLACK_BYTES = 1 << 20
_CONSOLES = ("console=tty0", "console=ttyS0,115200")


@dataclass(frozen=True)
class SystemBoot:
    """How the system on the root starts: by kernel, or by its own `config`; paths are on the root, from `/`."""

    kernel: str
    initrd: str | None
    arguments: tuple[str, ...] = ()
    config: str | None = None


@dataclass(frozen=True)
class BootSpec:
    """What the menu needs to know; `title` is for people (the host's name).

    `root` is how the system's kernel names its root, `local` how recovery's names /local.
    """

    title: str
    root: str
    root_fs_uuid: str
    local: str | None
    control: str
    system: SystemBoot
    recovery_arguments: tuple[str, ...] = (*_CONSOLES, "panic=30")
    timeout_s: int = 2


@dataclass(frozen=True)
class BootState:
    """What starts: `saved` for good, `once` the next time only; None when unset or unreadable."""

    saved: str | None
    once: str | None


@dataclass(frozen=True)
class RecoveryFiles:
    """The parts of a recovery image that go to the ESP, verified by whoever fetched them."""

    vmlinuz: Path
    initrd: Path
    grub_efi: Path | None


def menu(spec: BootSpec) -> str:
    """Return the text of grub.cfg; raises RefusedError when a word could mean something else to GRUB or the kernel."""
    local = [f"reroot.local={spec.local}"] if spec.local else []
    recovery = _words(*local, f"reroot.control={spec.control}", *spec.recovery_arguments)
    return f"""\
# Written by reroot; every change is lost when the agent or recovery writes it anew.
if serial --unit=0 --speed=115200; then
  terminal_input console serial
  terminal_output console serial
fi
set reroot_esp="$root"
set timeout={spec.timeout_s}
load_env --file "($reroot_esp)/reroot/grubenv" saved_entry next_entry
# a fallback is a number: system is 0 where it exists, recovery comes after it
set default=recovery
if [ "$next_entry" = recovery ]; then
  if [ "$saved_entry" = system ]; then set fallback=0; fi
elif [ "$next_entry" = system -o "$saved_entry" = system ]; then
  set default=system
  set fallback=1
fi
if [ "$saved_entry" = system -o "$next_entry" = system ]; then
  menuentry {_quote(f"Start the system of {spec.title}")} --id system {{
    search --no-floppy --fs-uuid --set=root {_words(spec.root_fs_uuid)}
{_system(spec)}  }}
fi
menuentry {_quote(f"Start reroot recovery of {spec.title}")} --id recovery {{
  set root="$reroot_esp"
  linux /reroot/vmlinuz {recovery}
  initrd /reroot/initrd.img
}}
if [ -n "$next_entry" ]; then
  set next_entry=
  save_env --file "($reroot_esp)/reroot/grubenv" next_entry
fi
"""


def _system(spec: BootSpec) -> str:
    system = spec.system
    arguments = _words(f"root={spec.root}", "ro", *system.arguments)
    direct = f"linux {_words(system.kernel)} {arguments}"
    initrd = [] if system.initrd is None else [f"initrd {_words(system.initrd)}"]
    if system.config is None:
        lines = [direct, *initrd]
    else:
        config = _words(system.config)
        # its own environment block and fallback, so that it cannot write or take ours
        lines = [f"if [ -s {config} ]; then", "  unset fallback", "  unset saved_entry",
                 '  set prefix="($root)/boot/grub"', f"  configfile {config}", "else",
                 *(f"  {line}" for line in (direct, *initrd)), "fi"]
    return "".join(f"    {line}\n" for line in lines)


def _words(*words: str) -> str:
    for word in words:
        if not SAFE_WORD.fullmatch(word):
            raise RefusedError(f"{word!r:.80} cannot be put into the boot menu: GRUB or the kernel would read some of "
                               "its characters as something else; use letters, digits and ._:/=,@%+~[]-")
    return " ".join(f"'{word}'" if "[" in word or "]" in word else word for word in words)


def _quote(title: str) -> str:
    plain = "".join(char if char.isascii() and char.isprintable() else "?" for char in title)[:100]
    return "'" + plain.replace("'", "'\\''") + "'"


def find_system(root: Path, source: str, root_fs_uuid: str, *, extra: tuple[str, ...] = ()) -> SystemBoot:
    """Look at the mounted root and return how to start it; `extra` are kernel arguments to add, such as a console.

    Its kernel is started directly if it is where distributions put it: a grub.cfg of the root would load modules of
    another GRUB version into ours. Raises NotFoundError when there is neither a kernel nor a grub.cfg for this root.
    """
    kernel, initrd = _kernel(root)
    config = "/boot/grub/grub.cfg"
    text = _read_text(root / config[1:])
    own = root_fs_uuid in text or source.removeprefix("PARTUUID=") in text
    if kernel is None and not own:
        raise NotFoundError(f"no kernel was found on {root}: neither /vmlinuz nor /boot/vmlinuz-*; put a kernel package"
                            " into the release")
    arguments = tuple(dict.fromkeys((*_own_arguments(root), *extra)))
    return SystemBoot(kernel or "/vmlinuz", initrd, arguments, config if kernel is None else None)


def _kernel(root: Path) -> tuple[str | None, str | None]:
    if _is_file(root, "/vmlinuz"):
        return "/vmlinuz", "/initrd.img" if _is_file(root, "/initrd.img") else None
    names = [name for name in (path.name for path in (root / "boot").glob("vmlinuz-*"))
             if SAFE_WORD.fullmatch(name) and "rescue" not in name and _is_file(root, f"/boot/{name}")]
    if not names:
        return None, None
    newest = max(names, key=_version_key)
    version = newest.removeprefix("vmlinuz-")
    initrds = (f"/boot/initrd.img-{version}", f"/boot/initramfs-{version}.img", f"/boot/initrd-{version}")
    return f"/boot/{newest}", next((path for path in initrds if _is_file(root, path)), None)


def _version_key(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _is_file(root: Path, path: str) -> bool:
    """Whether `path` is a regular file of the root, links followed inside it and never out of it."""
    for _ in range(8):
        here = root / os.path.normpath(path).lstrip("/")
        if not here.is_symlink():
            return here.is_file()
        path = os.path.normpath(os.path.join("/", os.path.dirname(path), os.readlink(here)))  # noqa: PTH115, PTH120
    return False


def _own_arguments(root: Path) -> list[str]:
    words = list(kept_arguments(_read_text(root / "etc/kernel/cmdline")))
    if not words:
        for line in _read_text(root / "etc/default/grub").splitlines():
            if found := re.fullmatch(r"\s*GRUB_CMDLINE_LINUX(?:_DEFAULT)?=(['\"]?)([^'\"`$\\]*)\1\s*(?:#.*)?", line):
                words += kept_arguments(found[2])
    return words


def kept_arguments(line: str) -> tuple[str, ...]:
    """Return the words of a kernel command line that belong to the host, not to whoever started it. Pure."""
    ours = ("root=", "ro", "rw", "initrd=", "BOOT_IMAGE=", "reroot.")
    return tuple(word for word in line.split() if SAFE_WORD.fullmatch(word)
                 and not any(word == name or (name[-1] in "=." and word.startswith(name)) for name in ours))


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return ""
    except OSError as error:
        raise DiskError(f"{path} cannot be read ({error.strerror}); look at the disk") from error


def install(esp: Path, files: RecoveryFiles, spec: BootSpec, *, when_unset: Entry) -> bool:
    """Put recovery, GRUB for UEFI and the menu on the mounted ESP, durably; True when anything changed.

    Files that are there already, byte for byte, are left alone. The entry that starts is not changed; where none is
    set (a new boot area, a damaged one) it becomes `when_unset`: system on a living host, recovery from recovery.
    Raises DiskError before anything is written when the ESP is too small.
    """
    image = [(files.vmlinuz, esp / "reroot/vmlinuz"), (files.initrd, esp / "reroot/initrd.img")]
    loaders = [] if files.grub_efi is None else [
        (files.grub_efi, esp / "EFI/reroot/grubx64.efi"), (files.grub_efi, esp / "EFI/BOOT/BOOTX64.EFI")]
    text = menu(spec).encode()
    todo = [(source, target) for source, target in (*image, *loaders) if _digest(source) != _digest(target)]
    needed = sum(source.stat().st_size for source, _ in todo) + _SLACK_BYTES
    reclaimed = sum(target.stat().st_size for _, target in todo if target.exists())
    if free_bytes(esp) < needed and free_bytes(esp) + reclaimed >= needed and state(esp).saved == "system":
        for _, target in todo:  # a small ESP: the old recovery image makes room, the system can still start
            if target.is_relative_to(esp / "reroot"):
                target.unlink(missing_ok=True)
    require_space(esp, needed, "the recovery image")
    # The loader comes last: the firmware may start it from then on, and without menu and default it starts nothing.
    _copy(pair for pair in todo if pair in image)
    if state(esp).saved is None:
        set_default(esp, when_unset)
    changed = bool(todo)
    if _read_text(esp / "reroot/grub.cfg").encode() != text:
        durable.write_file(esp / "reroot/grub.cfg", text)
        changed = True
    _copy(pair for pair in todo if pair in loaders)
    return changed


def _copy(pairs: Iterable[tuple[Path, Path]]) -> None:
    for source, target in pairs:
        durable.make_folder(target.parent)
        _keep_foreign(target)
        durable.write_file(target, source.read_bytes())
        if _digest(source) != _digest(target):
            raise CorruptError(f"{target} does not read back as it was written; look at the disk")


def write_menu(esp: Path, spec: BootSpec) -> None:
    """Write the menu alone, durably: the system's kernel or root changed."""
    durable.make_folder(esp / "reroot")
    durable.write_file(esp / "reroot/grub.cfg", menu(spec).encode())


def _keep_foreign(target: Path) -> None:
    """Keep a removable-media loader that is not ours, once."""
    kept = target.with_name(target.name + ".before-reroot")
    if target.name != "BOOTX64.EFI" or kept.exists() or not target.exists():
        return
    there = target.read_bytes()
    if b"/reroot/grub.cfg" not in there:  # the configuration embedded in our images
        durable.write_file(kept, there)


def _digest(path: Path) -> bytes | None:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except FileNotFoundError:
        return None


def state(esp: Path) -> BootState:
    """Return what the boot area starts."""
    values = grubenv.read(esp / "reroot/grubenv")
    return BootState(values.get("saved_entry") or None, values.get("next_entry") or None)


def set_default(esp: Path, entry: Entry) -> None:
    """Make `entry` start from now on, durable when this returns; a pending one shot is dropped."""
    durable.make_folder(esp / "reroot")
    grubenv.write(esp / "reroot/grubenv", {"saved_entry": entry, "next_entry": ""})


def boot_once(esp: Path, entry: Entry) -> None:
    """Make `entry` start the next time only, durable when this returns; afterwards the default starts again.

    Raises RefusedError when the default is not known: after the one shot the machine would not know what to start.
    """
    if state(esp).saved is None:
        raise RefusedError(f"{esp}/reroot/grubenv does not say what starts by default; install the boot area first")
    grubenv.write(esp / "reroot/grubenv", {"next_entry": entry})
