"""What lies in the graph root of CRI-O or podman (containers-storage, driver overlay): read, never written.

`overlay-images/images.json` has the images, each with its names and the top of its chain; `overlay-layers/layers.json`
the layers, each with its parent and its diff ID; documents lie beside the former as big data, the records of tars
beside the latter, trees in `overlay/<layer>/diff`. Both files are read under the shared locks that a writer waits for.

Nothing that stands there is believed: an id is 64 digits before it becomes part of a path, documents and layers are
proved by their digests in the pull that takes them (`images.carried`). What cannot be proved or read so is refused.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from cri_shim.errors import ContentRejected, HandOffFailed, InvalidReference, InvalidRequest
from cri_shim.handoff.records import big_data_file
from cri_shim.images.archive import open_files
from cri_shim.images.offers import DOCUMENT_BYTES, Offer
from cri_shim.images.standing import Tree
from cri_shim.oci.reference import parse_reference
from cri_shim.oci.shown import shown
from rootfs.digest import Digest
from rootfs.errors import RootfsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from cri_shim.images.archive import Files, Part
    from cri_shim.oci.reference import Reference

T = TypeVar("T")
LOCK_SECONDS: Final = 10.0
"""How long a writer may keep us waiting."""

LARGEST_BYTES: Final = 256 << 20
"""How long either file may be."""

_POLL_SECONDS: Final = 0.01
_ID: Final = re.compile(r"[0-9a-f]{64}")
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
# struct flock of fcntl(2), for a lock of the open file: other descriptors of ours may come and go.
_FLOCK: Final = struct.Struct("@hhqqi4x")


class _Image(msgspec.Struct, rename="kebab"):
    id: str
    digest: str = ""
    names: list[str] | None = None
    layer: str = ""


class _Layer(msgspec.Struct, rename="kebab"):
    id: str
    parent: str = ""
    diff_digest: str = ""
    diff_size: int = -1
    flags: dict[str, object] | None = None


@dataclass(frozen=True, slots=True)
class GraphImage:
    """An image: its id there, its names, the digest of what it was pulled as, and the top of its chain."""

    id: str
    names: tuple[Reference, ...]
    digest: str
    layer: str


class GraphRoot:
    """What was read of the graph root at *path*. Every method blocks."""

    def __init__(self, path: Path, images: Iterable[_Image], layers: Iterable[_Layer]) -> None:
        self.path = path
        self.images = tuple(_image(one) for one in images if _ID.fullmatch(one.id))
        self._layers = {one.id: one for one in layers if _ID.fullmatch(one.id)}

    def documents(self, image: GraphImage) -> Files:
        """Open the big data of *image*, by the names that an OCI layout has for its blobs.

        Raises:
            InvalidRequest: there is none, or it may not be read.
        """
        return _BigData(open_files(str(self.path / "overlay-images" / image.id)))

    def offers(self, image: GraphImage, reference: Reference) -> tuple[Offer, ...]:
        """Return *image* as what can be imported, the best first: as what *reference* most likely stands for.

        That is the document of its digest; else the one that the image was pulled as, an index often, which is of use
        if its entry for this platform is the one that was pulled; else the manifest.

        Raises:
            ContentRejected: its manifest is not there.
        """
        files = self.documents(image)
        try:
            manifest = files.find("manifest")
            if manifest is None:
                raise ContentRejected(f"the image {image.id} has no manifest there")
            data = manifest.read(DOCUMENT_BYTES)
            own = Digest.of(data)
            wanted = [str(reference.digest), image.digest]
            targets = [digest for text in wanted if (digest := _digest(text)) and files.find(_blob(digest)) is not None]
        finally:
            files.close()
        blobs: dict[Digest, Part | bytes] = {own: data}
        return tuple(
            Offer(image.names, image.id, target, "", blobs, genuine=True) for target in dict.fromkeys((*targets, own))
        )

    def trees(self, image: GraphImage, diff_ids: tuple[Digest, ...]) -> Mapping[Digest, Tree]:
        """Return where the layers of *image* stand, and the records of their tars.

        Args:
            image: one of `images`.
            diff_ids: what its config says, bottom first.

        Raises:
            ContentRejected: its chain is another one, or a layer cannot be read or proved.
        """
        chain = list(self._chain(image))[::-1]
        if len(chain) != len(diff_ids):
            raise ContentRejected(f"it has {len(chain)} layers there, and its config says {len(diff_ids)}")
        try:
            return {diff_id: self._tree(layer, diff_id) for layer, diff_id in zip(chain, diff_ids, strict=True)}
        except OSError as error:
            raise ContentRejected(f"{error.filename} cannot be read: {error.strerror}") from error

    def _chain(self, image: GraphImage) -> Iterator[_Layer]:
        """Give the layers of *image*, top first."""
        name, left = image.layer, dict(self._layers)
        while name:
            layer = left.pop(name, None)
            if layer is None:
                raise ContentRejected(
                    f"its layer {shown(name)} is not in {self.path}: it may lie in an additional image store of it"
                )
            yield layer
            name = layer.parent

    def _tree(self, layer: _Layer, diff_id: Digest) -> Tree:
        directory = self.path / "overlay" / layer.id
        record = self.path / "overlay-layers" / f"{layer.id}.tar-split.gz"
        why = ""
        if layer.flags and layer.flags.get("incomplete"):
            why = "is incomplete there, as something cut its pull short"
        elif layer.diff_digest != str(diff_id) or layer.diff_size < 0:
            there = shown(layer.diff_digest) if layer.diff_digest else "of unknown content"
            why = f"should be {diff_id}, and is {there} there"
        elif (directory / "composefs-data").exists():
            why = "is kept in the form of composefs there, without files of their own names"
        elif not record.exists():
            why = "has no record of its tar there (tar-split), without which nothing proves it"
        if why:
            raise ContentRejected(f"its layer {layer.id} {why}: pull the image from its registry")
        return Tree(str(directory / "diff"), str(record), layer.diff_size)


class _BigData:
    """Big data as the files of an OCI layout; its own names mean themselves."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def find(self, name: str) -> Part | None:
        """Return the file *name*."""
        digest = name.removeprefix("blobs/").replace("/", ":", 1)
        found = (self._files.find(big_data_file(key)) for key in (digest, f"manifest-{digest}"))
        return next((part for part in found if part is not None), None)

    def close(self) -> None:
        """Close what is open."""
        self._files.close()


def read_graph_root(path: Path) -> GraphRoot:
    """Read what the graph root at *path* has. Blocks, for LOCK_SECONDS and more.

    Raises:
        InvalidRequest: it is none, is of another driver, or cannot be read.
        HandOffFailed: a writer does not let go of it.
    """
    try:
        _check_driver(path)
        with ExitStack() as locks:
            locks.enter_context(_shared(path / "overlay-layers/layers.lock"))
            locks.enter_context(_shared(path / "overlay-images/images.lock"))
            layers = _entries(path / "overlay-layers/layers.json", _Layer)
            images = _entries(path / "overlay-images/images.json", _Image)
    except OSError as error:
        raise InvalidRequest(f"{error.filename or path} cannot be read: {error.strerror}") from error
    return GraphRoot(path, images, layers)


def _check_driver(path: Path) -> None:
    if not (path / "overlay-images").is_dir() or not (path / "overlay-layers").is_dir():
        others = sorted(found.name.removesuffix("-images") for found in path.glob("*-images"))
        what = f"of the driver {others[0]}, and only overlay can be read" if others else "no containers-storage at all"
        raise InvalidRequest(f"{path} is {what}")


@contextmanager
def _shared(path: Path) -> Iterator[None]:
    """Hold a shared lock; where there is no lock file nobody has written yet."""
    try:
        descriptor = os.open(path, _READ)
    except FileNotFoundError:
        yield
        return
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise HandOffFailed(
                    f"{path} is held by another program for {LOCK_SECONDS:.0f} s: look for a podman, buildah or crio "
                    "that hangs, and try again"
                )
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def _entries(path: Path, kind: type[T]) -> list[T]:
    try:
        with open(os.open(path, _READ), "rb") as file:
            data = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        return []
    if len(data) > LARGEST_BYTES:
        raise InvalidRequest(f"{path} is larger than {LARGEST_BYTES} bytes")
    try:
        return msgspec.json.decode(data or b"[]", type=list[kind] | None) or []  # type: ignore[valid-type]
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"{path} is not what containers-storage writes: {error}") from error


def _image(record: _Image) -> GraphImage:
    return GraphImage(record.id, tuple(_names(record.names or ())), record.digest, record.layer)


def _names(texts: Iterable[str]) -> Iterator[Reference]:
    """Names by tag come before those by digest: an image that has only the latter gets them all the same."""
    for text in sorted(texts, key=lambda one: ("@" in one, one)):
        try:
            yield parse_reference(text)
        except InvalidReference:
            continue


def _digest(text: str) -> Digest | None:
    try:
        return Digest.parse(text)
    except RootfsError:
        return None


def _blob(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"
