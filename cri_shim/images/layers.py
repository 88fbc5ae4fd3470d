"""Bringing one layer here: who may use what is present, who joins whom, and the arrival itself.

A layer that lies here is not everybody's. It serves a pull when this registry delivered its blob to this node for
this very repository (the pull has just read the manifest there with its own credential), or when the credential
passes a HEAD for the blob at a registry that once delivered it. A registry that never did must deliver it in full:
the bytes are weighed and dropped. So a digest in a manifest, or a diff ID in a config, unlocks nothing by itself.

A blob arrives once at a time. Pulls of the same repository share the flight; others wait for its end and then ask
for themselves, which as a rule costs a HEAD.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.errors import ContentRejected
from cri_shim.images.flight import Flights, first_of
from cri_shim.images.progress import Transfer
from cri_shim.store.catalog import Delivery, Proof
from cri_shim.store.ingest import Ingest
from cri_shim.store.seal import encode_seal, seal_of
from cri_shim.store.store import run_job, undisturbed
from rootfs.errors import JobCancelled, LayerRejected

if TYPE_CHECKING:
    from cri_shim.images.network import Network, Source
    from cri_shim.images.progress import LayerProgress
    from cri_shim.oci.manifest import Descriptor, Layer
    from cri_shim.store.store import Lease, Store
    from rootfs.apply import Applied
    from rootfs.digest import Digest
    from rootfs.limits import Limits

_HASHED_AT_ONCE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Want:
    """What one flight brings: a blob of a repository, and the diff ID that it must unpack to."""

    registry: str
    repository: str
    blob: Digest
    diff_id: Digest

    def __str__(self) -> str:
        return f"{self.blob} of {self.registry}/{self.repository}"


@dataclass(frozen=True, slots=True)
class Unpacking:
    """How layers are unpacked: bounds, how they are synced, how many at once."""

    limits: Limits
    sync: str
    at_once: int


class Layers:
    """The layers on their way to this node."""

    def __init__(self, store: Store, network: Network, unpacking: Unpacking) -> None:
        self._store = store
        self._network = network
        self._unpacking = unpacking
        self._slots = asyncio.Semaphore(unpacking.at_once)
        self._flights: Flights[Want, None] = Flights()
        self._transfers: dict[Want, Transfer] = {}
        self._arriving: dict[Digest, asyncio.Event] = {}

    @property
    def transfers(self) -> tuple[Transfer, ...]:
        """The layers that are on their way now."""
        return tuple(self._transfers.values())

    async def bring(self, source: Source, layer: Layer, lease: Lease, progress: LayerProgress) -> None:
        """Return when the plain layer lies here and *source* has shown that it may use it."""
        lease.hold(layer.diff_id.hex)
        want = Want(source.registry, source.repository, layer.descriptor.digest, layer.diff_id)
        if self._is_here(want) and await self._may_use(source, want):
            progress.why = "present"
            return
        progress.why = "joined" if want in self._flights else "fetched"
        progress.transfer = self._transfers.setdefault(want, Transfer(str(want.blob), layer.descriptor.size_bytes))
        try:
            await self._flights.join(want, lambda: self._fly(source, layer, want, lease))
        finally:
            if want not in self._flights:
                self._transfers.pop(want, None)

    def _is_here(self, want: Want) -> bool:
        catalog = self._store.catalog
        return want.diff_id.hex in catalog.layers and Proof(want.blob, want.diff_id) in catalog.proofs

    async def _may_use(self, source: Source, want: Want) -> bool:
        delivery = Delivery(want.registry, want.repository, want.blob)
        if delivery in self._store.catalog.deliveries:
            return True
        elsewhere = any(d.registry == want.registry and d.blob == want.blob for d in self._store.catalog.deliveries)
        if not elsewhere or not await self._network.has_blob(source, want.blob):
            return False
        await self._store.put_deliveries((delivery,))
        return True

    async def _fly(self, source: Source, layer: Layer, want: Want, lease: Lease) -> None:
        while (arriving := self._arriving.get(want.blob)) is not None:
            await arriving.wait()
        self._arriving[want.blob] = asyncio.Event()
        try:
            await self._settle(source, layer, want, lease)
        finally:
            self._arriving.pop(want.blob).set()

    async def _settle(self, source: Source, layer: Layer, want: Want, lease: Lease) -> None:
        if not self._is_here(want):
            await self._arrive(source, layer, want, lease)
        elif not await self._may_use(source, want):
            await self._weigh(source, layer.descriptor, self._transfers[want])
            await self._store.put_deliveries((Delivery(want.registry, want.repository, want.blob),))

    async def _arrive(self, source: Source, layer: Layer, want: Want, lease: Lease) -> None:
        transfer = self._transfers[want]
        path = self._store.layout.ingest / f"{want.blob.algorithm}-{want.blob.hex}"
        ingest = await self._store.disk(lambda: Ingest(path, layer.descriptor.size_bytes))
        transfer.ingest = ingest
        try:
            async with asyncio.TaskGroup() as group:
                download = group.create_task(self._download(source, layer.descriptor, ingest, transfer))
                unpack = group.create_task(self._unpack(ingest, layer, transfer, download))
            staging, applied = unpack.result()
            await undisturbed(self._commit(staging, applied, want, lease))
            transfer.unpack_end = time.monotonic()
        except BaseExceptionGroup as failures:
            raise first_of(failures) from None
        finally:
            transfer.ingest = None
            await undisturbed(self._store.disk(ingest.close))

    async def _download(self, source: Source, descriptor: Descriptor, ingest: Ingest, transfer: Transfer) -> None:
        def begun() -> None:
            transfer.fetch_start = time.monotonic()

        transfer.host = await self._network.download(source, descriptor, ingest, begun)
        transfer.fetch_end = time.monotonic()
        await self._store.disk(ingest.finish)

    async def _unpack(
        self, ingest: Ingest, layer: Layer, transfer: Transfer, download: asyncio.Task[None]
    ) -> tuple[str, Applied]:
        staging = uuid.uuid4().hex
        try:
            async with self._slots:
                transfer.unpack_start = time.monotonic()
                applied = await self._follow(ingest, layer.descriptor, staging)
            _check(applied, layer)
        except BaseException as error:
            await self._store.discard(staging)
            if isinstance(error, LayerRejected):
                await download
                await self._blame_the_bytes(ingest, layer.descriptor, transfer.host)
            raise
        return staging, applied

    async def _follow(self, ingest: Ingest, descriptor: Descriptor, staging: str) -> Applied:
        while True:
            blob, watermarks, generation = await self._store.disk(ingest.follow)
            try:
                job = self._store.helper.unpack(
                    staging,
                    blob,
                    watermarks,
                    blob=descriptor.digest,
                    blob_size_bytes=descriptor.size_bytes,
                    limits=self._unpacking.limits,
                )
            finally:
                os.close(blob)
                os.close(watermarks)
            try:
                return await run_job(job)
            except JobCancelled:
                if ingest.generation == generation:
                    raise

    async def _blame_the_bytes(self, ingest: Ingest, descriptor: Descriptor, host: str) -> None:
        """Tell a broken layer from a broken download: only the digest knows."""
        found = await self._store.disk(lambda: _digest_of(ingest, descriptor))
        if found != descriptor.digest:
            raise _wrong_bytes(descriptor, found, host)

    async def _commit(self, staging: str, applied: Applied, want: Want, lease: Lease) -> None:
        seal = seal_of(applied)
        await self._store.ready_for(seal.name)
        job = self._store.helper.commit(staging, name=seal.name, seal=encode_seal(seal), sync=self._unpacking.sync)
        await run_job(job)
        delivery = Delivery(want.registry, want.repository, want.blob)
        await self._store.put_layer(seal.layer, Proof(want.blob, want.diff_id), delivery, lease)

    async def _weigh(self, source: Source, descriptor: Descriptor, transfer: Transfer) -> None:
        scale = Scale(descriptor)
        transfer.fetch_start = time.monotonic()
        transfer.host = await self._network.download(source, descriptor, scale, lambda: None)
        transfer.fetch_end = transfer.unpack_end = time.monotonic()
        if (found := scale.digest()) != descriptor.digest:
            raise _wrong_bytes(descriptor, found, transfer.host)


class Scale:
    """A sink that keeps nothing but the digest: for a registry that must prove it has a blob."""

    def __init__(self, descriptor: Descriptor) -> None:
        self._descriptor = descriptor
        self.restart()

    def restart(self) -> None:
        """Begin again."""
        self.position_bytes = 0
        self._hash = self._descriptor.digest.new_hash()

    def append(self, data: bytes | memoryview) -> None:
        """Take *data* into account."""
        self._hash.update(data)
        self.position_bytes += len(data)

    def digest(self) -> Digest:
        """Return the digest of what was delivered."""
        digest = self._descriptor.digest
        return type(digest)(digest.algorithm, self._hash.hexdigest())


def _digest_of(ingest: Ingest, descriptor: Descriptor) -> Digest:
    scale = Scale(descriptor)
    while piece := ingest.read_at(scale.position_bytes, _HASHED_AT_ONCE_BYTES):
        scale.append(piece)
    return scale.digest()


def _check(applied: Applied, layer: Layer) -> None:
    if applied.diff_id != layer.diff_id:
        raise ContentRejected(
            f"layer {layer.descriptor.digest} unpacks to {applied.diff_id}, "
            f"but the image's config says {layer.diff_id}: the image was put together wrongly"
        )


def _wrong_bytes(descriptor: Descriptor, found: Digest, host: str) -> ContentRejected:
    return ContentRejected(
        f"blob {descriptor.digest}: {host} sent bytes whose digest is {found}: "
        "the registry, or something on the way, has damaged them"
    )
