"""The store as the pulls see it: one object, on the event loop, that never blocks it.

Every change is a transaction in the index thread first and a change of the catalog in memory right after; the two are
never separated by a cancelled caller. Layers that no image refers to live as long as a lease holds them: a pull in
flight, or the grace that follows one, so that a failed pull costs its layers only once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from cri_shim.errors import StoreDamaged
from cri_shim.store.blobs import Blobs
from cri_shim.store.durable import from_os_error
from cri_shim.store.image import Image, Usage, record_of, sorted_names
from cri_shim.store.index import Index
from cri_shim.store.lease import Lease
from cri_shim.store.marks import NAME, Marks
from cri_shim.store.partials import Keeping, Partials
from cri_shim.store.presence import look_for
from cri_shim.store.recover import Plan, plan_recovery
from cri_shim.store.references import directories
from cri_shim.store.repair import must_not_be_lost
from rootfs.errors import RootfsError
from rootfs.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
    from concurrent.futures import Executor

    from cri_shim.store.catalog import Catalog, Dropped, Layer, Opening
    from cri_shim.store.layout import Layout
    from cri_shim.store.provenance import Delivery, Proof
    from rootfs.client import Helper, Job
    from rootfs.commit import Found
    from rootfs.digest import Digest

    InUse = Callable[[frozenset[str]], Awaitable[frozenset[str]]]

T = TypeVar("T")
GRACE_SECONDS = 600.0
USED_SECONDS = 30.0
"""How long after a layer without an image was found in use it is looked at again."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Threads:
    """Where the store's blocking work is done: *index* is a single thread, *ingest* syncs blobs that arrive."""

    disk: Executor
    index: Executor
    ingest: Executor | None = None


class Store:
    """Images, layers and documents of one root. Every method is called on the event loop."""

    def __init__(
        self, layout: Layout, helper: Helper, threads: Threads, opened: tuple[Index, Catalog], keeping: Keeping
    ) -> None:
        self.layout = layout
        self.helper = helper
        self._index, self.catalog = opened
        self.blobs = Blobs(layout)
        self.partials = Partials(layout.ingest, keeping, threads.ingest)
        self._threads = threads
        self._leases: set[Lease] = set()
        self._grace: dict[str, float] = {}
        self._leaving: dict[str, asyncio.Event] = {}
        self._trash_usage = Usage(0, 0)
        self._untrashed: set[str] = set()
        self.damaged: set[Digest] = set()
        self.marks = Marks(layout.root / NAME)
        self._missing: set[str] = set()
        self._emptying: asyncio.Task[None] | None = None
        self._looking_again = False
        self.in_use: InUse = _nobody

    @classmethod
    async def open(cls, layout: Layout, helper: Helper, threads: Threads, keeping: Keeping | None = None) -> Store:
        """Open the root, put right what a crash left, and return the store; *keeping* bounds what is left of pulls.

        Raises:
            StoreDamaged: the index is gone or cannot be read; it says what to do.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(threads.disk, must_not_be_lost, layout)
        finding = helper.recover()  # while the index is read
        index = await loop.run_in_executor(threads.index, Index.open, layout.index)
        catalog = await loop.run_in_executor(threads.index, index.load)
        store = cls(layout, helper, threads, (index, catalog), keeping or Keeping())
        await store._recover(finding)
        store.marks = await store.disk(lambda: Marks.read(layout))
        store._missing.update(store.marks.layers)
        store.damaged.update(store.marks.images)
        return store

    async def close(self) -> None:
        """Stop the background work and close the index."""
        if self._emptying is not None:
            self._emptying.cancel()
            await asyncio.wait([self._emptying])
        await self._in_index(self._index.close)

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Lease]:
        """Hold layers for one pull; when it ends, those without an image stay for a grace."""
        lease = Lease()
        self._leases.add(lease)
        try:
            yield lease
        finally:
            await undisturbed(self._end(lease))

    async def _end(self, lease: Lease) -> None:
        await asyncio.gather(*lease.writing, return_exceptions=True)  # `put_image` raised what failed
        self._leases.discard(lease)
        idle = {name for name in lease.layers if not self.catalog.references.layer(name)}
        self._spare(idle - lease.settled)
        if idle & lease.settled:  # whoever removed the image wanted their room, and could not have it yet
            self._collect_later()
        await self._drop_documents(lease.documents)

    async def disk(self, work: Callable[[], T]) -> T:
        """Run *work* in a disk thread.

        Raises:
            NoSpace, StoreDamaged: the disk has no room, or fails.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads.disk, work)
        except OSError as error:
            raise from_os_error(error, self.layout.root) from error

    async def made(self, work: Callable[[], T], undo: Callable[[T], object]) -> T:
        """Run *work* in a disk thread; what it made for a caller who has gone meanwhile is undone."""
        task = asyncio.ensure_future(self.disk(work))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            if not task.cancelled() and task.exception() is None:
                await undisturbed(self.disk(lambda: undo(task.result())))
            raise

    def keep_document(self, digest: Digest, data: bytes, lease: Lease) -> None:
        """Begin to write a manifest, an index or a config to the disk; `put_image` waits until it is there."""
        lease.documents.add(digest)
        lease.writing.append(asyncio.create_task(self._write_document(digest, data), name=f"keep {digest}"))

    async def get_document(self, digest: Digest, lease: Lease) -> bytes | None:
        """Return a document that lies here and hold it, or None when it is gone or damaged."""
        lease.documents.add(digest)
        await self.ready_for(str(digest))
        try:
            return await self.disk(lambda: self.blobs.get(digest))
        except StoreDamaged:
            return None

    async def put_layer(self, layer: Layer, proof: Proof | None, delivery: Delivery | None, lease: Lease) -> None:
        """Record a layer that was committed to the disk, under *lease*."""
        lease.hold(layer.name)
        await self._change(
            lambda: self._index.put_layer(layer, proof, delivery),
            lambda: self.catalog.put_layer(layer, proof, delivery),
        )
        self._missing.discard(layer.name)
        if self.marks.layers.pop(layer.name, None) is not None:
            await self.keep_marks()

    def has_layer(self, name: str) -> bool:
        """Tell whether the layer *name* lies here, as far as is known."""
        return name in self.catalog.layers and name not in self._missing

    def is_damaged(self, name: str) -> bool:
        """Tell whether the layer *name* is known, and not whole: what stands in its place is to be replaced."""
        return name in self._missing

    def is_whole(self, image: Image) -> bool:
        """Tell whether all of *image* lies here and nothing of it is damaged, as far as is known."""
        return image.id not in self.damaged and (not self._missing or self._missing.isdisjoint(directories(image)))

    async def mark(self, layers: Mapping[str, str], images: Mapping[Digest, str]) -> None:
        """Take *layers* and documents of *images* for damaged, for the reasons given: the next pull brings them."""
        layers = {name: why for name, why in layers.items() if name in self.catalog.layers}
        images = {image: why for image, why in images.items() if image in self.catalog.images}
        self._missing.update(layers)
        self.damaged.update(images)
        on_them = [one.id for one in self.catalog.images.values() if not directories(one).isdisjoint(layers)]
        self.marks.add(layers, images, on_them)
        await self.keep_marks()

    async def keep_marks(self) -> None:
        """Write down what is marked, as far as it is still here."""
        self.marks.keep_to(self.catalog.layers, self.catalog.images)
        data = self.marks.encoded()
        try:
            await undisturbed(self._in_index(lambda: self.marks.write(data)))  # whose single thread keeps their order
        except OSError as error:
            _log.error("what is damaged cannot be written down, and is forgotten at the next start: %s", error)

    async def look_at(self, image: Image) -> None:
        """Look whether the directories and documents of *image* are there; what is not is brought by the next pull."""
        look = await self.disk(lambda: look_for(self.layout, image))
        lost = look.layers - self._missing
        if image.id not in self.catalog.images or not (lost or look.documents):
            return
        self.damaged.add(image.id)
        self._missing |= lost
        torn = look.torn & lost
        if torn:  # what is left of a layer would be in the way of the whole
            await self.throw_away(torn - await self.in_use(torn))
        _log.error("image %s is not whole on the disk and is brought again", image.id)

    async def put_deliveries(self, deliveries: tuple[Delivery, ...]) -> None:
        """Record which registry delivered which blobs; known ones cost nothing."""
        fresh = tuple(d for d in deliveries if d not in self.catalog.deliveries)
        if fresh:
            await self._change(lambda: self._index.put_deliveries(fresh), lambda: self.catalog.put_deliveries(fresh))

    async def put_opening(self, opening: Opening, outdated: tuple[Opening, ...]) -> None:
        """Record that a credential opened a name, and forget those that are *outdated*."""
        await self._change(
            lambda: self._index.put_opening(opening, outdated),
            lambda: self.catalog.put_opening(opening, outdated),
        )

    async def drop_openings(self, openings: tuple[Opening, ...]) -> None:
        """Forget that credentials opened names."""
        await self._change(lambda: self._index.drop_openings(openings), lambda: self.catalog.drop_openings(openings))

    async def put_image(
        self, image: Image, names: tuple[str, ...], deliveries: tuple[Delivery, ...], lease: Lease
    ) -> Image:
        """Record *image*: it exists from now on, under *names* and those it had; return it as it was recorded.

        It may be removed again before the caller goes on.

        Raises:
            NoSpace, StoreDamaged: a document, the record or the row could not be written; there is no image.
        """
        before = self.catalog.images.get(image.id)
        image = image.after(before)
        tags, digests = sorted_names({*names, *(before.names if before else ())})
        record = record_of(replace(image, tags=tags, digests=digests))
        write = self.disk(lambda: self.blobs.put_record(image.id, record))
        lease.writing.append(asyncio.create_task(write, name=f"record {image.id}"))
        await asyncio.shield(asyncio.gather(*lease.writing))  # who leaves must not cut the writers short
        recorded = await self._change(
            lambda: self._index.put_image(image, names, deliveries),
            lambda: self.catalog.put(image, names, deliveries),
        )
        lease.settled |= directories(image)
        self._grace = {name: until for name, until in self._grace.items() if name not in lease.settled}
        failpoint("image.recorded")
        self.damaged.discard(image.id)
        if self.marks.images.pop(image.id, None) is not None:
            await self.keep_marks()
        await self._drop_documents(document.digest for document in (before.documents if before else ()))
        return recorded

    async def forget_image(self, image: Digest) -> None:
        """Forget *image* with all its names; its room is freed in the background."""
        await undisturbed(self._forget(image))

    async def _forget(self, image: Digest) -> None:
        if image in self.catalog.images:
            documents = {document.digest for document in self.catalog.images[image].documents}
            await self._change(lambda: self._index.drop_image(image), lambda: self.catalog.drop(image))
            await self._drop_documents(documents)
        await self.collect()

    async def collect(self) -> tuple[str, ...]:
        """Remove the layers that nothing refers to and no lease or grace holds; return their directories.

        Those that are in use all the same are looked at again later.
        """
        unused = frozenset(self._unused())
        used = await self._still_used(unused) if unused else unused
        victims = {name: self.catalog.layers[name] for name in self._unused() if name in unused - used}
        if victims:
            gone = self._leave(victims)
            dropped = self.catalog.drop_layers(victims)
            await undisturbed(self._drop_layers(victims, dropped, gone))
        return tuple(victims)

    def loose(self) -> frozenset[str]:
        """Return the layers that no image and no lease holds."""
        return self.catalog.idle().difference(*(lease.layers for lease in self._leases))

    def end_grace(self) -> None:
        """Let what is loose go with the next `collect`, however new it is."""
        self._grace.clear()

    async def discard(self, staging: str) -> None:
        """Give up what was being made under *staging*; its room is freed in the background."""
        await undisturbed(run_job(self.helper.discard(staging)))
        self._empty_trash()

    async def throw_away(self, names: Iterable[str]) -> None:
        """Take directories that are no layers of the index out of `overlay/`; their room is freed in the background."""
        await undisturbed(run_job(self.helper.trash(tuple(names))))
        self._empty_trash()

    async def emptied(self, patience_seconds: float | None = None) -> None:
        """Wait until what was thrown away is gone, or for *patience_seconds*."""
        if self._emptying is not None and patience_seconds != 0:
            await asyncio.wait([self._emptying], timeout=patience_seconds)

    async def ready_for(self, name: str) -> None:
        """Wait until no removal of the directory or document *name* is under way."""
        while (leaving := self._leaving.get(name)) is not None:
            await leaving.wait()

    def room(self, arriving: Usage) -> dict[str, Usage]:
        """Return what the root takes, by kind: images, blobs that wait or are *arriving*, trash. No disk is asked."""
        return {"images": self.catalog.usage(), "ingest": self.partials.usage + arriving, "trash": self._trash_usage}

    async def _recover(self, finding: Job[tuple[Found, ...]]) -> None:
        found = await run_job(finding)
        documents = await self.disk(self.blobs.present)
        plan = plan_recovery(self.catalog, found, documents)
        await self.disk(self.partials.find)
        if plan.changes:
            await self._in_index(lambda: self._carry_out(plan))
            self.catalog = await self._in_index(self._index.load)
        await self.partials.forget(self, {proof.blob for proof in self.catalog.provenance.proofs})
        await self.disk(lambda: self.blobs.remove(plan.stray_documents))
        self._spare(self.catalog.idle())
        self._untrashed.update(plan.trash)
        self._empty_trash()
        for digest in plan.lost_images:
            _log.error("image %s is not whole on the disk and is no longer listed; pull it again", digest)
        if plan.adopt:
            _log.info("adopted %d layers of an interrupted pull", len(plan.adopt))

    def _carry_out(self, plan: Plan) -> None:
        dropped = self.catalog.drop_layers(plan.lost_layers)
        self._index.recover(plan.lost_images, plan.adopt, plan.lost_layers, dropped.deliveries)

    def _spare(self, names: Iterable[str]) -> None:
        names = set(names)
        if not names:
            return
        until = time.monotonic() + GRACE_SECONDS
        self._grace.update(dict.fromkeys(names, until))
        asyncio.get_running_loop().call_later(GRACE_SECONDS + 1, self._collect_later)

    async def _still_used(self, names: frozenset[str]) -> frozenset[str]:
        used = await self.in_use(names)
        if used and not self._looking_again:
            self._looking_again = True
            asyncio.get_running_loop().call_later(USED_SECONDS, self._look_again)
        return used

    def _look_again(self) -> None:
        self._looking_again = False
        self._collect_later()

    def _collect_later(self) -> None:
        task = asyncio.create_task(self.collect(), name="collect unused layers")
        task.add_done_callback(_log_failure)

    def _unused(self) -> Iterable[str]:
        now = time.monotonic()
        self._grace = {name: until for name, until in self._grace.items() if until > now}
        return self.loose().difference(self._grace)

    async def _drop_layers(self, victims: dict[str, Layer], dropped: Dropped, gone: asyncio.Event) -> None:
        names = tuple(victims)
        try:
            await self._in_index(lambda: self._index.drop_layers(names, dropped.deliveries))
        except Exception:
            self.catalog.restore(dropped)
            raise
        else:
            self._trash_usage += sum((layer.usage for layer in victims.values()), Usage(0, 0))
            self._untrashed.update(names)
            await self._trash()
        finally:
            self._left(victims, gone)
        self._empty_trash()

    async def _trash(self) -> None:
        """Move to the trash what has no row any more; what cannot go now is tried again with the next removal."""
        names = tuple(self._untrashed)
        try:
            await run_job(self.helper.trash(names))
        except RootfsError as error:
            _log.error("layers that nothing needs stay in their place until the next removal: %s", error)
        else:
            self._untrashed.difference_update(names)

    async def _write_document(self, digest: Digest, data: bytes) -> None:
        await self.ready_for(str(digest))
        await self.disk(lambda: self.blobs.put(digest, data))

    async def _drop_documents(self, candidates: Iterable[Digest]) -> None:
        """Delete those of *candidates* that no image and no lease needs."""
        held: set[Digest] = set().union(*(lease.documents for lease in self._leases))
        needed = self.catalog.references.document
        unused = tuple(digest for digest in candidates if digest not in held and not needed(digest))
        names = tuple(str(digest) for digest in unused if str(digest) not in self._leaving)
        if not names:
            return
        gone = self._leave(names)

        async def delete() -> None:
            try:
                await self.disk(lambda: self.blobs.remove(unused))
            finally:
                self._left(names, gone)

        await undisturbed(delete())

    def _leave(self, names: Iterable[str]) -> asyncio.Event:
        """Note that *names* are being removed: who wants to make them anew waits."""
        gone = asyncio.Event()
        self._leaving.update(dict.fromkeys(names, gone))
        return gone

    def _left(self, names: Iterable[str], gone: asyncio.Event) -> None:
        for name in names:
            del self._leaving[name]
        gone.set()

    def _empty_trash(self) -> None:
        if self._emptying is None or self._emptying.done():
            self._emptying = asyncio.create_task(self._unlink_trash(), name="empty the trash")
            self._emptying.add_done_callback(_log_failure)

    async def _unlink_trash(self) -> None:
        if self._untrashed:
            await self._trash()
        pending = Usage(-1, 0)
        while pending != self._trash_usage:  # more may have been thrown in while the last lot was unlinked
            pending = self._trash_usage
            for stuck in await run_job(self.helper.empty_trash()):
                _log.warning("%s stays in the trash: %s", stuck.name, stuck.reason)
        self._trash_usage = Usage(0, 0)

    async def _change(self, commit: Callable[[], None], mirror: Callable[[], T]) -> T:
        async def both() -> T:
            await self._in_index(commit)
            return mirror()

        return await undisturbed(both())

    async def _in_index(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads.index, work)


async def _nobody(_names: frozenset[str]) -> frozenset[str]:
    return frozenset()


async def run_job(job: Job[T]) -> T:
    """Wait for a job of the helper; a cancelled caller cancels it, and goes on when it has ended."""
    future = asyncio.wrap_future(job.future)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # it is no news to anyone
        job.cancel()
        await asyncio.wait([future])  # the job still works on its staging directory until it is reaped
        raise


async def undisturbed(work: Awaitable[T]) -> T:
    """Let *work* come to its end although the caller is cancelled meanwhile; the caller goes on after that end."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("what a cancelled pull had begun ended badly: %s", error)
        raise


def _log_failure(task: asyncio.Task[T]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("removing unused layers failed and will be tried again: %s", error)
