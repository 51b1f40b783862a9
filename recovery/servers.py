"""What the host side asks of its site's servers (I/O): the catalogue, its order, a release's index.

Used by the agent on the living host and by recovery: both believe the catalogue, and of the servers only what it names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from plumbing import durable
from plumbing.digest import sha256
from plumbing.errors import NetworkError, RerootError, TrustError
from plumbing.http import Client
from recovery.order import URL, Order, Target

if TYPE_CHECKING:
    from imaging.index import Index
    from imaging.release import Release
    from imaging.sources import FrameSource
    from imaging.trusted import TrustedCatalogue

Read = TypeVar("Read")

MAX_ORDER_BYTES = 1 << 20
ORDER_DEADLINE_S = 60.0
"""How long the answer to a question for the order may take from its first byte to its last, in seconds."""


def catalogue(trust_root: Path, control: str, cache: Path) -> TrustedCatalogue:
    """Return the catalogue of the site at `control` as far as the root.json at `trust_root` reaches."""
    from imaging.trusted import TrustedCatalogue

    durable.make_folder(cache, 0o700)
    try:
        root = trust_root.read_bytes()
    except OSError as error:
        raise TrustError(f"{trust_root} cannot be read ({error.strerror}); in a recovery image: build it again with "
                         "the site's keys, on a host: enrol it again") from error
    return TrustedCatalogue(root, f"{control}/catalogue/metadata/", f"{control}/catalogue/targets/", cache)


def manifest(believed: TrustedCatalogue, target: Target, order_id: str) -> bytes:
    """Return the manifest that an order names; raises TrustError when the catalogue has another one there."""
    data = believed.fetch(target.target)
    if sha256(data) != target.digest:
        raise TrustError(f"the catalogue's {target.target} is not what order {order_id} names; issue the order again")
    return data


def current_order(client: Client, path: str, *, deadline_s: float = ORDER_DEADLINE_S,
                  asked: Callable[[str], None] = lambda _: None) -> bytes | None:
    """Return the envelope that the control server answers to `path`, None when there is no order.

    `asked` is told what the server wants of a host that has none.
    """
    answer = client.request("GET", path, max_bytes=MAX_ORDER_BYTES, deadline_s=deadline_s)
    if answer.status == HTTPStatus.NO_CONTENT:
        if "reroot-asks" in answer.headers:
            asked(answer.headers["reroot-asks"])
        return None
    if answer.status != HTTPStatus.OK:
        answer.accepted()
        raise NetworkError(f"{client.base_url} answered {answer.status} when asked for the order")
    return answer.body


def groups(order: Order, tickets: Iterable[str] = ()) -> tuple[tuple[str, ...], ...]:
    """Return the servers of a release, nearest first; those of one group serve abreast.

    A ticket's provider is the one that has room for this host: the servers of the order come after it, for what it
    lacks, and the control server, which every host knows, comes last. A ticket is not signed: what is no URL in it is
    left out.
    """
    seen: set[str] = set()
    found = []
    for urls in (filter(URL.fullmatch, tickets), order.content, (order.control,)):
        group = tuple(dict.fromkeys(url.rstrip("/") for url in urls if url.rstrip("/") not in seen))
        seen.update(group)
        found.append(group)
    return tuple(filter(None, found))


def read_index(places: Sequence[FrameSource], release: Release) -> tuple[bytes, Index]:
    """Return the release's index, packed and read, from the first place that gives the bytes it was signed for."""
    return first_right(places, (release.index_offset, release.index_length),
                       lambda packed: (packed, release.read_index(packed)), f"release {release.ref}")


def first_right(places: Iterable[FrameSource], span: tuple[int, int], read: Callable[[bytes], Read], what: str) -> Read:
    """Return what `read` makes of a span (offset, length) of a blob, from the first place whose bytes it takes.

    `read` raises a RerootError for bytes that are not the right ones. Raises NetworkError, which names each place and
    why, when none has them; `what` is for that sentence.
    """
    reasons = []
    for place in places:
        try:
            return read(place.read(*span))
        except RerootError as error:
            reasons.append(f"{place.name}: {error.sentence}")
    raise NetworkError(f"no content server has {what} ({'; '.join(reasons) or 'none is named'}); check that one of "
                       "them runs and that the release is in its store")
