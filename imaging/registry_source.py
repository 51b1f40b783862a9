"""A layer in an OCI registry, asked for ranges. I/O."""

from __future__ import annotations

import threading

from imaging.registry import Place, Registry
from imaging.registry_auth import Credentials
from imaging.sources import PATIENCE_S, SLOWEST, layer_hex


class RegistrySource:
    """A layer in the repository `place` of a registry; used from several threads at once.

    Every thread keeps connections and a token of its own. `known` is None where everybody may read.
    """

    def __init__(self, place: Place, layer_digest: str, known: Credentials | None = None) -> None:
        layer_hex(layer_digest)
        self.name = f"{place.origin}/{place.repository}"
        self._place, self._known, self._digest = place, known, layer_digest
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._all: list[Registry] = []

    def read(self, offset: int, length: int) -> bytes:
        """Fetch a range, once: who fetches frames tries again, or elsewhere."""
        registry: Registry | None = getattr(self._mine, "registry", None)
        if registry is None:
            registry = self._mine.registry = Registry(self._place, self._known)
            with self._lock:
                self._all.append(registry)
        registry.answer_s = PATIENCE_S + length / SLOWEST
        return registry.span(self._digest, offset, length)

    def close(self) -> None:
        """Drop every connection; no thread may be reading."""
        with self._lock:
            for registry in self._all:
                registry.close()
