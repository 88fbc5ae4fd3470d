"""Messages about images, each made once.

A node of thousands of images is listed every half minute and asked about more often, while hardly any of them changes.
Images are values: as long as the store hands out the same one, its message is the same too. What is handed out here is
shared between answers and must not be changed.

Lists are handed out as they travel. On the wire a message with one repeated field is its entries, one behind the other
(protobuf's encoding specification, "Repeated elements"), so a list is joined from what was encoded once per image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cri_shim.errors import LimitExceeded
from cri_shim.pb import api_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cri_shim.server.convert import Spelling
    from cri_shim.store.image import Image

LARGEST_MESSAGE_BYTES: Final = 16 << 20
"""What kubelet, crictl and every other client built on cri-client take in one message."""

LARGEST_BATCH: Final = 200
"""Images in one message of a stream."""

LARGEST_BATCH_BYTES: Final = 1 << 20
"""Bytes in one message of a stream, unless one image alone takes more."""

_MOST_KEPT: Final = 20_000


@dataclass(frozen=True, slots=True)
class _Made:
    """What was made of an image: its message, and its entry in a list (whose only field is `images`, 1)."""

    image: Image
    message: api_pb2.Image
    entry: bytes


class Listing:
    """The messages of the images of this node, spelled by *spelling*."""

    def __init__(self, spelling: Spelling) -> None:
        self._spelling = spelling
        self._made: dict[str, _Made] = {}
        self._listed: tuple[Image, ...] = ()
        self._list = b""

    def message(self, image: Image) -> api_pb2.Image:
        """Return the message about *image*."""
        return self._of(image).message

    def remember(self, images: tuple[Image, ...]) -> None:
        """Make the list of *images*, unless it is the one from before. What is of other images is forgotten."""
        if images is self._listed:
            return
        self._list = self.some(images)
        self._listed = images
        if len(self._made) > len(images):
            self._made = {image.id.hex: made for image in images if (made := self._made.get(image.id.hex)) is not None}

    def whole(self, images: tuple[Image, ...]) -> bytes:
        """Return the answer that lists *images*, a `ListImagesResponse` as it travels.

        Raises:
            LimitExceeded: no client would take it.
        """
        self.remember(images)
        _check_fits(len(images), len(self._list))
        return self._list

    def some(self, images: Iterable[Image]) -> bytes:
        """Return the same without keeping it."""
        known, entries = self._made.get, []
        for image in images:  # thousands of them, on the event loop: no call for one that is known
            made = known(image.id.hex)
            entries.append(made.entry if made is not None and made.image is image else self._of(image).entry)
        return b"".join(entries)

    def batches(self, images: Iterable[Image]) -> Iterator[bytes]:
        """Return the answers of a stream, each a `StreamImagesResponse`: each image in one, none of them empty."""
        batch: list[bytes] = []
        batch_bytes = 0
        for image in images:
            entry = self._of(image).entry
            if batch and (len(batch) == LARGEST_BATCH or batch_bytes + len(entry) > LARGEST_BATCH_BYTES):
                yield b"".join(batch)
                batch, batch_bytes = [], 0
            batch.append(entry)
            batch_bytes += len(entry)
        if batch:
            yield b"".join(batch)

    def _of(self, image: Image) -> _Made:
        made = self._made.get(image.id.hex)
        if made is not None and made.image is image:
            return made
        if len(self._made) >= _MOST_KEPT:  # of images that are gone; `whole` tidies up, but nobody has to call it
            self._made.clear()
        message = self._spelling.image(image)
        made = _Made(image, message, api_pb2.ListImagesResponse(images=[message]).SerializeToString())
        self._made[image.id.hex] = made
        return made


def _check_fits(count: int, size_bytes: int) -> None:
    if size_bytes > LARGEST_MESSAGE_BYTES:
        raise LimitExceeded(
            f"the list of {count} images takes {size_bytes} bytes, and clients take {LARGEST_MESSAGE_BYTES} at most; "
            "ask by StreamImages (kubelet: the feature gate CRIListStreaming), or remove images"
        )
