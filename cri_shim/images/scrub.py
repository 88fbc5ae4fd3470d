"""Looking for damage while the daemon runs, and repairing what can be repaired without anybody asking for it.

What is found damaged is marked: its images are absent for ImageStatus, so that kubelet pulls them again, and that pull
brings the damaged layers alone. The same pull is made here with the node's credentials, by digest, so that nothing but
that very image can come. A layer that is brought anew changes places with the damaged one in one step. Who has the old
one mounted keeps it as it is, as a lower directory must not change under an overlay; it goes when nobody has it mounted
any more.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from cri_shim.errors import InvalidRequest, ShimError
from cri_shim.images.examine import Manner
from cri_shim.images.report import Report
from cri_shim.images.survey import Survey
from cri_shim.registry.flow import LIGHTEST
from cri_shim.store.image import record_of
from cri_shim.store.store import run_job
from rootfs.commit import ASIDE
from rootfs.errors import RootfsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cri_shim.auth.credential import Credential
    from cri_shim.images.examine import Examiner
    from cri_shim.images.publishing import Publishing
    from cri_shim.images.pull import Puller
    from cri_shim.images.survey import Done
    from cri_shim.store.image import Image
    from cri_shim.store.store import Store
    from rootfs.client import Job
    from rootfs.digest import Digest

    Pull = Callable[[str, Credential | None], Awaitable[Image]]

T = TypeVar("T")
PAUSE_SECONDS = 1.0
"""How often a look in the background sees whether a pull runs."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Marked:
    """What of a report is marked: so many rows told, and these layers and images."""

    rows: int = 0
    layers: set[str] = field(default_factory=set)
    images: set[Digest] = field(default_factory=set)

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.rows, len(self.layers), len(self.images)


class Scrub:
    """Looks at one root; one look at a time."""

    def __init__(self, store: Store, examiner: Examiner, publishing: Publishing) -> None:
        """Without `pulls_with` nothing can be repaired, and no pull is given way to."""
        self._pull: Pull = _no_pull
        self._busy: Callable[[], bool] = lambda: False
        self._store = store
        self._examiner = examiner
        self._publishing = publishing
        self._task: asyncio.Task[None] | None = None
        self.report: Report | None = None
        self.background: Report | None = None
        self.found = 0
        self.repaired = 0

    def pulls_with(self, puller: Puller) -> None:
        """Repair with pulls by *puller*, and give way to its pulls."""
        self._busy = lambda: bool(puller.running)
        self._pull = lambda name, given: puller.pull(name, given, LIGHTEST)  # nobody waits for it

    def begin(self, *, content: bool, repair: bool) -> Report:
        """Begin to look at everything, as fast as it goes, unless a look is under way; return what it finds.

        Raises:
            InvalidRequest: another kind of look is under way.
        """
        if self.report is not None and not self.report.ended:
            if self.report.content != content:
                raise InvalidRequest("another check is under way; wait until it has ended, and ask again")
            return self.report
        self.report = report = Report(content)
        manner = Manner(content, idle=True, bytes_per_second=0, wait=run_job)
        self._task = asyncio.create_task(self.look(report, manner, _nothing, repair=repair), name="check the root")
        return report

    async def ended(self, seconds: float) -> None:
        """Wait until the look that `begin` began has ended, *seconds* at most."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=seconds)

    async def close(self) -> None:
        """End a look that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def in_background(self, bytes_per_second: int) -> Manner:
        """Return how to look while others work: last in every queue, and not at all while a pull runs."""
        return Manner(content=True, idle=True, bytes_per_second=bytes_per_second, wait=self._when_idle)

    async def look(self, report: Report, manner: Manner, done: Done, *, repair: bool, after: str = "") -> None:
        """Look at everything that sorts behind *after*, mark what is damaged, and repair it if asked to."""
        marked = _Marked()

        async def reached(place: str) -> None:  # what is not looked at again after a stop must be known by then
            if (len(report.rows), len(report.layers), len(report.images)) != marked.counts:
                await self._mark(report, marked)
            await done(place)

        try:
            await Survey(self._examiner, lambda: self._store.catalog, report, manner).run(reached, after)
            if report.damaged or self._store.marks.layers or self._store.marks.images:
                await self._mend(report, repair=repair)
            await self.bury()
        except (ShimError, RootfsError) as error:
            report.troubles.append(str(error))
            _log.error("the check of the root did not come to its end: %s", error)
        finally:
            report.end()

    async def repair(self, report: Report, lost: tuple[Image, ...]) -> None:
        """Repair what *report* found before the store was opened; *lost* are images that were there then.

        Opening it drops images of which a directory is gone: they are pulled again under their digests.
        """
        report.left.clear()
        await self._mark(report, _Marked())
        await self._mend(report, repair=True)
        for image in lost:
            if image.id in self._store.catalog.images:
                continue
            if reason := await self._pulled_again(image):
                report.left[next(iter(image.names), str(image.id))] = f"not repaired ({reason}); pull it again"
            else:
                report.repaired += 1
        report.end()

    async def bury(self) -> None:
        """Throw away the damaged layers that were replaced and that nobody has mounted any more.

        Raises:
            ShimError, RootfsError: they stay.
        """
        overlay = self._store.layout.overlay
        aside = await self._store.disk(lambda: [name for name in os.listdir(overlay) if name.startswith(ASIDE)])
        layers = {name: name.removeprefix(ASIDE).rpartition(".")[0] for name in aside}
        used = await self._publishing.mounted(frozenset(layers.values())) if layers else frozenset()
        if free := [name for name, layer in layers.items() if layer not in used]:
            await self._store.throw_away(free)

    async def publish(self, image: Image) -> None:
        """Give *image* to the runtimes; anew, where they may have what was damaged.

        Raises:
            HandOffFailed, ShimError, RootfsError: as `Publishing.publish`.
        """
        marks = self._store.marks
        if image.id not in marks.given or not self._store.is_whole(image):
            await self._publishing.publish(image)
            return
        await self._publishing.replace(image)
        marks.given.discard(image.id)
        await self._store.keep_marks()

    def status(self) -> dict[str, object]:
        """Return what the status page shows."""
        marks = self._store.marks
        last = self.report.as_json() if self.report is not None else {"state": "none"}
        behind = self.background.as_json() if self.background is not None else {"state": "none"}
        keys = ("state", "depth", "things", "done", "now", "damaged_layers", "damaged_images", "left")
        return {
            "damages_found": self.found,
            "damages_repaired": self.repaired,
            "damaged_layers": len(marks.layers),
            "damaged_images": len(marks.images),
            "last": {key: last[key] for key in keys if key in last},
            "in the background": {key: behind[key] for key in keys if key in behind},
        }

    # Damage

    async def _mark(self, report: Report, marked: _Marked) -> None:
        """Mark what was found since the last time, and tell of it in the log. What was marked may be whole again."""
        for row in report.rows[marked.rows :]:
            named = ", ".join(row.images) or "no image"
            _log.error("damaged: %s of %s: %s", f"layer {row.layer}" if row.layer else "a document", named, row.flaw)
        layers = {name: why for name, why in report.layers.items() if name not in marked.layers}
        images = {image: why for image, why in report.images.items() if image not in marked.images}
        await self._store.mark(layers, images)
        self.found += len({row.layer or row.images for row in report.rows[marked.rows :]})
        marked.rows = len(report.rows)
        marked.layers.update(layers)
        marked.images.update(images)

    async def _write_record(self, image: Image) -> None:
        await self._store.disk(lambda: self._store.blobs.put_record(image.id, record_of(image)))

    async def _mend(self, report: Report, *, repair: bool) -> None:
        """Repair the images that are not whole, one after another, and note what stays damaged."""
        for image_id in report.records:
            if (record := self._store.catalog.images.get(image_id)) is not None:
                await self._write_record(record)
                report.repaired += 1
                self.repaired += 1
        before = len(self._store.marks.layers) + len(self._store.marks.images)
        why: dict[Digest, str] = {}
        for image in self._store.catalog.ordered() if repair else ():
            gone = image.id not in self._store.catalog.images  # removed while others were pulled
            if not gone and not self._store.is_whole(image):
                report.now = str(image.id)
                why[image.id] = await self._pulled_again(image)
        await self._store.collect()
        await self._store.keep_marks()
        marks = self._store.marks
        repaired = before - len(marks.layers) - len(marks.images)
        report.repaired += repaired
        self.repaired += repaired
        for image in self._store.catalog.ordered():
            if not self._store.is_whole(image):
                name = next(iter(image.names), str(image.id))
                reason = why.get(image.id) or "it was not asked for"
                report.left[name] = f"not repaired ({reason}); pull it again, which brings what is damaged"
                _log.error("image %s stays damaged, and is not shown to kubelet: %s", name, reason)
        idle = self._store.catalog.idle()
        for layer in report.layers.keys() & marks.layers.keys() & idle:
            report.left.setdefault(layer, "no image stands on it; it goes by itself, or the next pull brings it")

    async def _pulled_again(self, image: Image) -> str:
        """Pull *image* by its digest, with what credentials the node has; return why that was not possible, or ""."""
        reason = "no registry is known to have it by its digest"
        for name in image.digests:
            try:
                await self._pull(name, None)
            except (ShimError, RootfsError) as error:
                reason = str(error)
            else:
                return ""
        return reason

    # Giving way

    async def _when_idle(self, job: Job[T]) -> T:
        """Wait for *job*, which stands still while a pull runs."""
        paused = False
        waiting = asyncio.ensure_future(run_job(job))
        try:
            while not waiting.done():
                busy = self._busy()
                if busy != paused:
                    (job.pause if busy else job.resume)()
                    paused = busy
                await asyncio.wait([waiting], timeout=PAUSE_SECONDS)
        finally:
            if not waiting.done():
                waiting.cancel()
                await asyncio.wait([waiting])
        return await waiting


async def _nothing(_place: str) -> None:
    pass


async def _no_pull(name: str, _given: Credential | None) -> Image:
    raise InvalidRequest(f"{name} cannot be pulled here")
