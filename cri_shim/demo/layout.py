"""The sample images as an OCI image layout on disk, for other programs (skopeo, umoci) to read.

Specification: image-layout.md of the OCI image specification.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from cri_shim.demo.images import Samples


def write_layout(samples: Samples, directory: Path) -> None:
    """Write *samples* below *directory*, which is made; tags are the names with a dash for slash and colon."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    documents = {digest: document.data for digest, document in samples.documents.items()}
    for digest, data in (documents | dict(samples.blobs)).items():
        (blobs / digest.removeprefix("sha256:")).write_bytes(data)
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}', encoding="ascii")
    (directory / "index.json").write_text(json.dumps(_index(samples)), encoding="ascii")


def _index(samples: Samples) -> dict[str, object]:
    entries = [
        {
            "mediaType": document.media_type,
            "digest": document.digest,
            "size": len(document.data),
            "annotations": {"org.opencontainers.image.ref.name": name.replace("/", "-").replace(":", "-")},
        }
        for name, document in samples.names.items()
    ]
    return {"schemaVersion": 2, "manifests": entries}
