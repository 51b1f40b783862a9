"""`reroot recovery …`: build the recovery image, list them, show what one weighs, write one to a file. I/O."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from cli import console
from cli.admin import SITE, KeysOption, SiteOption, catalogue_of
from plumbing import durable
from plumbing.errors import DiskError, NotFoundError, UsageError

app = typer.Typer(no_args_is_help=True, help="The recovery image: what runs while a host has no root.")

RefArgument = Annotated[
    str, typer.Argument(metavar="NAME/VERSION/ARCH", help="The recovery image; /ARCH may be left out.")]
OutOption = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")]
ArgumentOption = Annotated[
    list[str] | None, typer.Option("--argument", metavar="WORD", help="One more word for the kernel; repeatable.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON; sizes in bytes.")]


@app.command()
def build(
    image: RefArgument,
    kernel_package: Annotated[
        str, typer.Option(help="The distribution's kernel package, or a metapackage.")] = "linux-image-cloud-amd64",
    kernel_root: Annotated[
        Path | None, typer.Option(help="A root with /boot/vmlinuz-* and /lib/modules, instead.")] = None,
    budget: Annotated[int, typer.Option(min=1, max=1024, help="MiB that the initramfs may weigh.")] = 12,
    payload_budget: Annotated[
        int, typer.Option(min=1, max=2048, help="MiB that kernel and initramfs may weigh.")] = 26,
    level: Annotated[int, typer.Option(min=1, max=22, help="zstd level: 19 takes half a minute, 3 a second.")] = 19,
    cache: Annotated[Path | None, typer.Option(help="Where kernel packages are kept.", show_default=False)] = None,
    site: SiteOption = SITE, keys: KeysOption = None, as_json: JsonOption = False,
) -> None:
    """Build a recovery image into the site's store and publish it in the catalogue."""
    from control.site import Site
    from imaging import recovery_manifest
    from imaging.recovery_image import build as building
    from imaging.recovery_image import kernel as kernels
    from imaging.recovery_image.ledger import Budget
    from imaging.store import Store

    name, version, arch = _split(image)
    opened = Site.open(site)
    kernel = kernels.from_root(kernel_root) if kernel_root is not None else kernels.from_package(
        cache or _cache(), kernel_package)
    catalogue = catalogue_of(site, keys)
    recipe = building.Recipe(name, version, arch, kernel, catalogue.root_json(), level=level,
                             budget=Budget(budget << 20, payload_budget << 20))
    made = building.make(recipe, say=lambda text: None if as_json else print(text))
    manifest = building.publish(Store(opened.store), recipe, made)
    target = recovery_manifest.target(name, version, arch)
    catalogue.publish(target, manifest)
    sizes = {title: len(data) for title, data in made.parts.items()}
    if as_json:
        print(json.dumps({"target": target, "kernel": kernel.release, "sizes": sizes}, indent=1))
        return
    print(made.ledger.table())
    print("\n".join(f"{title:<16} {size / 1024:>8.0f} KiB" for title, size in sizes.items()))
    print(f"published as {target}")


@app.command(name="list")
def listing(site: SiteOption = SITE, as_json: JsonOption = False) -> None:
    """List the recovery images, and whether store and catalogue have them; a host needs both."""
    from control.site import Site
    from imaging.catalogue import Catalogue
    from imaging.store import Store

    opened = Site.open(site)
    published = {path: listed.digest for path, listed in Catalogue(opened.catalogue, opened.keys).listed().items()
                 if path.startswith("recovery/")}
    stored = {f"{ref}.json": found.digest for ref, found in Store(opened.store).refs().items()
              if ref.startswith("recovery/")}
    images = [{"name": target.removeprefix("recovery/").removesuffix(".json"), "target": target,
               "digest": (digest := published.get(target, stored.get(target))),
               "published": target in published, "stored": stored.get(target) == digest}
              for target in sorted({*published, *stored})]
    if as_json:
        print(json.dumps(images, indent=1))
    elif not images:
        print("no recovery images yet; `reroot recovery build` makes one")
    else:
        console.columns([("RECOVERY", "PUBLISHED", "STORED")] + [
            (str(image["name"]), *("yes" if image[key] else "no" for key in ("published", "stored")))
            for image in images])


@app.command()
def ledger(
    image: RefArgument,
    files: Annotated[bool, typer.Option("--files", help="Every file, not every part.")] = False,
    site: SiteOption = SITE, as_json: JsonOption = False,
) -> None:
    """Show what each part, or each file, of a recovery image weighs and why it is in."""
    from control.site import Site
    from imaging import recovery_manifest
    from imaging.recovery_image.ledger import Ledger
    from imaging.store import Store

    name, version, arch = _split(image)
    store = Store(Site.open(site).store)
    digest, _size = recovery_manifest.parts(store.manifest(recovery_manifest.ref(name, version, arch)))["ledger.json"]
    found = Ledger.from_json(store.read_json_blob(digest))
    print(found.to_json().decode() if as_json else found.file_table() if files else found.table())


@app.command()
def iso(
    image: RefArgument, out: OutOption, argument: ArgumentOption = None, site: SiteOption = SITE,
) -> None:
    """Write the recovery image as an ISO: a CD, or copied as it is to a stick; starts BIOS and UEFI machines."""
    from imaging.recovery_image import iso as medium

    parts, words = _to_start(image, site, argument)
    data = medium.make(medium.Medium(parts["vmlinuz"], parts["initrd.img"], words, medium.source_date(os.environ)))
    _write(out, data)
    print(f"as a CD: burn it; as a stick (all on it goes): dd if={out} of=/dev/DISK bs=4M conv=fsync")


@app.command()
def uki(
    image: RefArgument, out: OutOption, argument: ArgumentOption = None, site: SiteOption = SITE,
) -> None:
    """Write the recovery image as one EFI program, for an ESP (EFI/BOOT/BOOTX64.EFI) or UEFI HTTP boot."""
    from control.api.boot import UNIFIED
    from control.site import Site
    from imaging.recovery_image import unified

    parts, words = _to_start(image, site, argument)
    _write(out, unified.make(parts["vmlinuz"], parts["initrd.img"], words, "/".join(_split(image))))
    if out.absolute() != (served := Site.open(site).boot / UNIFIED):
        print(f"as {served} it is what UEFI HTTP boot gets")


@app.command()
def program(
    host: Annotated[str, typer.Argument(help="The host that may run it; as in hosts.toml.")],
    file: Annotated[Path, typer.Argument(help="A script (#!/bin/sh: busybox) or a static executable.")],
    out: OutOption,
    days: Annotated[int, typer.Option(min=1, max=3660, help="How long it may be run.")] = 30,
    site: SiteOption = SITE,
) -> None:
    """Sign a program for one host's rescue menu; put the file on that host as /local/recover/recover."""
    from control.site import Site
    from fleet.hosts import load as load_hosts
    from imaging.keys import load_private
    from plumbing import clock
    from recovery import ownprogram

    opened = Site.open(site)
    load_hosts(opened.hosts).get(host)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{file} cannot be read ({error.strerror}); name the program to sign") from error
    made = ownprogram.Program(host, clock.wall() + days * 86400, data)
    _write(out, ownprogram.sign(made, load_private(opened.orders_key)))


def _to_start(image: str, site: Path, arguments: list[str] | None) -> tuple[dict[str, bytes], list[str]]:
    """Return kernel and initramfs of an image, checked against the catalogue, and what the kernel is told."""
    from control.config import load
    from control.site import Site
    from imaging import recovery_manifest
    from imaging.catalogue import Catalogue
    from imaging.store import Store

    opened = Site.open(site)
    config = load(opened.config)
    store = Store(opened.store)
    target = recovery_manifest.target(*_split(image))
    manifest = Catalogue(opened.catalogue, opened.keys).read(target)
    needed = ("vmlinuz", "initrd.img")
    parts = {title: store.read_json_blob(digest, size)
             for title, (digest, size) in recovery_manifest.parts(manifest, needed).items()}
    return parts, [f"reroot.control={config.server.public_url}", *config.boot.arguments, *(arguments or [])]


def _write(out: Path, data: bytes) -> None:
    if out.exists() and not out.is_file():
        raise UsageError(f"{out} is no file; write to a file, and copy that to a disk with dd")
    try:
        durable.write_file(out, data)
    except OSError as error:
        raise DiskError(f"{out} cannot be written ({error.strerror}); name a file in a folder that is there, with "
                        f"{len(data) >> 20} MiB of room") from error
    print(f"{out}: {len(data) / 1024:.0f} KiB")


def _split(image: str) -> tuple[str, str, str]:
    from imaging.release import check_word

    words = image.split("/")
    if len(words) == 2:
        words.append("amd64")
    if len(words) != 3 or not all(words):
        raise UsageError(f"{image!r} names no recovery image; write NAME/VERSION[/ARCH], such as debian/1")
    return check_word(words[0], "name"), check_word(words[1], "version"), check_word(words[2], "arch")


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "reroot" / "kernels"
