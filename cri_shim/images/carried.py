"""An archive in the place of a registry: what a pull asks `network.Network`, answered from files.

So an import is a pull: the same digests, diff IDs, limits, forms and record, the same confined unpacker, the same
hand-off. Nothing is fetched, and what an archive brought is no registry's delivery (`ORIGIN`): who pulls the same blob
from a registry shows there that he may.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from cri_shim.auth.credential import ANONYMOUS
from cri_shim.errors import Cancelled, ContentRejected, LimitExceeded, NotFound
from cri_shim.images.network import in_thread
from cri_shim.images.offers import DOCUMENT_BYTES
from cri_shim.registry.client import Delivered, Fetched, Resolved
from rootfs.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cri_shim.auth.credential import Credential
    from cri_shim.images.archive import Files, Part
    from cri_shim.images.network import Source, Threads
    from cri_shim.images.offers import Offer
    from cri_shim.images.standing import Standing
    from cri_shim.oci.manifest import Descriptor, Layer
    from cri_shim.oci.reference import Reference
    from cri_shim.registry.cancel import Cancel
    from cri_shim.registry.flow import Payers
    from cri_shim.registry.segments import Sink

T = TypeVar("T")

ORIGIN: Final = "(import)"
"""Stands for the registry in what is noted about deliveries; no registry can be called so."""


class Carried:
    """Answers about one image of an archive."""

    def __init__(
        self, files: Files, offer: Offer, threads: Threads, where: str, standing: Standing | None = None
    ) -> None:
        """*where* is what messages call the archive; *standing* tells which layers are unpacked somewhere already."""
        self._files = files
        self._offer = offer
        self._threads = threads
        self._where = where
        self.standing = standing

    async def resolve(self, reference: Reference, credentials: Sequence[Credential]) -> Resolved:
        """Return what the name stands for in the archive."""
        del reference, credentials
        return Resolved(self._offer.target, self._offer.media_type, None, self._where, ANONYMOUS)

    async def manifest(
        self, reference: Reference, credentials: Sequence[Credential], digest: Digest | None = None
    ) -> Fetched:
        """Return a manifest or an index."""
        del reference, credentials
        wanted = digest or self._offer.target
        data = await self._ask(lambda: self._document(wanted, None, DOCUMENT_BYTES))
        media_type = self._offer.media_type if digest is None else ""
        return Fetched(data, media_type, wanted, self._where, ANONYMOUS)

    async def document(self, source: Source, descriptor: Descriptor, limit_bytes: int) -> bytes:
        """Return a config, verified."""
        del source
        return await self._ask(lambda: self._document(descriptor.digest, descriptor.size_bytes, limit_bytes))

    async def has_blob(self, source: Source, descriptor: Descriptor) -> bool:
        """Tell whether the archive has a blob."""
        del source
        stands = self.standing is not None and self.standing.has_tar(descriptor.digest)
        return stands or await self._ask(lambda: self._find(descriptor.digest) is not None)

    async def download(
        self,
        source: Source,
        descriptor: Descriptor,
        sink: Sink,
        begun: Callable[[], None],
        avoid: frozenset[str] = frozenset(),
        payers: Payers | None = None,
    ) -> Delivered:
        """Copy a layer blob into *sink*; whether it is the right one is found out as it is for a download."""
        del source, avoid, payers
        begun()
        return await in_thread(self._threads.downloads, lambda cancel: self._copy(descriptor, sink, cancel))

    async def has_others(self, source: Source, avoid: frozenset[str]) -> bool:
        """Tell that there is one archive only."""
        del source, avoid
        return False

    async def expect(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        """Look for *layers* where they may stand unpacked."""
        return layers if self.standing is None else await self.standing.expect(layers)

    def _copy(self, descriptor: Descriptor, sink: Sink, cancel: Cancel) -> Delivered:
        if self.standing is not None and self.standing.has_tar(descriptor.digest):
            sink.restart()
            self.standing.assemble(descriptor.digest, sink, cancel)
            return Delivered(self._where, descriptor.size_bytes, (self._where,))
        part = self._find(descriptor.digest)
        if part is None or isinstance(part, bytes):
            raise NotFound(f"{self._where} does not have the blob {descriptor.digest}")
        if part.size_bytes != descriptor.size_bytes:
            raise ContentRejected(
                f"{self._where} has {part.size_bytes} bytes for {descriptor.digest}, not {descriptor.size_bytes}"
            )
        sink.restart()
        for piece in part.pieces():
            if cancel.cancelled:
                raise Cancelled("the import was given up")
            sink.append(piece)
        return Delivered(self._where, part.size_bytes, (self._where,))

    def _document(self, digest: Digest, size_bytes: int | None, limit_bytes: int) -> bytes:
        part = self._find(digest)
        if part is None:
            raise NotFound(f"{self._where} does not have the document {digest}")
        data = part if isinstance(part, bytes) else part.read(limit_bytes)
        if len(data) > limit_bytes:
            raise LimitExceeded(f"the document {digest} of {len(data)} bytes is larger than {limit_bytes} bytes")
        if Digest.of(data, digest.algorithm) != digest or size_bytes not in (None, len(data)):
            raise ContentRejected(f"{self._where} has other bytes for {digest} than its digest and size promise")
        return data

    def _find(self, digest: Digest) -> Part | bytes | None:
        return self._offer.blobs.get(digest) or self._files.find(f"blobs/{digest.algorithm}/{digest.hex}")

    async def _ask(self, call: Callable[[], T]) -> T:
        return await in_thread(self._threads.questions, lambda _: call())
