"""What each file and each part of an initramfs weighs and why it is in, and what the whole may weigh. Pure."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import zstandard

from imaging.recovery_image.contents import Item
from plumbing.errors import CorruptError, RefusedError

MEMORY_BESIDES_BYTES = 144 << 20
"""What a machine uses beside the initramfs: 40 MiB at the rescue menu (measured: 6.1 cloud kernel, 256 MiB), 96 that
must be free for the work (recovery.phases.begin.LEAST_MEMORY_BYTES), and a reserve."""


@dataclass(frozen=True)
class Line:
    """One part: bytes as they lie in the image, its share of the compressed archive, and the reason."""

    part: str
    files: int
    raw_bytes: int
    share_bytes: int
    why: str


@dataclass(frozen=True)
class FileLine:
    """One file: bytes as they lie in the image, its share of the compressed archive, and the reason."""

    path: str
    raw_bytes: int
    share_bytes: int
    why: str


@dataclass(frozen=True)
class Budget:
    """What may be had at most, in bytes: the compressed initramfs, and that with the kernel (what PXE fetches)."""

    initramfs_bytes: int
    payload_bytes: int


@dataclass(frozen=True)
class Ledger:
    """All parts and all files, heaviest first; `packed_bytes` is what the compressed archive really weighs."""

    lines: tuple[Line, ...]
    packed_bytes: int
    kernel_bytes: int
    budget: Budget
    files: tuple[FileLine, ...] = ()
    """Empty for an image of an older version."""

    def to_json(self) -> bytes:
        """Write the ledger as JSON."""
        return json.dumps({"spec": 1, "packed_bytes": self.packed_bytes, "kernel_bytes": self.kernel_bytes,
                           "budget_bytes": self.budget.initramfs_bytes,
                           "payload_budget_bytes": self.budget.payload_bytes,
                           "lines": [asdict(line) for line in self.lines],
                           "files": [asdict(line) for line in self.files]}, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Ledger:
        """Read what `to_json` wrote; raises CorruptError on anything else."""
        try:
            value = json.loads(data)
            lines = tuple(Line(str(row["part"]), int(row["files"]), int(row["raw_bytes"]), int(row["share_bytes"]),
                               str(row["why"])) for row in value["lines"])
            files = tuple(FileLine(str(row["path"]), int(row["raw_bytes"]), int(row["share_bytes"]), str(row["why"]))
                          for row in value.get("files", []))
            initramfs = int(value["budget_bytes"])
            return cls(lines, int(value["packed_bytes"]), int(value.get("kernel_bytes", 0)),
                       Budget(initramfs, int(value.get("payload_budget_bytes", initramfs))), files)
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError("this is not a ledger of a recovery image; build the image again") from error

    def hold_budget(self) -> None:
        """Raise RefusedError, naming the heaviest parts and files, when archive or payload is over its budget."""
        payload = self.packed_bytes + self.kernel_bytes
        for what, weight, most in (("the initramfs", self.packed_bytes, self.budget.initramfs_bytes),
                                   ("kernel and initramfs", payload, self.budget.payload_bytes)):
            if weight <= most:
                continue
            parts = [f"{line.part} {line.share_bytes / 1024:.0f} KiB" for line in self.lines[:3]]
            files = [f"/{line.path} {line.share_bytes / 1024:.0f} KiB" for line in self.files[:3]]
            raise RefusedError(f"{what} weighs {weight / 1024:.0f} KiB, over its budget of {most / 1024:.0f} KiB "
                               f"(heaviest: {', '.join(parts)}; files: {', '.join(files)}); drop a part or raise the "
                               "budget")

    @property
    def memory_bytes(self) -> int:
        """What Linux must call MemTotal, in bytes: the initramfs packed and unpacked, and what is used beside it."""
        return sum(line.raw_bytes for line in self.lines) + self.packed_bytes + MEMORY_BESIDES_BYTES

    def file_table(self) -> str:
        """Return every file as text for people."""
        rows = [f"{'KiB':>8} {'packed':>8}  file"]
        rows += [f"{line.raw_bytes / 1024:>8.1f} {line.share_bytes / 1024:>8.1f}  /{line.path}  ({line.why})"
                 for line in self.files]
        return "\n".join(rows)

    def table(self) -> str:
        """Return the ledger as text for people."""
        rows = [f"{'part':<32} {'files':>5} {'KiB':>8} {'packed':>8}  why"]
        rows += [f"{line.part:<32} {line.files:>5} {line.raw_bytes / 1024:>8.0f} {line.share_bytes / 1024:>8.0f}  "
                 f"{line.why}" for line in self.lines]
        raw = sum(line.raw_bytes for line in self.lines)
        rows.append(f"{'total':<32} {sum(line.files for line in self.lines):>5} {raw / 1024:>8.0f} "
                    f"{self.packed_bytes / 1024:>8.0f}  budget {self.budget.initramfs_bytes / 1024:.0f} KiB")
        rows.append(f"{'with the kernel':<32} {'':>14} {(self.packed_bytes + self.kernel_bytes) / 1024:>8.0f}  budget "
                    f"{self.budget.payload_bytes / 1024:.0f} KiB; a machine needs "
                    f"{self.memory_bytes / (1 << 20):.0f} MiB of memory")
        return "\n".join(rows)


REASONS = {
    "CPython": "the interpreter that everything of reroot runs in",
    "standard library": "what the rooms, the libraries and the interpreter import",
    "standard library, compiled": "sockets, digests, dates and the like in C",
    "shared libraries": "libc, the loader, and what the programs and modules link to",
    "library cryptography": "Ed25519 signatures of orders, requests and the catalogue",
    "library _cffi_backend": "cryptography needs it",
    "library zstandard": "unpacks the frames of a release",
    "library blake3": "digest of every frame and file",
    "library tuf": "trust in the catalogue: rollback, freeze, thresholds",
    "library securesystemslib": "keys and envelopes under tuf and orders",
    "library pyroute2": "addresses, routes and links",
    "configuration": "the first process, the root of trust, names for user 0",
    "app: recovery": "the work itself: disks, restore, verification, bootloader",
    "app: imaging": "reads releases and their catalogue, captures what is precious",
    "app: precious": "what survives the wipe",
    "app: fleet": "the agent on the living host",
    "app: throttle": "tickets round the download",
    "app: plumbing": "processes, durable files, HTTP, error kinds",
}
"""Why a part that is made of many files is in; other parts say it file by file."""


def weigh(items: Iterable[Item], packed_bytes: int, kernel_bytes: int, budget: Budget) -> Ledger:
    """Return the ledger of an archive of `items` that weighs `packed_bytes` compressed, beside a kernel.

    One compressed stream has no exact weight per file: each file is compressed by itself, fast, and the sum
    scaled to the real total.
    """
    packer = zstandard.ZstdCompressor(level=3)
    single: list[tuple[Item, int]] = []
    files: dict[str, int] = defaultdict(int)
    raw: dict[str, int] = defaultdict(int)
    alone: dict[str, int] = defaultdict(int)
    why: dict[str, str] = {}
    for item in items:
        if not item.is_file:
            continue
        files[item.part] += 1
        raw[item.part] += len(item.data)
        single.append((item, len(packer.compress(item.data))))
        alone[item.part] += single[-1][1]
        why.setdefault(item.part, item.why)
    scale = packed_bytes / max(1, sum(alone.values()))
    lines = [Line(part, files[part], raw[part], round(alone[part] * scale), REASONS.get(part, why[part]))
             for part in raw]
    rows = [FileLine(item.path, len(item.data), round(weight * scale), item.why) for item, weight in single]
    return Ledger(tuple(sorted(lines, key=lambda line: (-line.share_bytes, line.part))), packed_bytes, kernel_bytes,
                  budget, tuple(sorted(rows, key=lambda row: (-row.share_bytes, row.path))))
