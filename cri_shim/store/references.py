"""How many images need what: a layer directory, a document.

Counted when an image comes or goes, so that no question has to go through all the images there are.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cri_shim.store.image import Image
    from rootfs.digest import Digest


class References:
    """What the images of a catalog stand on."""

    def __init__(self) -> None:
        self.document_bytes = 0
        self._layers: Counter[str] = Counter()
        self._documents: Counter[Digest] = Counter()
        self._sizes_bytes: dict[Digest, int] = {}

    def layer(self, name: str) -> int:
        """Return how many images need the layer directory *name*."""
        return self._layers[name]

    def layers(self) -> frozenset[str]:
        """Return every layer directory that an image needs."""
        return frozenset(self._layers)

    def documents(self, digest: Digest) -> int:
        """Return how many images need the document."""
        return self._documents[digest]

    def document(self, digest: Digest) -> bool:
        """Tell whether an image needs the document."""
        return digest in self._documents

    @property
    def document_count(self) -> int:
        """How many documents the images need, each counted once."""
        return len(self._documents)

    def add(self, image: Image) -> None:
        """Count what *image* needs."""
        self._layers.update(directories(image))
        for document in {one.digest: one for one in image.documents}.values():
            self._documents[document.digest] += 1
            if self._documents[document.digest] == 1:
                self._sizes_bytes[document.digest] = document.size_bytes
                self.document_bytes += document.size_bytes

    def remove(self, image: Image) -> None:
        """Take back what `add` counted for *image*."""
        for name in directories(image):
            self._layers[name] -= 1
            if not self._layers[name]:
                del self._layers[name]
        for digest in {one.digest for one in image.documents}:
            self._documents[digest] -= 1
            if not self._documents[digest]:
                del self._documents[digest]
                self.document_bytes -= self._sizes_bytes.pop(digest)


def directories(image: Image) -> frozenset[str]:
    """Return the layer directories that *image* stands on.

    The plain layer that a form was made of is among them: it costs directories only, and the next image that has the
    layer at another place needs it.
    """
    return frozenset(_directories(image))


def _directories(image: Image) -> Iterator[str]:
    for layer in image.layers:
        yield layer.name
        yield layer.diff_id.hex
