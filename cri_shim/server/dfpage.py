"""What the admin socket tells about the disk: each image, what of it others need as well, and the sums."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cri_shim.executor import in_thread

if TYPE_CHECKING:
    from cri_shim.images.prune import Plan
    from cri_shim.images.service import Images
    from cri_shim.store.image import Image


async def df_page(images: Images) -> dict[str, object]:
    """Return what the images take, in bytes.

    Of an image, unique is what its removal sets free: the layers that no other image needs, and its documents.
    """
    root = str(images.status()["root"])
    filesystem = await in_thread(os.statvfs, root)
    used = images.usage().used_bytes
    rows = [row(images, image) for image in images.images()]
    documents = {document.digest: document.size_bytes for image in images.images() for document in image.documents}
    everything = images.prune.planned(images.images())
    return {
        "root": root,
        "images": rows,
        "totals_bytes": {
            "layers of images": everything.images_bytes - sum(documents.values()),
            "manifests and configs": sum(documents.values()),
            **leftovers(everything),
            "arriving and going": max(0, used - everything.total_bytes),
        },
        "used_bytes": used,
        "filesystem": {
            "size_bytes": filesystem.f_blocks * filesystem.f_frsize,
            "free_bytes": filesystem.f_bavail * filesystem.f_frsize,
        },
    }


def leftovers(plan: Plan) -> dict[str, int]:
    """Return what no image needs and a prune throws away, by kind."""
    return {"interrupted pulls": plan.waiting_bytes, "layers without an image": plan.loose_bytes}


def row(images: Images, image: Image) -> dict[str, object]:
    """Return what *image* takes."""
    unique = images.unique_bytes(image)
    return {
        "id": str(image.id),
        "name": next(iter(image.names), str(image.id)),
        "names": image.names,
        "size_bytes": image.size_bytes,
        "shared_bytes": max(0, image.size_bytes - unique),
        "unique_bytes": unique,
    }
