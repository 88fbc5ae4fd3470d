"""Whether what the index says is on the disk as it was put there: one layer, or the documents of one image, at a time.

A plain layer is compared with its tar (`rootfs.scrub`), a form with the plain layer that it was made of
(`rootfs.likeness`), a document with its digest. Nothing is changed here, and no daemon need run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from cri_shim.errors import StoreDamaged
from cri_shim.executor import in_thread
from cri_shim.store.blobs import Blobs
from cri_shim.store.image import image_from, record_names
from cri_shim.store.seal import Seal, decode_implied, decode_seal
from rootfs.commit import IMPLIED_BYTES
from rootfs.digest import Digest
from rootfs.errors import shown
from rootfs.forms import Form
from rootfs.overlay import link_name
from rootfs.scrub import Order

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from cri_shim.store.catalog import Catalog, Layer
    from cri_shim.store.image import Document, Image
    from cri_shim.store.layout import Layout
    from rootfs.client import Helper, Job
    from rootfs.limits import Limits
    from rootfs.scrub import Flaw as Found
    from rootfs.scrub import Scrubbed

T = TypeVar("T")
RECORD_LOST: Final = "the record of the image is gone, or cannot be read"
"""The flaw that the index can mend."""

_COMPARED: Final = ("bottom", "chain", "again")


@dataclass(frozen=True, slots=True)
class Manner:
    """How it is looked: *content* is read or only what the disk knows of files; *idle* lets everybody else go first.

    *bytes_per_second* are read at most; 0 for as fast as it goes. *wait* waits for a job of the helper.
    """

    content: bool
    idle: bool
    bytes_per_second: int
    wait: Callable[[Job[object]], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong, and where in the layer: *path* is printable, "" for all of it."""

    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}" if self.path else self.what


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found: *flaws*, and *more* of them; *compared* is False where there was nothing to compare with."""

    flaws: tuple[Flaw, ...]
    more: int = 0
    compared: bool = True
    read_bytes: int = 0


class Examiner:
    """Looks at one thing after another of the root of *layout*; *limits* are those that layers were unpacked with."""

    def __init__(self, layout: Layout, helper: Helper, limits: Limits) -> None:
        self._layout = layout
        self._helper = helper
        self._limits = limits
        self._blobs = Blobs(layout)

    async def layer(self, layer: Layer, catalog: Catalog, manner: Manner) -> Examined:
        """Look at *layer*.

        Raises:
            RootfsError: it could not be found out.
        """
        seal = await in_thread(self._sealed, layer)
        if isinstance(seal, Flaw):
            return Examined((seal,))
        if layer.form == "plain":
            return await self._plain(layer, seal, manner)
        below = _below(layer, catalog)
        if layer.form in _COMPARED and below is not None:
            return await self._form(layer, seal, below, manner)
        return Examined((), compared=False)

    def documents(self, image: Image, *, content: bool) -> tuple[Flaw, ...]:
        """Look at the manifests, the config and the record of *image*. Blocks on the disk."""
        flaws = [flaw for document in image.documents if (flaw := self._document(document, content=content))]
        return (*flaws, *self._record(image))

    def _document(self, document: Document, *, content: bool) -> Flaw | None:
        path = self._blobs.path(document.digest)
        try:
            if content:
                self._blobs.get(document.digest)
            size = path.stat().st_size
        except FileNotFoundError:
            return Flaw(str(path), "it is gone")
        except OSError as error:
            return Flaw(str(path), f"it cannot be read ({error.strerror})")
        except StoreDamaged:
            return Flaw(str(path), "it does not match its digest" if path.exists() else "it is gone")
        return None if size == document.size_bytes else Flaw(str(path), "its size has changed")

    def _record(self, image: Image) -> tuple[Flaw, ...]:
        path = self._blobs.record_path(image.id)
        try:
            record = path.read_bytes()
            if image_from(record, record_names(record)).id == image.id:
                return ()
        except (OSError, StoreDamaged):
            pass
        return (Flaw(str(path), RECORD_LOST),)

    def _sealed(self, layer: Layer) -> Seal | Flaw:
        """Read the seal, or say what of the directory is not there."""
        place = self._layout.overlay / layer.name
        if not place.is_dir():
            return Flaw("", "its directory is gone")
        if place.joinpath("diff").is_symlink() or not place.joinpath("diff").is_dir():
            return Flaw("", "its files are gone")
        try:
            seal = decode_seal(_read(place / "layer.json"))
        except (OSError, StoreDamaged):
            return Flaw("", "its seal is gone, or cannot be read")
        if (seal.name, seal.diff_id, seal.form) != (layer.name, layer.diff_id, layer.form):
            return Flaw("", "its seal is that of another layer")
        try:
            linked = _read(place / "link") == link_name(layer.name).encode()
        except OSError:
            linked = False
        return seal if linked else Flaw("", "its short name is gone, or another's")

    async def _plain(self, layer: Layer, seal: Seal, manner: Manner) -> Examined:
        implied = await in_thread(self._implied, layer)
        if len(implied) != seal.implied:
            return Examined((Flaw("", "the list of its implied directories has changed"),))
        order = Order(
            diff_id=layer.diff_id,
            record=Digest.parse(seal.tar_split) if seal.tar_split else None,
            skipped=frozenset(kind for kind, _ in seal.skipped),
            content=manner.content,
            bytes_per_second=manner.bytes_per_second,
            privileged=False,
        )
        found = await waited(manner, self._helper.scrub(layer.name, order, self._limits, idle=manner.idle))
        lost: tuple[Found, ...] = ()
        if found.opaque:
            lost = await waited(manner, self._helper.unmarked(layer.name, found.opaque, idle=manner.idle))
        return _examined(found, lost)

    async def _form(self, layer: Layer, seal: Seal, below: tuple[str, ...], manner: Manner) -> Examined:
        plain = layer.diff_id.hex
        implied: tuple[bytes, ...] = ()
        if layer.form == "chain":
            implied = await in_thread(lambda: decode_implied(_read(self._layout.overlay / plain / "implied")))
        form = Form(layer.form, seal.source or plain, below, implied)
        job = self._helper.compare(
            layer.name, form, content=manner.content, bytes_per_second=manner.bytes_per_second, idle=manner.idle
        )
        return _examined(await waited(manner, job), ())

    def _implied(self, layer: Layer) -> tuple[bytes, ...]:
        try:
            return decode_implied(_read(self._layout.overlay / layer.name / "implied"))
        except OSError:
            return ()


async def waited(manner: Manner, job: Job[T]) -> T:
    """Return the result of *job*, waiting for it in the given manner."""
    return await manner.wait(job)  # type: ignore[return-value,arg-type]  # whatever it gives


def _examined(found: Scrubbed, lost: tuple[Found, ...]) -> Examined:
    flaws = tuple(Flaw(shown(flaw.path) if flaw.path else "", flaw.what) for flaw in (*found.flaws, *lost))
    return Examined(flaws, found.more, found.compared, found.read_bytes)


def _below(layer: Layer, catalog: Catalog) -> tuple[str, ...] | None:
    """Return the layers below a form, nearest first, in an image that has it; None when none does."""
    for image in catalog.images.values():
        names = image.layer_names
        if layer.name in names:
            return tuple(reversed(names[: names.index(layer.name)]))
    return None


def _read(path: Path) -> bytes:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        return file.read(IMPLIED_BYTES)
