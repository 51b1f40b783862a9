"""What of a store may go, and why the rest stays. Pure: what is there and what is needed in, a plan out.

Reachability over digests, on the safe side: whatever a kept JSON blob mentions, as a digest or by the name of a ref,
is kept too, whatever the field is called. So a delta keeps both its ends, a release its recovery image, an OCI image
index its manifests. The rules are written down in docs/protocols/release.md, "What may go".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from plumbing.digest import hex_of

GRACE_S = 86_400.0
"""How old what nothing names must be before it goes, in seconds: a build, a pull or a `reroot image build` that was cut
short between store and catalogue may still name it."""


@dataclass(frozen=True)
class Blob:
    """One blob: its size in bytes, and the seconds since a writer last stored or claimed it."""

    size: int
    age_s: float


@dataclass(frozen=True)
class Need:
    """Something outside the store that needs `what`: a digest, a ref, or a ref without its last part."""

    what: str
    why: str


@dataclass(frozen=True)
class Fate:
    """What happens to one ref or blob, and why; `size` in bytes, 0 for a ref."""

    name: str
    size: int
    goes: bool
    why: str


@dataclass(frozen=True)
class Plan:
    """The fate of every ref and of every blob, by name."""

    refs: tuple[Fate, ...]
    blobs: tuple[Fate, ...]

    def going(self) -> tuple[list[str], list[str]]:
        """Return the refs and the digests to remove."""
        return [one.name for one in self.refs if one.goes], [one.name for one in self.blobs if one.goes]

    def bytes(self, *, going: bool) -> int:
        """Return how many bytes of blobs go, or stay."""
        return sum(one.size for one in self.blobs if one.goes == going)


def decide(
    refs: Mapping[str, str], unnamed: Sequence[str], blobs: Mapping[str, Blob], read: Callable[[str], bytes | None],
    needs: Sequence[Need], *, grace_s: float = GRACE_S, unpublished: bool = False,
) -> Plan:
    """Decide what goes.

    `refs` maps every ref to its manifest's digest, `unnamed` are the digests index.json lists without a ref, `read`
    returns a blob's bytes when it could be JSON. Refs that nothing needs go only with `unpublished`.
    """
    reasons: dict[str, str] = {}

    def keep(digest: str, why: str) -> None:
        todo = [digest]
        while todo:
            found = todo.pop()
            if found in reasons:
                continue
            reasons[found] = why
            data = read(found) if found in blobs else None
            if data is not None:
                todo += mentioned(data, refs)

    for need in needs:
        for digest in resolve(need.what, refs):
            keep(digest, need.why)
    for digest in unnamed:
        keep(digest, "listed in index.json without a name")
    spared = {ref: why for ref, digest in refs.items()
              if (why := _spared(digest, blobs, grace_s, unpublished)) is not None and digest not in reasons}
    for ref, why in spared.items():
        keep(refs[ref], f"{ref}: {why}")
    return Plan(
        tuple(Fate(ref, 0, digest not in reasons, spared.get(ref) or reasons.get(digest, "nothing needs it"))
              for ref, digest in sorted(refs.items())),
        tuple(_blob_fate(digest, blob, reasons.get(digest), grace_s) for digest, blob in sorted(blobs.items())))


def resolve(what: str, refs: Mapping[str, str]) -> list[str]:
    """Return the digests that a digest, a ref, a catalogue path or a ref without its architecture means."""
    if hex_of(what) is not None:
        return [what]
    name = what.removeprefix("releases/").removesuffix(".json")
    if not name:
        return []
    return [digest for ref, digest in refs.items() if ref == name or ref.startswith(f"{name}/")]


def mentioned(data: bytes, refs: Mapping[str, str]) -> list[str]:
    """Return every digest that JSON holds anywhere, and those of the refs and catalogue paths it names."""
    try:
        found = list(_strings(json.loads(data)))
    except (ValueError, RecursionError):
        return []
    names = (text.removeprefix("releases/").removesuffix(".json") for text in found)
    return [text for text in found if hex_of(text) is not None] + [refs[name] for name in names if name in refs]


def _strings(value: object) -> Iterator[str]:
    todo = [value]
    while todo:
        found = todo.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, dict):
            todo += [*found, *found.values()]
        elif isinstance(found, list):
            todo += found


def _spared(digest: str, blobs: Mapping[str, Blob], grace_s: float, unpublished: bool) -> str | None:
    """Return why a ref stays although nothing outside the store needs it, None when it does not."""
    blob = blobs.get(digest)
    if blob is None:
        return "its manifest is missing; restore the store from a backup"
    if blob.age_s < grace_s:
        return "younger than the grace time"
    return None if unpublished else "not in the catalogue; --unpublished removes it"


def _blob_fate(digest: str, blob: Blob, why: str | None, grace_s: float) -> Fate:
    if why is not None:
        return Fate(digest, blob.size, False, why)
    if blob.age_s < grace_s:
        return Fate(digest, blob.size, False, "younger than the grace time: something may be about to name it")
    return Fate(digest, blob.size, True, "nothing names it")
