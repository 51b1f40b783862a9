"""From a builder's machine to a recovery image in the store: the driver of this room. I/O: runs programs, writes blobs.

`make` assembles every part in memory, `publish` writes the parts and one OCI artifact manifest. Nothing is published
that is over its budget or whose runtime did not prove itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import zstandard

import imaging
from imaging.recovery_image import grub, initramfs, ledger, modules, programs, python_runtime, rootfs
from imaging.recovery_image.contents import Item, as_tar
from imaging.recovery_image.kernel import Kernel
from imaging.recovery_image.ledger import Ledger
from imaging.recovery_manifest import ARTIFACT_TYPE, MEMORY, ref
from imaging.release import ARCH, EMPTY, EMPTY_TYPE, MANIFEST_TYPE, TITLE, VERSION, canonical, check_word
from imaging.store import Store
from plumbing.errors import UsageError

BLOB_TYPE = "application/octet-stream"

BUDGET = ledger.Budget(12 << 20, 26 << 20)
"""With Debian's cloud kernel and zstd at level 19; packed faster, an initramfs is larger."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """What to build: the image's name, version and arch, its kernel, its root of trust, and how.

    `roots` are the modules hosts run, `source` the folder that holds the rooms, `level` zstd's (1 fast, 19 small).
    """

    name: str
    version: str
    arch: str
    kernel: Kernel
    root_json: bytes
    profile: str = "virtio"
    main: str = "recovery.init"
    source: Path = Path(imaging.__file__).parents[1]
    roots: tuple[str, ...] = python_runtime.HOST_ROOTS
    extra: tuple[Item, ...] = ()
    budget: ledger.Budget = BUDGET
    level: int = 19


@dataclass(frozen=True)
class Image:
    """The finished parts by title, with the ledger and how long the runtime took to prove itself, in seconds."""

    parts: Mapping[str, bytes]
    ledger: Ledger
    proof: Mapping[str, float]


def make(recipe: Recipe, say: Say = lambda _: None) -> Image:
    """Assemble every part of a recovery image; the same builder and recipe give the same bytes.

    Raises NotFoundError when something is missing on the builder, CorruptError when the runtime does not work, and
    RefusedError when it is over its budget.
    """
    if recipe.arch != "amd64":
        raise UsageError(f"recovery images are made for amd64, not for {recipe.arch!r}")
    for value, what in ((recipe.name, "name"), (recipe.version, "version")):
        check_word(value, what)
    packing = initramfs.choose(recipe.kernel.config())
    drivers = modules.module_closure(recipe.kernel.modules, modules.profile(recipe.profile))
    say(f"kernel {recipe.kernel.release} ({recipe.kernel.origin}): {len(drivers.modules)} modules, built in: "
        f"{', '.join(drivers.builtin) or 'none'}, not there: {', '.join(x.name for x in drivers.absent) or 'none'}")
    runtime = python_runtime.assemble(recipe.source, recipe.roots)
    proof = python_runtime.prove(runtime)
    say(f"host runtime: {len(runtime.modules)} modules, {len(runtime.libraries)} libraries; it proved itself in "
        f"{max(proof.values()):.2f} s")
    tools, needed = programs.gather()
    more = python_runtime.library_items(lib for name, lib in needed.items() if name not in runtime.libraries)
    identity = {"name": recipe.name, "version": recipe.version, "arch": recipe.arch, "kernel": recipe.kernel.release}
    items = [*rootfs.skeleton(recipe.root_json, identity, recipe.main), *runtime.items, *tools, *more,
             *drivers.items(), *recipe.extra]
    archive = initramfs.archive(items)
    with ThreadPoolExecutor(max_workers=2) as pool:  # zstandard and lzma release the interpreter's lock
        packed = pool.submit(initramfs.compress, archive, packing, recipe.level)
        tar = pool.submit(pack, as_tar(runtime.items), recipe.level)
        initrd, runtime_tar = packed.result(), tar.result()
    kernel_image = recipe.kernel.image.read_bytes()
    weighed = ledger.weigh(items, len(initrd), len(kernel_image), recipe.budget)
    weighed.hold_budget()
    say(f"initramfs: {len(archive) >> 10} KiB, {len(initrd) >> 10} KiB as {packing}")
    parts = {
        "vmlinuz": kernel_image, "initrd.img": initrd, "runtime.tar.zst": runtime_tar,
        "grub-boot.img": grub.boot_sector(), "grub-core.img": grub.core("i386-pc"),
        "grubx64.efi": grub.core("x86_64-efi"), "ledger.json": weighed.to_json(),
    }
    return Image(parts, weighed, proof)


def pack(data: bytes, level: int) -> bytes:
    """Compress a tar for hosts: one zstd frame that names its raw size."""
    return zstandard.ZstdCompressor(level=level).compress(data)


def publish(store: Store, recipe: Recipe, image: Image) -> bytes:
    """Write the parts and their manifest into the store under recovery/NAME/VERSION/ARCH; returns the manifest."""
    config = store.add_bytes(EMPTY)
    found = [{"mediaType": BLOB_TYPE, "digest": store.add_bytes(data), "size": len(data),
              "annotations": {TITLE: title}} for title, data in image.parts.items()]
    manifest = canonical({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": EMPTY_TYPE, "digest": config, "size": len(EMPTY)},
        "layers": found,
        "annotations": {
            TITLE: recipe.name, VERSION: recipe.version, ARCH: recipe.arch,
            "dev.reroot.kernel": recipe.kernel.release,
            "dev.reroot.python": "{}.{}".format(*python_runtime.VERSION),
            MEMORY: str(image.ledger.memory_bytes),
        },
    })
    store.put_manifest(ref(recipe.name, recipe.version, recipe.arch), manifest)
    return manifest
