from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from imaging.recovery_image import closure, elf_slim, programs
from imaging.recovery_image.grub import boot_sector, core
from plumbing.errors import CorruptError, NotFoundError
from plumbing.run import run

E2FSCK = programs.find(next(program for program in programs.PROGRAMS if program.name == "e2fsck"))


def test_the_closure_is_what_the_loader_would_load() -> None:
    listed = run(["ldd", E2FSCK]).text
    expected = set(re.findall(r"^\s+(\S+) => ", listed, re.M)) | {Path(name).name for name in
                                                                 re.findall(r"^\s+(/\S+) \(", listed, re.M)}
    assert set(closure.closure([E2FSCK])) == expected


def test_a_library_that_is_nowhere_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "e2fsck"
    broken.write_bytes(E2FSCK.read_bytes().replace(b"libext2fs.so.2", b"libextXfs.so.2"))
    with pytest.raises(NotFoundError, match=r"e2fsck needs libextXfs\.so\.2"):
        closure.closure([broken])


def test_a_library_opened_at_run_time_may_be_missing() -> None:
    assert "libnever.so.9" not in closure.closure([E2FSCK], also=["libnever.so.9"])


def test_the_folder_of_the_runpath_is_searched(tmp_path: Path) -> None:
    """Search paths relative to the object are followed; libraries of another machine type are passed over."""
    other = tmp_path / "libext2fs.so.2"
    real = closure.closure([E2FSCK])["libext2fs.so.2"].path
    data = bytearray(real.read_bytes())
    data[18:20] = b"\x28\x00"  # e_machine: ARM
    other.write_bytes(data)
    assert closure._locate("libext2fs.so.2", [str(tmp_path), str(real.parent)], Path("/"), "EM_X86_64") == real
    shutil.copy(real, other)
    closure.read_elf.cache_clear()
    assert closure._locate("libext2fs.so.2", [str(tmp_path)], Path("/"), "EM_X86_64") == other


def test_ld_so_conf_is_followed_through_its_includes(tmp_path: Path) -> None:
    (tmp_path / "etc/ld.so.conf.d").mkdir(parents=True)
    (tmp_path / "etc/ld.so.conf").write_text("# comment\ninclude /etc/ld.so.conf.d/*.conf\n/last\n")
    (tmp_path / "etc/ld.so.conf.d/a.conf").write_text("/opt/a # why\n")
    assert closure.configured_folders(tmp_path) == ["/opt/a", "/last"]


def test_what_is_not_elf_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\n")
    with pytest.raises(CorruptError, match="script is not an ELF file"):
        closure.read_elf(tmp_path / "script")


def test_a_slimmed_program_still_runs_and_is_not_larger(tmp_path: Path) -> None:
    slim = tmp_path / "e2fsck"
    slim.write_bytes(elf_slim.slim(E2FSCK))
    slim.chmod(0o755)
    assert slim.stat().st_size <= E2FSCK.stat().st_size
    assert b"1." in run([slim, "-V"], check=False).stderr


def test_search_paths_of_the_builder_are_taken_out(tmp_path: Path) -> None:
    """DT_DEBUG, which every program has, is made a DT_RUNPATH first: no compiler is needed to get one."""
    data = E2FSCK.read_bytes()
    before = closure.read_elf(E2FSCK)
    start = data.index(elf_slim._ENTRY.pack(21, 0))
    marked = data[:start] + elf_slim._ENTRY.pack(29, 1) + data[start + 16:]
    program = tmp_path / "e2fsck"
    program.write_bytes(marked)
    assert closure.read_elf(program).runpath
    closure.read_elf.cache_clear()
    program.write_bytes(elf_slim.without_search_path(marked))
    after = closure.read_elf(program)
    assert after.runpath == () and after.needed == before.needed


def test_missing_programs_name_their_package(tmp_path: Path) -> None:
    for program in programs.PROGRAMS:
        with pytest.raises(NotFoundError, match=f"{program.name} is not on this machine.*apt-get install "
                                                f"{program.package}"):
            programs.find(program, tmp_path)


def test_programs_come_with_their_libraries_and_no_applet_hides_one() -> None:
    items, libraries = programs.gather()
    kinds = {item.path: item.is_link for item in items}
    assert all(not kinds[f"bin/{program.name}"] for program in programs.PROGRAMS)
    assert kinds["bin/sh"] and kinds["bin/mount"] and kinds["bin/modprobe"] and kinds["bin/udhcpc"]
    assert {"libc.so.6", "ld-linux-x86-64.so.2", "libext2fs.so.2"} <= set(libraries)
    assert len(kinds) == len(items)


def test_grub_images_are_what_firmware_expects_and_look_for_our_menu() -> None:
    sector, bios, efi = boot_sector(), core("i386-pc"), core("x86_64-efi")
    assert len(sector) == 512 and sector[510:] == b"\x55\xaa"
    assert efi[:2] == b"MZ" and b"/reroot/grub.cfg" in efi
    assert 512 < len(bios) < 512 << 10  # two of them fit into a BIOS boot partition of 1 MiB


def test_grub_that_is_not_installed_names_its_package(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="apt-get install grub-efi-amd64-bin"):
        core("x86_64-efi", tmp_path)
    with pytest.raises(NotFoundError, match="apt-get install grub-pc-bin"):
        boot_sector(tmp_path)
