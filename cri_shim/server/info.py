"""What verbose answers tell people: JSON texts for the `info` maps, which crictl prints as they are."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rootfs.digest import chain_ids

if TYPE_CHECKING:
    from cri_shim.images.progress import PullProgress
    from cri_shim.store.image import Image, ImageLayer


def info_of(image: Image, config: bytes, shared: frozenset[str]) -> dict[str, str]:
    """Return the `info` of *image*: its config, its layers, which of them are *shared*, where it came from."""
    shared_bytes = sum(layer.unpacked_bytes for layer in image.layers if layer.name in shared)
    chain = chain_ids([layer.diff_id for layer in image.layers])
    particulars = {
        "chainID": str(chain[-1]) if chain else "",
        "manifest": str(image.manifest),
        "target": str(image.target),
        "mediaType": image.media_type,
        "pulledFrom": image.pulled_from,
        "pulledAt": _moment(image.pulled_at_ns),
        "sharedBytes": shared_bytes,
        "uniqueBytes": image.size_bytes - shared_bytes,
        "layers": [_layer(layer) for layer in image.layers],
        "imageSpec": json.loads(config),
    }
    return {"info": json.dumps(particulars)}


def pull_info(pull: PullProgress) -> dict[str, str]:
    """Return the `info` about a pull that is running: how far it is, layer by layer."""
    return {"pull": json.dumps(pull.as_json())}


def _layer(layer: ImageLayer) -> dict[str, object]:
    return {
        "digest": str(layer.blob),
        "diffID": str(layer.diff_id),
        "mediaType": layer.media_type,
        "blobBytes": layer.blob_size_bytes,
        "unpackedBytes": layer.unpacked_bytes,
        "inodes": layer.inodes,
        "directory": f"overlay/{layer.name}/diff",
    }


def _moment(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds // 1_000_000_000, tz=UTC).isoformat().replace("+00:00", "Z")
