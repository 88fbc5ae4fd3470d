"""Images made from a dict of files: layer blobs, configs, manifests, indexes. Pure, and the same bytes every time.

    base = layer({"etc/": Dir(), "etc/passwd": b"root:x:0:0", "bin/sh": Link("busybox")})
    img = image(base, layer({"app": b"..."}, compression="zstd"))
    idx = index(img, image(base, architecture="arm64"))

`tarfile` is used to write only; whatever a test wants to say about hostile tars goes through `layer_of_tar`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import zstandard

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
SUFFIXES = {"none": "", "gzip": "+gzip", "zstd": "+zstd"}
DOCKER_SUFFIXES = {"none": "", "gzip": ".gzip", "zstd": ".zstd"}


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


@dataclass(frozen=True)
class Dir:
    mode: int = 0o755
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True)
class File:
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 1_600_000_000
    pax: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class HardLink:
    target: str


@dataclass(frozen=True)
class Device:
    kind: str  # "c", "b" or "p"
    major: int = 0
    minor: int = 0
    mode: int = 0o600


Entry = bytes | Dir | File | Link | HardLink | Device
Files = Mapping[str, Entry]
KINDS = {"c": tarfile.CHRTYPE, "b": tarfile.BLKTYPE, "p": tarfile.FIFOTYPE}


def _member(name: str, entry: Entry) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name.rstrip("/"))
    info.mtime = 1_600_000_000
    data = b""
    match entry:
        case bytes():
            data, info.mode = entry, 0o644
        case File():
            data, info.mode, info.uid, info.gid = entry.data, entry.mode, entry.uid, entry.gid
            info.mtime, info.pax_headers = entry.mtime, dict(entry.pax)
        case Dir():
            info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, entry.mode, entry.uid, entry.gid
        case Link():
            info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.target, 0o777
        case HardLink():
            info.type, info.linkname = tarfile.LNKTYPE, entry.target
        case Device():
            info.type, info.mode = KINDS[entry.kind], entry.mode
            info.devmajor, info.devminor = entry.major, entry.minor
    info.size = len(data)
    return info, data


def tar_of(files: Files) -> bytes:
    """An uncompressed tar with the entries in the order of *files*; `b"..."` under a name with a final "/" is a Dir."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, entry in files.items():
            info, data = _member(name, Dir() if name.endswith("/") and isinstance(entry, bytes) else entry)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def compress(data: bytes, compression: str) -> bytes:
    """*compression* is "none", "gzip" or "zstd"."""
    if compression == "gzip":
        return gzip.compress(data, compresslevel=6, mtime=0)
    if compression == "zstd":
        return zstandard.ZstdCompressor(level=3).compress(data)
    return data


def plain(layer: FakeLayer) -> bytes:
    """The tar of *layer*."""
    if layer.compression == "gzip":
        return gzip.decompress(layer.blob)
    if layer.compression == "zstd":
        return zstandard.ZstdDecompressor().decompress(layer.blob)
    return layer.blob


@dataclass(frozen=True)
class FakeLayer:
    blob: bytes
    diff_id: str
    compression: str

    @property
    def digest(self) -> str:
        return digest_of(self.blob)

    def media_type(self, *, docker: bool) -> str:
        if docker:
            return DOCKER_LAYER + DOCKER_SUFFIXES[self.compression]
        return OCI_LAYER + SUFFIXES[self.compression]


def layer_of_tar(tar: bytes, compression: str = "gzip") -> FakeLayer:
    return FakeLayer(compress(tar, compression), digest_of(tar), compression)


def layer(files: Files, compression: str = "gzip") -> FakeLayer:
    return layer_of_tar(tar_of(files), compression)


def to_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def descriptor(media_type: str, data: bytes, **more: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **more}


@dataclass(frozen=True)
class FakeImage:
    """One manifest with its config and layers."""

    manifest: bytes
    media_type: str
    config: bytes
    layers: tuple[FakeLayer, ...]
    platform: Mapping[str, Any]

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)

    @property
    def id(self) -> str:
        """The digest of the config: what CRI calls the image's id."""
        return digest_of(self.config)

    @property
    def blobs(self) -> tuple[bytes, ...]:
        return (self.config, *(one.blob for one in self.layers))


@dataclass(frozen=True)
class FakeIndex:
    """An index, and the images it names."""

    data: bytes
    media_type: str
    images: tuple[FakeImage, ...]

    @property
    def digest(self) -> str:
        return digest_of(self.data)


def config_of(
    layers: tuple[FakeLayer, ...],
    *,
    architecture: str = "amd64",
    os: str = "linux",
    variant: str = "",
    user: str = "",
    **more: object,
) -> bytes:
    document: dict[str, object] = {"architecture": architecture, "os": os}
    if variant:
        document["variant"] = variant
    document["created"] = "2020-09-13T12:26:40Z"
    document["config"] = {"User": user, "Cmd": ["/bin/sh"]}
    document["rootfs"] = {"type": "layers", "diff_ids": [one.diff_id for one in layers]}
    return to_json({**document, **more})


def image(
    *layers: FakeLayer,
    docker: bool = False,
    config: bytes | None = None,
    annotations: Mapping[str, str] | None = None,
    **platform: str,
) -> FakeImage:
    """An image of *layers*, bottom first; `architecture=`, `os=`, `variant=`, `user=` go into the config."""
    config = config_of(layers, **platform) if config is None else config  # type: ignore[arg-type]
    media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
    document: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": descriptor(DOCKER_CONFIG if docker else OCI_CONFIG, config),
        "layers": [descriptor(one.media_type(docker=docker), one.blob) for one in layers],
    }
    if annotations:
        document["annotations"] = dict(annotations)
    about = {"architecture": platform.get("architecture", "amd64"), "os": platform.get("os", "linux")}
    if platform.get("variant"):
        about["variant"] = platform["variant"]
    return FakeImage(to_json(document), media_type, config, layers, about)


def index(*images: FakeImage, docker: bool = False, extra: tuple[Mapping[str, object], ...] = ()) -> FakeIndex:
    """An index of *images* in this order, then the descriptors of *extra* as given."""
    media_type = DOCKER_LIST if docker else OCI_INDEX
    entries = [descriptor(one.media_type, one.manifest, platform=dict(one.platform)) for one in images]
    document = {"schemaVersion": 2, "mediaType": media_type, "manifests": [*entries, *map(dict, extra)]}
    return FakeIndex(to_json(document), media_type, images)
