"""Bringing one layer here: who may use what is present, who joins whom, and the arrival itself.

A layer that lies here is not everybody's. It serves a pull when this registry delivered its blob to this node for
this very repository (the pull has just read the manifest there with its own credential), or when the credential
passes a HEAD for the blob at a registry that once delivered it. A registry that never did must deliver it in full:
the bytes are weighed and dropped. So a digest in a manifest, or a diff ID in a config, unlocks nothing by itself.

A blob of one repository arrives once at a time, and its pulls share the flight. Pulls of other repositories wait for
its end, COURTESY_SECONDS at most, and then ask for themselves, which as a rule costs a HEAD: a registry that sends
slowly holds up nobody but those who pull from it.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cri_shim.errors import ContentRejected, Denied, NoSpace, StoreDamaged, Unauthenticated
from cri_shim.images.flight import Flights, first_of
from cri_shim.images.progress import Transfer
from cri_shim.images.scale import Scale, WrongBytes, weighed
from cri_shim.oci.media import must_be_plain
from cri_shim.store.ingest import Arrival
from cri_shim.store.provenance import Delivery, Proof
from cri_shim.store.seal import encode_implied, encode_seal, seal_of
from cri_shim.store.store import run_job, undisturbed
from rootfs import errors
from rootfs.errors import ContentMismatch, JobCancelled, LayerRejected, LimitExceeded

if TYPE_CHECKING:
    from cri_shim.images.network import Origin, Source
    from cri_shim.images.progress import LayerProgress
    from cri_shim.oci.manifest import Descriptor, Layer
    from cri_shim.registry.client import Delivered
    from cri_shim.registry.flow import Flow
    from cri_shim.store.ingest import Ingest
    from cri_shim.store.lease import Lease
    from cri_shim.store.store import Store
    from rootfs.apply import Applied
    from rootfs.digest import Digest
    from rootfs.limits import Limits

COURTESY_SECONDS: Final = 10.0
"""How long a pull waits for a blob that another repository sends, which it would not have to fetch then."""

WEIGHED_BYTES: Final = 256 << 20
"""How much of a layer that cannot be unpacked is fetched still, to tell by its digest whose fault that is."""

_log = logging.getLogger(__name__)

FULL = (NoSpace, errors.NoSpace)
"""There is no room on the disk."""

# After these what has arrived is of no use to the next pull, or the disk has no room for it.
_VOID = (ContentRejected, StoreDamaged, LayerRejected, ContentMismatch, LimitExceeded, *FULL)


@dataclass(frozen=True, slots=True)
class Want:
    """What one flight brings: a blob of a repository, and the diff ID that it must unpack to."""

    registry: str
    repository: str
    blob: Digest
    diff_id: Digest

    @property
    def origin(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    def __str__(self) -> str:
        return f"{self.blob} of {self.origin}"


@dataclass(frozen=True, slots=True)
class _Errand:
    """One attempt to bring a layer, and the hosts that have sent wrong bytes before."""

    source: Source
    layer: Layer
    want: Want
    lease: Lease
    transfer: Transfer
    avoid: frozenset[str]

    @property
    def descriptor(self) -> Descriptor:
        """The blob's descriptor in the manifest."""
        return self.layer.descriptor


@dataclass(frozen=True, slots=True)
class Unpacking:
    """How layers are unpacked: bounds, how they are synced, how many at once."""

    limits: Limits
    sync: str
    at_once: int


class Layers:
    """The layers on their way to this node."""

    def __init__(self, store: Store, network: Origin, unpacking: Unpacking) -> None:
        self._store = store
        self._network = network
        self._unpacking = unpacking
        self._slots = asyncio.Semaphore(unpacking.at_once)
        self._flights: Flights[Want, None] = Flights()
        self._transfers: dict[Want, Transfer] = {}
        self._arriving: dict[tuple[Digest, str], asyncio.Event] = {}

    def out_of(self, network: Origin) -> Layers:
        """Return the same layers on their way out of another *network*; they still wait for each other."""
        other = copy.copy(self)
        other._network = network  # noqa: SLF001 (of its own class)
        return other

    @property
    def transfers(self) -> tuple[Transfer, ...]:
        """The layers that are on their way now."""
        return tuple(self._transfers.values())

    async def bring(self, source: Source, layer: Layer, lease: Lease, progress: LayerProgress, flow: Flow) -> None:
        """Return when the plain layer lies here and *source* has shown that it may use it; its bytes are of *flow*."""
        lease.hold(layer.diff_id.hex)
        want = Want(source.registry, source.repository, layer.descriptor.digest, layer.diff_id)
        if self._is_here(want) and await self._may_use(source, layer.descriptor, want):
            progress.why = "present"
            return None
        progress.why = "joined" if want in self._flights else "fetched"
        while True:
            joined = want in self._flights
            transfer = self._transfers.setdefault(want, Transfer(str(want.blob), layer.descriptor.size_bytes))
            progress.transfer = transfer
            try:
                with transfer.payers.shared_by(flow):
                    return await self._flights.join(want, lambda: self._fly(source, layer, want, lease))
            except (Unauthenticated, Denied):
                if not joined:
                    raise  # else it was somebody else's credential that was refused
            finally:
                if want not in self._flights:
                    self._transfers.pop(want, None)

    async def make_room(self) -> None:
        """Delete what is kept of interrupted blobs: on a full disk it stands in the way of everything else."""
        await undisturbed(self._store.partials.prune(self._store, everything=True))

    def _is_here(self, want: Want) -> bool:
        catalog = self._store.catalog
        return self._store.has_layer(want.diff_id.hex) and Proof(want.blob, want.diff_id) in catalog.proofs

    async def _may_use(self, source: Source, descriptor: Descriptor, want: Want) -> bool:
        delivery = Delivery(want.registry, want.repository, want.blob)
        if delivery in self._store.catalog.deliveries:
            return True
        elsewhere = self._store.catalog.provenance.delivered(want.registry, want.blob)
        if not elsewhere or not await self._network.has_blob(source, descriptor):
            return False
        await self._store.put_deliveries((delivery,))
        return True

    async def _fly(self, source: Source, layer: Layer, want: Want, lease: Lease) -> None:
        key = (want.blob, want.origin)
        with suppress(TimeoutError):
            async with asyncio.timeout(COURTESY_SECONDS):
                while (other := self._arrival_of(want.blob)) is not None:
                    await other.wait()
        while (arriving := self._arriving.get(key)) is not None:
            await arriving.wait()
        self._arriving[key] = asyncio.Event()
        try:
            await self._settle(source, layer, want, lease)
        finally:
            self._arriving.pop(key).set()

    def _arrival_of(self, blob: Digest) -> asyncio.Event | None:
        return next((event for (arriving, _), event in self._arriving.items() if arriving == blob), None)

    async def _settle(self, source: Source, layer: Layer, want: Want, lease: Lease) -> None:
        if self._is_here(want) and await self._may_use(source, layer.descriptor, want):
            return self._transfers[want].find()
        self._check_size(layer.descriptor)
        bring = self._weigh if self._is_here(want) else self._arrive
        avoid: frozenset[str] = frozenset()
        while True:
            try:
                return await bring(_Errand(source, layer, want, lease, self._transfers[want], avoid))
            except WrongBytes as error:
                if self._transfers[want].resumed_bytes:
                    # An earlier pull may have left them, or the disk lost them: nobody is blamed before a whole try.
                    _log.warning("%s: what was kept of it is not what it should be; starting over: %s", want, error)
                    self._transfers[want].resumed_bytes = 0
                    continue
                # Where several hosts gave a part, the one that gave the end is asked for the whole before it is blamed.
                blamed = frozenset(error.hosts[:-1] or error.hosts)
                if blamed <= avoid or not await self._network.has_others(source, avoid | blamed):
                    raise (error.verdict or error) from None
                _log.warning("%s: %s; asking another host", want, error)
                avoid |= blamed

    def _check_size(self, descriptor: Descriptor) -> None:
        most = self._unpacking.limits.unpacked_bytes
        if descriptor.size_bytes > most:
            sentence = f"the blob has {descriptor.size_bytes} bytes, more than limits.unpacked_bytes allows ({most})"
            raise LimitExceeded(sentence, "unpacked_bytes")

    async def _arrive(self, errand: _Errand) -> None:
        want, store = errand.want, self._store
        arriving, loop = asyncio.Event(), asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(arriving.set)

        arrival = Arrival(errand.descriptor.size_bytes, want.origin, arriving=wake)
        ingest = await store.partials.open(store, want.blob, arrival)
        errand.transfer.begin(ingest)
        failure: BaseException | None = None
        try:
            errand.transfer.unpacked(await self._through(errand, ingest, arriving))
        except BaseException as error:
            failure = first_of(error) if isinstance(error, BaseExceptionGroup) else error
            raise failure from None
        finally:
            errand.transfer.stop()
            keep = failure is not None and not isinstance(failure, _VOID)
            await undisturbed(store.partials.close(store, ingest, keep=keep))
            if isinstance(failure, FULL):
                await self.make_room()

    async def _through(self, errand: _Errand, ingest: Ingest, arriving: asyncio.Event) -> Applied:
        """Download and unpack side by side, then commit; return what it was."""
        staging = uuid.uuid4().hex
        try:
            async with asyncio.TaskGroup() as group:
                download = group.create_task(self._download(errand, ingest))
                unpack = group.create_task(self._unpack(errand, ingest, staging, download, arriving))
            await self._share(errand, staging)
        except BaseException:
            await self._store.discard(staging)
            raise
        await undisturbed(self._commit(staging, unpack.result(), errand))
        return unpack.result()

    async def _download(self, errand: _Errand, ingest: Ingest) -> Delivered:
        transfer = errand.transfer

        def begun() -> None:
            transfer.fetch_start = time.monotonic()

        delivered = await self._network.download(
            errand.source, errand.descriptor, ingest, begun, errand.avoid, transfer.payers
        )
        transfer.host, transfer.credential = delivered.host, delivered.credential
        transfer.fetch_end = time.monotonic()
        await self._store.disk(ingest.finish)
        return delivered

    async def _unpack(
        self, errand: _Errand, ingest: Ingest, staging: str, download: asyncio.Task[Delivered], arriving: asyncio.Event
    ) -> Applied:
        await arriving.wait()  # a registry that sends nothing must not hold a place among the unpackers
        while True:
            generation = ingest.generation
            try:
                applied = await self._follow(errand, ingest, staging)
                _check(applied, errand.layer)
            except (LayerRejected, ContentMismatch, LimitExceeded) as error:
                await self._store.discard(staging)
                to_come_bytes = errand.descriptor.size_bytes - ingest.present_bytes
                if to_come_bytes > WEIGHED_BYTES and ingest.generation == generation:
                    raise WrongBytes(str(error), ingest.hosts, error) from error
                delivered = await download
                if ingest.generation != generation:
                    continue  # it was said of bytes that have become void meanwhile
                scale = await self._store.disk(lambda: weighed(ingest, errand.descriptor))
                scale.judge(delivered)
                raise
            return applied

    async def _follow(self, errand: _Errand, ingest: Ingest, staging: str) -> Applied:
        async with self._slots:
            errand.transfer.unpack_start = time.monotonic()
            return await self._unpacked(errand, ingest, staging)

    async def _unpacked(self, errand: _Errand, ingest: Ingest, staging: str) -> Applied:
        while True:
            blob, watermarks, generation = await self._store.made(ingest.follow, _forsaken)
            try:
                job = self._store.helper.unpack(
                    staging,
                    blob,
                    watermarks,
                    blob=errand.want.blob,
                    blob_size_bytes=errand.descriptor.size_bytes,
                    limits=self._unpacking.limits,
                    plain=must_be_plain(errand.descriptor.media_type),
                    diff_algorithm=errand.want.diff_id.algorithm,
                )
            finally:
                os.close(blob)
                os.close(watermarks)
            try:
                return await run_job(job)
            except JobCancelled:
                if ingest.generation == generation:
                    raise

    async def _share(self, errand: _Errand, staging: str) -> None:
        """Let what was unpacked share its files with the same layer in another store, if it stands there."""
        standing = self._network.standing
        if standing is None or self._store.has_layer(errand.want.diff_id.hex):
            return  # of a layer that is here what was unpacked is only looked at
        tree = await self._store.made(lambda: standing.open_tree(errand.want.diff_id), _closed)
        if tree < 0:
            return
        try:
            job = self._store.helper.share(staging, tree)
        finally:
            os.close(tree)
        standing.tally.add(await run_job(job))

    async def _commit(self, staging: str, applied: Applied, errand: _Errand) -> None:
        seal, want = seal_of(applied), errand.want
        if applied.record is not None and applied.record.lost:
            _log.info("layer %s cannot be pushed or verified later: its record is %s", seal.name, applied.record.lost)
        await self._store.ready_for(seal.name)
        job = self._store.helper.commit(
            staging,
            name=seal.name,
            seal=encode_seal(seal),
            implied=encode_implied(applied.implied),
            sync=self._unpacking.sync,
            replace=self._store.is_damaged(seal.name),
        )
        await run_job(job)
        delivery = Delivery(want.registry, want.repository, want.blob)
        await self._store.put_layer(seal.layer, Proof(want.blob, want.diff_id), delivery, errand.lease)

    async def _weigh(self, errand: _Errand) -> None:
        scale, transfer, want = Scale(errand.descriptor), errand.transfer, errand.want
        transfer.fetch_start = time.monotonic()
        delivered = await self._network.download(
            errand.source, errand.descriptor, scale, lambda: None, errand.avoid, transfer.payers
        )
        transfer.host, transfer.credential = delivered.host, delivered.credential
        transfer.fetch_end = transfer.unpack_end = time.monotonic()
        scale.judge(delivered)
        await self._store.put_deliveries((Delivery(want.registry, want.repository, want.blob),))


def _forsaken(followed: tuple[int, int, int]) -> None:
    os.close(followed[0])
    os.close(followed[1])


def _closed(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)


def _check(applied: Applied, layer: Layer) -> None:
    if applied.diff_id != layer.diff_id:
        raise ContentRejected(
            f"it unpacks to {applied.diff_id}, but the image's config says {layer.diff_id}: "
            "the image was put together wrongly"
        )
