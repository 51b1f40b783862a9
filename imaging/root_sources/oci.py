"""An OCI image in a layout directory as a source. I/O: unpacks its layers into a scratch folder.

index.json → image (of the tag, for the architecture) → each layer: size and SHA-256, then unpacked, then the tar's own
SHA-256.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imaging.root_sources.oci_layers import Applier
from imaging.root_sources.oci_layout import check_blob, find_image
from imaging.root_sources.scratch import need_root, scratch_folder
from imaging.root_sources.source import RootTree


@dataclass(frozen=True)
class OciSource:
    """The image `tag` (the only one when None) of the layout at `path`, for `arch` when there are several."""

    path: Path
    tag: str | None = None
    arch: str | None = None
    scratch: Path | None = None

    @contextmanager
    def opened(self) -> Iterator[RootTree]:
        """Unpack the image and give its tree; needs root. See RootSource; also raises NotFoundError for the tag."""
        need_root("unpacking an image with its owners and devices")
        image = find_image(self.path, self.tag, self.arch)
        with scratch_folder(self.scratch) as folder:
            tree = folder / "root"
            tree.mkdir(mode=0o755)
            tree.chmod(0o755)  # whatever the umask: it may be in the release
            with Applier(tree) as applier:
                for layer in image.layers:
                    applier.apply(check_blob(self.path, layer.blob), layer.packing, layer.diff_id)
                applier.finish()
            yield RootTree(tree, self.arch or image.arch)
