"""Which file on disk a request's path means: OCI blobs and manifests, the catalogue, boot files; I/O: it looks.

Both the content server and the API answer from here. A path is taken apart before anything is decoded, each part
must be a plain name, and what it leads to must lie below the folder it was looked up in, whatever links are there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from imaging.bundle import ARTEFACTS, listing, pieces
from imaging.store import INDEX_TYPE, Store
from plumbing.digest import DIGEST, sha256
from plumbing.errors import NotFoundError

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+~:@=-]{0,254}")
_OCTETS = "application/octet-stream"
_FOREVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"


@dataclass(frozen=True)
class Answer:
    """A file to send, or (with `path` None) a small body made up here."""

    path: Path | None
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class Library:
    """The three folders that are served, below one site."""

    def __init__(self, store: Path, catalogue: Path, boot: Path) -> None:
        self._store = Store(store)
        self._catalogue = catalogue
        self._boot = boot

    def find(self, raw_path: str) -> Answer:
        """Return what a request for `raw_path` (still percent-encoded) gets; raises NotFoundError."""
        parts = _parts(raw_path)
        match parts:
            case ["v2"] | ["v2", ""]:
                return Answer(None, "application/json", {"Docker-Distribution-API-Version": "registry/2.0"}, b"{}")
            case ["v2", *repo, "blobs", digest] if repo:
                return self._blob(digest)
            case ["v2", *repo, "manifests", ref] if repo:
                return self._manifest("/".join(repo), ref)
            case ["v2", *repo, "tags", "list"] if repo:
                return self._tags("/".join(repo))
            case ["catalogue", "metadata" | "targets", *_]:
                kept = _ASK_AGAIN if parts[-1] == "timestamp.json" else "public, max-age=60"
                return Answer(below(self._catalogue, parts[1:]), _OCTETS, {"Cache-Control": kept})
            case ["boot", "files", "recovery", name, version, arch, title]:
                return self._recovery(f"{name}/{version}/{arch}", title)
            case ["boot", "files", *rest] if rest:
                return Answer(below(self._boot, rest), _OCTETS, {"Cache-Control": _ASK_AGAIN})
        raise _nothing(raw_path)

    def _blob(self, digest: str) -> Answer:
        if not DIGEST.fullmatch(digest) or not (path := self._store.blob_path(digest)).is_file():
            raise NotFoundError(f"there is no blob {digest} in the store")
        return Answer(path, _OCTETS, {"Docker-Content-Digest": digest, "Cache-Control": _FOREVER})

    def _manifest(self, repo: str, ref: str) -> Answer:
        tagged = self._tagged(repo)
        if ref.endswith(ARTEFACTS) and ref not in tagged and (name := tagged.get(ref.removesuffix(ARTEFACTS))):
            # What `image push` would have put beside the tag, so that another site can pull from this one.
            found = listing(pieces(self._store, name)[:-1])
            return Answer(None, INDEX_TYPE, {"Docker-Content-Digest": sha256(found)}, found)
        refs = self._store.refs()
        digest = ref if DIGEST.fullmatch(ref) else refs[tagged[ref]].digest if ref in tagged else None
        if digest is None or not self._store.has(digest):
            raise NotFoundError(f"there is no manifest {repo}:{ref} in the store")
        data = self._store.read_json_blob(digest)
        try:
            value = json.loads(data)
            kind = value["mediaType"]
            if not isinstance(kind, str) or not re.fullmatch(r"application/[A-Za-z0-9.+-]{1,100}", kind):
                raise ValueError("mediaType")
        except (ValueError, KeyError, TypeError) as error:
            raise NotFoundError(f"{digest} is in the store and is no manifest; fetch it as a blob") from error
        return Answer(self._store.blob_path(digest), kind, {"Docker-Content-Digest": digest})

    def _tags(self, repo: str) -> Answer:
        tags = sorted(self._tagged(repo))
        if not tags:
            raise NotFoundError(f"there is no repository {repo} in the store")
        return Answer(None, "application/json", {}, json.dumps({"name": repo, "tags": tags}).encode())

    def _tagged(self, repo: str) -> dict[str, str]:
        """Map the tags of `repo` to refs; ref NAME/VERSION/ARCH is repository NAME, tag VERSION-ARCH."""
        found = {}
        for ref in self._store.refs():
            *name, version, arch = ref.split("/") if ref.count("/") >= 2 else ("", "", "")
            if repo.removeprefix("reroot/") == "/".join(name):
                # OCI tags have no "+", which versions of Debian packages do.
                found[f"{version}-{arch}".replace("+", "_")] = ref
        return found

    def _recovery(self, name: str, title: str) -> Answer:
        """Find one layer of a recovery image by its title (vmlinuz, initrd.img …)."""
        try:
            layers = json.loads(self._target(f"recovery/{name}.json").read_bytes())["layers"]
            digest = next(layer["digest"] for layer in layers
                          if layer["annotations"]["org.opencontainers.image.title"] == title)
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise NotFoundError(f"the recovery image {name} has no {title}") from error
        return self._blob(digest)


    def _target(self, path: str) -> Path:
        """Find a target's file by the newest metadata; hosts verify what they get, so this need not."""
        metadata = self._catalogue / "metadata"
        try:
            version = _signed(metadata / "timestamp.json")["meta"]["snapshot.json"]["version"]
            version = _signed(metadata / f"{version}.snapshot.json")["meta"]["targets.json"]["version"]
            digest = _signed(metadata / f"{version}.targets.json")["targets"][path]["hashes"]["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NotFoundError(f"{path} is not in the catalogue") from error
        *folders, name = path.split("/")
        return below(self._catalogue, ["targets", *folders, f"{digest}.{name}"])


def _signed(path: Path) -> Any:
    return json.loads(path.read_bytes())["signed"]


def _parts(raw_path: str) -> list[str]:
    parts = [unquote(part, errors="replace") for part in raw_path.split("/")[1:]]
    for position, part in enumerate(parts):
        last_is_empty = part == "" and position == len(parts) - 1
        if not last_is_empty and (not _PART.fullmatch(part) or part in {".", ".."}):
            raise _nothing(raw_path)
    return parts


def below(folder: Path, parts: list[str]) -> Path:
    """Return the regular file `parts` names inside `folder`; raises NotFoundError when it is not there or leads out."""
    root = folder.resolve()
    try:
        path = root.joinpath(*parts).resolve(strict=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise _nothing("/".join(parts)) from error
    if not path.is_relative_to(root) or not path.is_file():
        raise _nothing("/".join(parts))
    return path


def _nothing(path: str) -> NotFoundError:
    shown = "".join(letter if " " < letter <= "~" else "?" for letter in path[:100])
    return NotFoundError(f"there is nothing at {shown}")

