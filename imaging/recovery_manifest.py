"""A recovery image's manifest as hosts and builder read it: which parts it has. Pure.

The builder (imaging.recovery_image.build) writes it; whoever fetches an image asks `parts` what to fetch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from imaging.release import ARCH, TITLE, VERSION
from plumbing.errors import CorruptError

ARTIFACT_TYPE = "application/vnd.reroot.recovery.v1"
MEMORY = "dev.reroot.memory"
"""Annotation: bytes of memory that a machine must have to run the image."""
STARTED = ("vmlinuz", "initrd.img", "grub-boot.img", "grub-core.img", "grubx64.efi")
"""The parts that a machine needs on its disk to start recovery."""
TITLES = (*STARTED, "runtime.tar.zst", "ledger.json")
"""The layers of the artifact, by the names under which control serves them and recovery asks for them."""


def parts(manifest: bytes, needed: Sequence[str] = TITLES) -> dict[str, tuple[str, int]]:
    """Return title -> (digest, size in bytes) of the parts called `needed`; raises CorruptError when one is missing."""
    try:
        value = json.loads(manifest)
        if value["artifactType"] != ARTIFACT_TYPE:
            raise ValueError
        found = {str(layer["annotations"][TITLE]): (str(layer["digest"]), int(layer["size"]))
                 for layer in value["layers"]}
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError("this is no recovery image's manifest; check the name, or build it again") from error
    for title in needed:
        if title not in found:
            raise CorruptError(f"this recovery image has no {title}; build it again")
    return {title: found[title] for title in needed}


def own_ref(manifest: bytes) -> str:
    """Return the name in the store that a recovery image's own manifest tells; raises CorruptError."""
    try:
        notes = json.loads(manifest)["annotations"]
        return ref(*(str(notes[key]) for key in (TITLE, VERSION, ARCH)))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptError("this recovery image's manifest does not tell its name; build it again") from error


def memory_bytes(manifest: bytes) -> int:
    """Return what memory a machine must have, in bytes; 0 for an image of an older version, which does not say."""
    try:
        return int(json.loads(manifest).get("annotations", {}).get(MEMORY, "0"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptError("this recovery image's manifest tells no memory that it needs; build it again") from error


def ref(name: str, version: str, arch: str) -> str:
    """Return the name of a recovery image in the store."""
    return f"recovery/{name}/{version}/{arch}"


def target(name: str, version: str, arch: str) -> str:
    """Return the path of a recovery image's manifest in the catalogue."""
    return f"{ref(name, version, arch)}.json"
