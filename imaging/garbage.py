"""Taking out of a store what nothing needs. I/O: looks at the store, asks imaging.needed, removes.

Order: under the store's lock everything is looked at, `index.json` is replaced durably, only then blobs are unlinked. A
crash in between leaves blobs that nothing names, which the next collection removes; no moment has a ref without its
blobs. A writer that found a blob in the store claimed it under the same lock, which makes it too young to go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from imaging.needed import GRACE_S, Blob, Need, Plan, decide
from imaging.store import MAX_JSON_BYTES, Store
from plumbing import clock
from plumbing.durable import sync_folder, told
from plumbing.errors import UsageError

PARTIAL = ".partial"
"""The store's folder of downloads that were cut short and may go on (imaging.transfer)."""


def collect(
    store: Store, needs: Callable[[], Sequence[Need]], *, remove: bool, grace_s: float = GRACE_S,
    unpublished: bool = False, now: float | None = None,
) -> Plan:
    """Return what goes and why the rest stays, and with `remove` take it out.

    `needs` is asked while nobody can publish. Ages are counted to `now` (wall seconds). Raises CorruptError when the
    store is damaged: what cannot be read cannot be known to be unneeded, so nothing is removed then.
    """
    if grace_s < 0:
        raise UsageError("a grace time cannot be negative; write 0 for none")
    at = clock.wall() if now is None else now
    if remove:
        store.create()
    with store.locked() if remove else nullcontext():
        blobs = {digest: Blob(status.st_size, at - status.st_mtime) for digest, status in store.blobs()}
        plan = decide({ref: found.digest for ref, found in store.refs().items()}, store.unnamed(), blobs,
                      lambda digest: _json(store, digest, blobs[digest].size), needs(), grace_s=grace_s,
                      unpublished=unpublished)
        if remove:
            _remove(store, plan, [path for path in partial(store) if at - path.stat().st_mtime >= grace_s])
    return plan


def partial(store: Store) -> list[Path]:
    """Return the files of downloads that were cut short."""
    folder = store.path / PARTIAL
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _remove(store: Store, plan: Plan, leftovers: Sequence[Path]) -> None:
    refs, digests = plan.going()
    if refs:
        store.forget(refs)
    with told(f"the store {store.path}", "whatever has a name is still served; run gc again"):
        halves = store.path.glob(".index.json.*")  # of publishers that were killed; nobody alive writes one now
        for path in (*map(store.blob_path, digests), *leftovers, *halves):
            path.unlink(missing_ok=True)
        if digests:
            sync_folder(store.path / "blobs" / "sha256")


def _json(store: Store, digest: str, size: int) -> bytes | None:
    """Return a blob that looks like JSON, checked against its digest; None for anything else."""
    if size > MAX_JSON_BYTES:
        return None
    with store.blob_path(digest).open("rb") as stream:
        if stream.read(1) != b"{":
            return None
    return store.read_json_blob(digest)
