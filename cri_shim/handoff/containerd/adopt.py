"""Taking over what containerd pulled itself, on a node that has it already: no registry is asked.

Its content store is read like an OCI layout, so every image comes in by the way of a pull, with every digest and diff
ID checked. Where its snapshots have files equal to those that were unpacked, these take their place, so that nothing
lies twice while containers still use them. Then containerd forgets its own copy and is given ours: what no container
uses is freed at once, the rest when its containers are gone. An image of which containerd has not kept the layers'
blobs stays with containerd alone, and is told.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from cri_shim.errors import InvalidReference, NotFound, ShimError
from cri_shim.images.archive import open_files
from cri_shim.images.importing import Adopted, Taken
from cri_shim.images.offers import Offer
from cri_shim.images.standing import Tally
from cri_shim.oci.reference import parse_reference
from rootfs.digest import Digest
from rootfs.errors import RootfsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cri_shim.handoff.containerd.handoff import Containerd
    from cri_shim.handoff.containerd.records import Record
    from cri_shim.images.importing import Importer
    from cri_shim.images.publishing import Publishing
    from cri_shim.oci.reference import Reference
    from cri_shim.store.image import Image

_WHERE = "containerd's content store"
_DISCARDED = (
    "containerd may have been told to discard what it has unpacked (discard_unpacked_layers), and what is left proves "
    "no layer: the image is pulled at its next use"
)
_log = logging.getLogger(__name__)


class Adoption:
    """Brings images of *containerd* here."""

    def __init__(self, containerd: Containerd, importer: Importer, publishing: Publishing) -> None:
        self._containerd = containerd
        self._importer = importer
        self._publishing = publishing

    async def run(self) -> Taken:
        """Take over every image that containerd has and we did not give it; wait for it if it is not there yet.

        Raises:
            HandOffFailed: it cannot be asked.
            InvalidRequest: its content store cannot be read.
        """
        await self._containerd.arrival()
        wanted = tuple(_offers(await self._containerd.foreign()))
        tally = Tally()
        taken = [await self._take(reference, offer, tally) for reference, offer in wanted]
        ours = {one.image.id: one.image for one in taken if one.image is not None}
        failures = {image.id: await self._replace(image) for image in ours.values()}
        told = tuple(one if one.image is None else replace(one, failure=failures[one.image.id]) for one in taken)
        _log.info("adopted %d of %d images of containerd", sum(not one.failure for one in told), len(told))
        return Taken(told, tally)

    async def _replace(self, image: Image) -> str:
        """Let containerd forget its own layers and blobs and have ours; return why it has not."""
        try:
            await self._publishing.replace(image)
        except (ShimError, RootfsError) as error:  # the others are taken over all the same
            _log.error("image %s is here, and containerd was not given it: %s", image.id, error)
            return str(error)
        return ""

    async def _take(self, reference: Reference, offer: Offer, tally: Tally) -> Adopted:
        content, find = self._containerd.content, self._containerd.trees
        try:
            image = await self._importer.take(lambda: open_files(content), reference, offer, _WHERE, find, tally)
        except NotFound as error:
            return _left(reference, f"{error}; {_DISCARDED}")
        except (ShimError, RootfsError) as error:
            return _left(reference, str(error))
        return Adopted(str(reference), image)


def _left(reference: Reference, failure: str) -> Adopted:
    _log.warning("%s stays with containerd alone: %s", reference, failure)
    return Adopted(str(reference), None, failure)


def _offers(records: Iterable[Record]) -> Iterator[tuple[Reference, Offer]]:
    """Names by tag come before those by digest: an image that has only the latter gets them all the same."""
    for record in sorted(records, key=lambda one: ("@" in one.name, one.name)):
        if record.name.startswith("sha256:"):
            continue  # the id, under which its CRI plugin keeps every image as well
        try:
            reference, target = parse_reference(record.name), Digest.parse(record.target.digest)
        except (InvalidReference, RootfsError):
            continue
        yield reference, Offer((reference,), record.name, target, record.target.media_type, {}, genuine=True)
