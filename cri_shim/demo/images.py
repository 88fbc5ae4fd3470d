"""The sample images: two, for two platforms each, sharing layers; made in memory, the same bytes every time.

The layers hold what real images hold and naive unpackers get wrong: a whiteout, an opaque directory, hard links,
symbolic links, an extended attribute, other owners, a device, the same layer twice. `tarfile` only writes here.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Compression = Literal["none", "gzip", "zstd"]

INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
LAYER_TYPES: Final[Mapping[Compression, str]] = {
    "none": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}
ARCHITECTURES: Final = ("amd64", "arm64")
CREATED: Final = "2024-01-01T00:00:00Z"
_MTIME_SECONDS: Final = 1_704_067_200
_MEBIBYTE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer as a registry has it: the compressed bytes, and the digest of the tar in them."""

    data: bytes = field(repr=False)
    diff_id: str
    compression: Compression

    @property
    def digest(self) -> str:
        """The digest of the blob."""
        return digest_of(self.data)


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or an index that a name can stand for."""

    data: bytes = field(repr=False)
    media_type: str

    @property
    def digest(self) -> str:
        """The digest of the bytes."""
        return digest_of(self.data)


@dataclass(frozen=True, slots=True)
class Samples:
    """Everything that the demo's registry serves.

    *names* are "repository:tag" and the index behind it; *documents* all manifests and indexes, *blobs* configs and
    layers, both by digest; *everywhere* the layers of the first image that every platform has.
    """

    names: Mapping[str, Document]
    documents: Mapping[str, Document]
    blobs: Mapping[str, bytes] = field(repr=False)
    everywhere: tuple[str, ...]


def digest_of(data: bytes) -> str:
    """Return the sha256 digest of *data* as OCI spells it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def samples() -> Samples:
    """Make the two images of the demo."""
    store: dict[str, Document] = {}
    blobs: dict[str, bytes] = {}
    library, data, change, own = _library(), _data(), _change(), _own()
    bases = {architecture: _base(architecture) for architecture in ARCHITECTURES}
    web = {arch: (base, library, data, change, data) for arch, base in bases.items()}
    worker = {arch: (base, library, own) for arch, base in bases.items()}
    names = {
        "shop/web:2.1": _index(web, user="1000:1000", documents=store, blobs=blobs),
        "shop/worker:2.1": _index(worker, user="", documents=store, blobs=blobs),
    }
    return Samples(names, store, blobs, everywhere=(library.digest, data.digest))


def _index(
    by_architecture: Mapping[str, Sequence[Layer]],
    *,
    user: str,
    documents: dict[str, Document],
    blobs: dict[str, bytes],
) -> Document:
    """Make an index with one image for each architecture, and put everything in it into *documents* and *blobs*."""
    entries = []
    for architecture, layers in by_architecture.items():
        config = _config(architecture, user, layers)
        manifest = _manifest(config, layers)
        blobs |= {digest_of(config): config} | {layer.digest: layer.data for layer in layers}
        documents[manifest.digest] = manifest
        platform = {"os": "linux", "architecture": architecture}
        entries.append(_descriptor(MANIFEST_TYPE, manifest.data) | {"platform": platform})
    index = Document(_json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}), INDEX_TYPE)
    documents[index.digest] = index
    return index


def _manifest(config: bytes, layers: Iterable[Layer]) -> Document:
    value = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _descriptor(CONFIG_TYPE, config),
        "layers": [_descriptor(LAYER_TYPES[layer.compression], layer.data) for layer in layers],
    }
    return Document(_json(value), MANIFEST_TYPE)


def _config(architecture: str, user: str, layers: Iterable[Layer]) -> bytes:
    return _json(
        {
            "created": CREATED,
            "os": "linux",
            "architecture": architecture,
            "config": {"User": user, "Cmd": ["/bin/app"]},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        }
    )


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _base(architecture: str) -> Layer:
    """The bottom: a few directories, a program with two names, a link, a file of root's, a setuid program."""
    tar = _Tar()
    for name in ("bin", "etc", "lib", "srv", "srv/cache", "var", "var/lib"):
        tar.directory(name)
    tar.directory("tmp", mode=0o1777)
    tar.file("bin/app", _noise(architecture, 3 * _MEBIBYTE), mode=0o755)
    tar.hard_link("bin/app-again", "bin/app")
    tar.file("bin/become", b"#!/bin/app\n", mode=0o4755)
    tar.symbolic_link("bin/sh", "app")
    tar.file("etc/architecture", architecture.encode() + b"\n")
    tar.file("etc/motd", b"to be whited out\n")
    tar.file("srv/cache/old", b"to be hidden by an opaque directory\n")
    return tar.layer("gzip")


def _library() -> Layer:
    """Many small files and a larger one."""
    tar = _Tar()
    for number in range(300):
        tar.file(f"lib/part-{number:03}.txt", f"part {number}\n".encode() * 40)
    tar.file("lib/words.bin", _noise("words", 2 * _MEBIBYTE))
    return tar.layer("zstd")


def _data() -> Layer:
    """What only root can make: other owners and a device. And an attribute that everybody can set."""
    tar = _Tar()
    tar.directory("var/lib/data", owner=1000)
    tar.file("var/lib/data/rows", _noise("rows", _MEBIBYTE), owner=1000)
    tar.file("var/lib/data/tagged", b"with an attribute\n", xattrs={"user.demo": "tagged"})
    tar.device("var/lib/data/null", 1, 3)
    return tar.layer("none")


def _change() -> Layer:
    """Changes the base: a whiteout, an opaque directory with a new file, a file written anew."""
    tar = _Tar()
    tar.file("etc/.wh.motd", b"")
    tar.directory("srv/cache")
    tar.file("srv/cache/.wh..wh..opq", b"")
    tar.file("srv/cache/new", b"seen through the opaque directory\n")
    tar.file("var/lib/data/rows", b"changed, and changed back by the same layer once more\n", owner=1000)
    return tar.layer("gzip")


def _own() -> Layer:
    """What the second image has for itself."""
    tar = _Tar()
    tar.file("bin/worker", _noise("worker", _MEBIBYTE), mode=0o755)
    tar.symbolic_link("etc/alternatives", "/lib")
    return tar.layer("zstd")


def _noise(seed: str, size_bytes: int) -> bytes:
    """Return bytes that compress to about half: noise with as many zeros between."""
    block = 1 << 16
    source = random.Random(seed)
    return b"".join(source.randbytes(block) + bytes(block) for _ in range(size_bytes // block // 2))


class _Tar:
    """A tar in the making."""

    def __init__(self) -> None:
        self._bytes = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._bytes, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 (layer closes it)

    def directory(self, name: str, *, mode: int = 0o755, owner: int = 0) -> None:
        self._tar.addfile(_member(name, tarfile.DIRTYPE, mode, owner))

    def file(
        self, name: str, data: bytes, *, mode: int = 0o644, owner: int = 0, xattrs: Mapping[str, str] | None = None
    ) -> None:
        member = _member(name, tarfile.REGTYPE, mode, owner)
        member.size = len(data)
        member.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in (xattrs or {}).items()}
        self._tar.addfile(member, io.BytesIO(data))

    def hard_link(self, name: str, target: str) -> None:
        self._link(name, target, tarfile.LNKTYPE)

    def symbolic_link(self, name: str, target: str) -> None:
        self._link(name, target, tarfile.SYMTYPE)

    def device(self, name: str, major: int, minor: int) -> None:
        member = _member(name, tarfile.CHRTYPE, 0o666, 0)
        member.devmajor, member.devminor = major, minor
        self._tar.addfile(member)

    def layer(self, compression: Compression) -> Layer:
        """Close the tar and return it as a layer."""
        self._tar.close()
        plain = self._bytes.getvalue()
        return Layer(_compressed(plain, compression), digest_of(plain), compression)

    def _link(self, name: str, target: str, kind: bytes) -> None:
        member = _member(name, kind, 0o777, 0)
        member.linkname = target
        self._tar.addfile(member)


def _member(name: str, kind: bytes, mode: int, owner: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.mtime = kind, mode, _MTIME_SECONDS
    member.uid = member.gid = owner
    return member


def _compressed(plain: bytes, compression: Compression) -> bytes:
    if compression == "gzip":
        return gzip.compress(plain, 6, mtime=0)
    if compression == "zstd":
        return zstandard.ZstdCompressor(level=3).compress(plain)
    return plain
