"""What the admin socket tells about the disk: each image, what of it others need as well, and the sums."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cri_shim.executor import in_thread

if TYPE_CHECKING:
    from cri_shim.images.service import Images
    from cri_shim.store.image import Image


async def df_page(images: Images) -> dict[str, object]:
    """Return what the images take, in bytes.

    Of an image, unique is what its removal sets free: the layers that no other image needs, and its documents.
    """
    root = str(images.status()["root"])
    filesystem = await in_thread(os.statvfs, root)
    used = images.usage().used_bytes
    rows = [_row(images, image) for image in images.images()]
    layers = {layer.name: layer.unpacked_bytes for image in images.images() for layer in image.layers}
    documents = {document.digest: document.size_bytes for image in images.images() for document in image.documents}
    listed = sum(layers.values()) + sum(documents.values())
    return {
        "root": root,
        "images": rows,
        "totals_bytes": {
            "layers of images": sum(layers.values()),
            "manifests and configs": sum(documents.values()),
            "arriving, waiting and going": max(0, used - listed),
        },
        "used_bytes": used,
        "filesystem": {
            "size_bytes": filesystem.f_blocks * filesystem.f_frsize,
            "free_bytes": filesystem.f_bavail * filesystem.f_frsize,
        },
    }


def _row(images: Images, image: Image) -> dict[str, object]:
    shared = images.shared(image)
    shared_bytes = sum(layer.unpacked_bytes for layer in image.layers if layer.name in shared)
    return {
        "id": str(image.id),
        "name": next(iter(image.names), str(image.id)),
        "names": image.names,
        "size_bytes": image.size_bytes,
        "shared_bytes": shared_bytes,
        "unique_bytes": image.size_bytes - shared_bytes,
    }
