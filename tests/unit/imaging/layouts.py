"""OCI image layouts for tests, layer by layer, owing nothing to imaging."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

MANIFEST, INDEX = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json"


@dataclass
class Member:
    """One thing in a layer; `kind` is tarfile's type."""

    name: str
    content: bytes = b""
    kind: bytes = tarfile.REGTYPE
    link: str = ""
    mode: int = 0o644
    mtime: int = 1_700_000_000
    uid: int = 0
    pax: dict[str, str] = field(default_factory=dict)


def folder(name: str, **more: object) -> Member:
    return Member(name, kind=tarfile.DIRTYPE, mode=0o755, **more)  # type: ignore[arg-type]


def symlink(name: str, text: str) -> Member:
    return Member(name, kind=tarfile.SYMTYPE, link=text, mode=0o777)


def tar(members: Sequence[Member]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as archive:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.size, info.type, info.linkname = len(member.content), member.kind, member.link
            info.mode, info.mtime, info.uid, info.pax_headers = member.mode, member.mtime, member.uid, member.pax
            archive.addfile(info, io.BytesIO(member.content))
    return out.getvalue()


def blob(layout: Path, data: bytes, media_type: str) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def image(layout: Path, layers: Sequence[bytes], *, packing: str = "", arch: str = "amd64",
          diff_ids: Sequence[str] | None = None) -> dict[str, object]:
    """Store the layers (tars) and an image of them; return its descriptor."""
    ids = diff_ids if diff_ids is not None else [f"sha256:{hashlib.sha256(raw).hexdigest()}" for raw in layers]
    pack = {"": lambda raw: raw, "+gzip": gzip.compress, "+zstd": zstandard.ZstdCompressor().compress}[packing]
    config = json.dumps({"architecture": arch, "os": "linux", "rootfs": {"type": "layers", "diff_ids": list(ids)}})
    rows = [blob(layout, pack(raw), f"application/vnd.oci.image.layer.v1.tar{packing}") for raw in layers]
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": rows,
                "config": blob(layout, config.encode(), "application/vnd.oci.image.config.v1+json")}
    return blob(layout, json.dumps(manifest).encode(), MANIFEST)


def layout(top: Path, images: dict[str, dict[str, object]]) -> Path:
    """Write the layout's own two files; `images` are descriptors by tag ("" for none)."""
    (top / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    (top / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    rows = [{**row, **({"annotations": {"org.opencontainers.image.ref.name": tag}} if tag else {})}
            for tag, row in images.items()]
    (top / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": rows}))
    return top
