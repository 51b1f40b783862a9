"""What a host believes of a site's catalogue: TUF's client over our own HTTP. I/O: fetches, keeps a cache.

Order of things: root (from the recovery image or /local, then newer ones, each signed by the one before) → timestamp
→ snapshot → targets → the target's bytes. python-tuf's Updater does all of the checking; this module gives it
a transport bounded in time and bytes and turns what it raises into sentences. tuf is loaded on first use: it takes
half a second on a slow machine. `tuf.ngclient` imports its urllib3 transport whether it is used or not; the host
runtime carries a stand-in for that one module (imaging.recovery_image.stand_ins), so urllib3 is not needed on a host.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from plumbing import clock
from plumbing.durable import make_folder, sync_folder
from plumbing.errors import CorruptError, DiskError, NetworkError, NotFoundError, RerootError, TrustError
from plumbing.http import Client

if TYPE_CHECKING:
    from tuf.ngclient.fetcher import FetcherInterface
    from tuf.ngclient.updater import Updater

MAX_TARGET_BYTES = 4 << 20
"""The largest target that is fetched: catalogue targets are manifests and key lists. In bytes."""
MAX_METADATA_BYTES = 4 << 20
"""The largest targets.json that is read: about 15,000 targets. In bytes."""
DEADLINE_S = 60.0
"""How long one file of the catalogue may take."""
_Result = TypeVar("_Result")

EARLIEST_S = clock.from_iso("2026-01-01T00:00:00Z")
"""No catalogue of reroot is older: a clock before this is wrong, and with it no expiry would ever hold."""


class TrustedCatalogue:
    """The catalogue at two URLs, believed as far as `root_json` (the site's TUF root metadata) reaches.

    `cache_dir` keeps what was believed last, which is what a rollback is recognised by; it should outlive the boot
    where it can. One object sees one consistent state of the catalogue: make a new one to look again. Used by one
    thread.
    """

    def __init__(self, root_json: bytes, metadata_url: str, targets_url: str, cache_dir: Path, *,
                 now: Callable[[], float] = clock.wall) -> None:
        self._root = root_json
        self._metadata_url = metadata_url.rstrip("/") + "/"
        self._targets_url = targets_url.rstrip("/") + "/"
        self._cache = cache_dir
        self._now = now
        self._wire = _Wire()
        self._updater: Updater | None = None

    def refresh(self) -> None:
        """Bring the metadata up to date once; raises TrustError, NetworkError or DiskError."""
        if self._updater is None:
            self._guarded(self._refresh, "the catalogue")

    def fetch(self, target_path: str) -> bytes:
        """Return a target's bytes exactly as signed.

        Raises NotFoundError when the catalogue does not list it, TrustError when anything is not as signed,
        NetworkError when the server does not answer.
        """
        self.refresh()
        return self._guarded(lambda: self._fetch(target_path), target_path)

    def close(self) -> None:
        """Drop the connection."""
        self._wire.close()

    def _refresh(self) -> None:
        from tuf.ngclient.config import UpdaterConfig
        from tuf.ngclient.updater import Updater

        if self._now() < EARLIEST_S:
            raise TrustError(f"this machine's clock says {clock.iso(self._now())}, and expiries cannot be judged by "
                             "it; set the clock")
        targets = self._cache / "targets"
        make_folder(targets, 0o700)
        updater = Updater(
            str(self._cache), self._metadata_url, str(targets), self._targets_url, _fetcher(self._wire),
            UpdaterConfig(targets_max_length=MAX_METADATA_BYTES, snapshot_max_length=1 << 20), bootstrap=self._root,
        )
        updater.refresh()
        self._sync()
        self._updater = updater

    def _fetch(self, target_path: str) -> bytes:
        assert self._updater is not None
        found = self._updater.get_targetinfo(target_path)
        if found is None:
            raise NotFoundError(f"{target_path} is not in the catalogue at {self._metadata_url}; publish it, or order "
                                "something that is there")
        if found.length > MAX_TARGET_BYTES:
            raise TrustError(f"{target_path} has {found.length} bytes, more than a manifest or key list can have; "
                             "publish it again")
        path = self._updater.find_cached_target(found) or self._updater.download_target(found)
        data = Path(path).read_bytes()
        found.verify_length_and_hashes(data)  # of what is returned, not of what was written
        return data

    def _sync(self) -> None:
        """Make the cache durable: after a power cut it must still know the newest versions that were seen."""
        for name in ("timestamp.json", "snapshot.json", "targets.json"):
            with suppress(FileNotFoundError):
                handle = os.open(self._cache / name, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
        sync_folder(self._cache)

    def _guarded(self, work: Callable[[], _Result], what: str) -> _Result:
        """Run a step of TUF's client, its complaints made sentences of ours."""
        from tuf.api import exceptions as tuf

        try:
            return work()
        except (tuf.RepositoryError, tuf.DownloadError) as error:
            raise _explained(error, what, self._wire, self._now()) from error
        except ValueError as error:  # tuf's parsers let some malformed metadata through as this
            raise TrustError(f"{self._wire.last or 'the root metadata'} is malformed ({error}); publish it again, or "
                             "give this host the right root.json") from error
        except OSError as error:
            raise DiskError(f"the catalogue's cache {self._cache} cannot be used ({error.strerror or error}); check "
                            "the disk it is on") from error


class _Wire:
    """One kept connection per server, and the last file that was asked for."""

    def __init__(self) -> None:
        self._clients: dict[str, Client] = {}
        self.last = ""

    def get(self, url: str, max_bytes: int) -> tuple[int, bytes]:
        """Return status and body, at most `max_bytes` of it."""
        parts = urlsplit(url)
        base = f"{parts.scheme}://{parts.netloc}"
        client = self._clients.get(base)
        if client is None:
            client = self._clients[base] = Client(base, timeout_s=20.0)
        self.last = url
        answer = client.request("GET", url[len(base):], max_bytes=max_bytes, deadline_s=DEADLINE_S)
        return answer.status, answer.body

    def close(self) -> None:
        """Drop every connection."""
        for client in self._clients.values():
            client.close()


def _fetcher(wire: _Wire) -> FetcherInterface:
    """Return tuf's transport over `wire`; a function because the base class is loaded late."""
    from tuf.api.exceptions import DownloadError, DownloadHTTPError, DownloadLengthMismatchError
    from tuf.ngclient.fetcher import FetcherInterface

    class Fetcher(FetcherInterface):
        """Whole answers in memory, so no temporary file is needed."""

        def _fetch(self, url: str) -> Iterator[bytes]:
            return iter([self.download_bytes(url, MAX_TARGET_BYTES)])

        def download_bytes(self, url: str, max_length: int) -> bytes:
            try:
                status, body = wire.get(url, max_length)
            except CorruptError as error:
                raise DownloadLengthMismatchError(error.sentence) from error
            except NetworkError as error:
                raise DownloadError(error.sentence) from error
            if status != 200:
                raise DownloadHTTPError(f"{url} answered {status}", status)
            return body

        @contextmanager
        def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
            yield io.BytesIO(self.download_bytes(url, max_length))

    return Fetcher()


def _explained(error: Exception, what: str, wire: _Wire, now: float) -> RerootError:
    """Return the one sentence for an exception of tuf's; `what` is the target or the catalogue."""
    from tuf.api import exceptions as tuf

    name = wire.last.rpartition("/")[2]
    role = name.removesuffix(".json").rpartition(".")[2] if name else "root"
    place = wire.last or "the root metadata given to this host"
    if isinstance(error, tuf.DownloadHTTPError):
        return NetworkError(f"{place} answered {error.status_code}, and {what} needs it; check that the server is the "
                            "control server of this site and that its catalogue is whole")
    if isinstance(error, tuf.DownloadLengthMismatchError):
        return TrustError(f"{place} sends more than its signed length, so {what} is not believed; look for a proxy in "
                          "between, or publish it again")
    if isinstance(error, tuf.DownloadError):
        return NetworkError(str(error))
    if isinstance(error, tuf.ExpiredMetadataError):
        return TrustError(f"{place} has expired ({error}; this machine's clock says {clock.iso(now)}): it is held "
                          "back, or `reroot serve` has not signed it anew, or the clock is wrong; check these")
    if isinstance(error, tuf.BadVersionNumberError):
        return TrustError(f"{place} is older than what this host has seen already, or does not fit the rest ({error}); "
                          "the server was restored from an old backup, or somebody replays: publish again")
    if isinstance(error, tuf.UnsignedMetadataError):
        return TrustError(f"{place} lacks valid signatures of the role {role} ({error}); it is not this site's "
                          "catalogue, or its keys were changed without a new root")
    if isinstance(error, tuf.LengthOrHashMismatchError):
        return TrustError(f"{place} is not what the signed metadata says of it ({error}); somebody mixes old and new "
                          "files, or the server's disk is failing: publish again")
    return TrustError(f"{place} cannot be believed ({error}); publish it again, or give this host the right root.json")
