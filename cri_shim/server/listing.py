"""Messages about images, each made once.

A node of thousands of images is listed every half minute and asked about more often, while hardly any of them changes.
Images are values: as long as the store hands out the same one, its message is the same too. What is handed out here is
shared between answers and must not be changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri_shim.errors import LimitExceeded
from cri_shim.pb import api_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cri_shim.server.convert import Spelling
    from cri_shim.store.image import Image
    from rootfs.digest import Digest

LARGEST_MESSAGE_BYTES: Final = 16 << 20
"""What kubelet, crictl and every other client built on cri-client take in one message."""

LARGEST_BATCH: Final = 200
"""Images in one message of a stream."""

LARGEST_BATCH_BYTES: Final = 1 << 20
"""Bytes in one message of a stream, unless one image alone takes more."""

_MOST_KEPT: Final = 20_000


class Listing:
    """The messages of the images of this node, spelled by *spelling*."""

    def __init__(self, spelling: Spelling) -> None:
        self._spelling = spelling
        self._made: dict[Digest, tuple[Image, api_pb2.Image]] = {}
        self._listed: tuple[Image, ...] = ()
        self._list = api_pb2.ListImagesResponse()
        self._list_bytes = 0

    def message(self, image: Image) -> api_pb2.Image:
        """Return the message about *image*."""
        made = self._made.get(image.id)
        if made is not None and made[0] is image:
            return made[1]
        if len(self._made) >= _MOST_KEPT:  # of images that are gone; `whole` tidies up, but nobody has to call it
            self._made.clear()
        message = self._spelling.image(image)
        self._made[image.id] = (image, message)
        return message

    def remember(self, images: tuple[Image, ...]) -> None:
        """Make the list of *images*, unless it is the one from before. What is of other images is forgotten."""
        if images is self._listed:
            return
        self._list = api_pb2.ListImagesResponse(images=map(self.message, images))
        self._list_bytes = self._list.ByteSize()
        self._listed = images
        self._made = {image.id: self._made[image.id] for image in images if image.id in self._made}

    def whole(self, images: tuple[Image, ...]) -> api_pb2.ListImagesResponse:
        """Return the answer that lists *images*.

        Raises:
            LimitExceeded: no client would take it.
        """
        self.remember(images)
        _check_fits(len(images), self._list_bytes)
        return self._list

    def batches(self, images: Iterable[Image]) -> Iterator[api_pb2.StreamImagesResponse]:
        """Return the answers of a stream: each image in one of them, none of them empty."""
        batch: list[api_pb2.Image] = []
        batch_bytes = 0
        for message in map(self.message, images):
            size_bytes = message.ByteSize()
            if batch and (len(batch) == LARGEST_BATCH or batch_bytes + size_bytes > LARGEST_BATCH_BYTES):
                yield api_pb2.StreamImagesResponse(images=batch)
                batch, batch_bytes = [], 0
            batch.append(message)
            batch_bytes += size_bytes
        if batch:
            yield api_pb2.StreamImagesResponse(images=batch)


def _check_fits(count: int, size_bytes: int) -> None:
    if size_bytes > LARGEST_MESSAGE_BYTES:
        raise LimitExceeded(
            f"the list of {count} images takes {size_bytes} bytes, and clients take {LARGEST_MESSAGE_BYTES} at most; "
            "ask by StreamImages (kubelet: the feature gate CRIListStreaming), or remove images"
        )
