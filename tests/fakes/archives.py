"""Archives of images: OCI layouts and what `docker save` writes, as directories and as tars, whole or not."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from tests.fakes.images import OCI_INDEX, FakeImage, FakeIndex, digest_of


def layout(what: FakeImage | FakeIndex, *more: FakeImage, **annotations: str) -> dict[str, bytes]:
    """The files of an OCI layout; *annotations* are those of the first entry, with `__` for dots."""
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    entries = []
    for number, one in enumerate((what, *more)):
        data = one.data if isinstance(one, FakeIndex) else one.manifest
        entry = {"mediaType": one.media_type, "digest": digest_of(data), "size": len(data)}
        if number == 0 and annotations:
            entry["annotations"] = {key.replace("__", "."): value for key, value in annotations.items()}
        elif number:
            entry["annotations"] = {"org.opencontainers.image.ref.name": f"n{number}"}
        entries.append(entry)
        images = one.images if isinstance(one, FakeIndex) else (one,)
        documents = [data, *(image.manifest for image in images), *(blob for image in images for blob in image.blobs)]
        files |= {f"blobs/{digest_of(document).replace(':', '/')}": document for document in documents}
    files["index.json"] = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    return files


def docker(image: FakeImage, *tags: str) -> dict[str, bytes]:
    """The files that `docker save` writes."""
    files = {f"{number:064x}/layer.tar": one.blob for number, one in enumerate(image.layers)}
    config = f"{image.id.removeprefix('sha256:')}.json"
    entry = {"Config": config, "RepoTags": [*tags], "Layers": list(files)}
    return files | {config: image.config, "manifest.json": json.dumps([entry]).encode()}


def as_tar(files: dict[str, bytes], *entries: tarfile.TarInfo) -> bytes:
    """Put *files* into a tar, and *entries* without content behind them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for entry in entries:
            tar.addfile(entry)
    return out.getvalue()


def as_directory(files: dict[str, bytes], at: Path) -> Path:
    for name, data in files.items():
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_bytes(data)
    return at


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info
