"""CRI-O, podman, buildah and skopeo read the images where they lie: the root is an additional image store.

An image is published by records and short names only; its layers stay where they are, and nothing of ours has to run
when a container starts. All changes go through one queue: entries of the chain and big data first, then the records,
once for all that wait; what is not named any more is taken away last.

    publish   overlay/<id>/{link,lower,diff}, overlay-images/<image>/… → layers.json → images.json
    retract   names (a runtime names it: a nameless record stays) → images.json → layers.json → a second look → entries

A runtime may begin a container in the very moment in which its image is taken away. So the files of what has no record
any more stay until it was looked at once more; if a runtime has begun to name it, the record comes back, nameless.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cri_shim.errors import HandOffFailed, ShimError, StoreDamaged
from cri_shim.handoff.flat import Flat
from cri_shim.handoff.lockfile import LockedFile
from cri_shim.handoff.mounts import mounted
from cri_shim.handoff.plan import has_files, plan_of, put_files, take_files
from cri_shim.handoff.records import Records, decode, encode_images, encode_layers, union
from cri_shim.handoff.references import References, read_references
from cri_shim.store.durable import from_os_error
from cri_shim.store.store import run_job, undisturbed
from rootfs.errors import RootfsError
from rootfs.overlay import link_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from concurrent.futures import Executor

    from cri_shim.store.image import Image
    from cri_shim.store.store import Store

T = TypeVar("T")
SWEEP_SECONDS = 30.0
"""How often it is looked whether images that only a runtime's records hold can go."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """What does not change while the daemon runs.

    *graph_roots* are those of the runtimes, whose records are looked at; *sync* is as for layers. *flatten* says that a
    runtime may be too old to mount a deep image (see `flat`). *withdraw* is for a node where this was on and is not any
    more: nothing is published, and what was goes as soon as no runtime names it.
    """

    graph_roots: tuple[Path, ...]
    sync: str
    flatten: bool
    withdraw: bool = False


@dataclass(eq=False, slots=True)
class _Change:
    """Something to be done to the records, after *prepare*; with *sweep* what no runtime names goes as well."""

    apply: Callable[[Records], Records]
    prepare: Callable[[], Awaitable[None]]
    sweep: bool
    done: asyncio.Future[None]


class ContainersStorage:
    """The `HandOff` of everything that is built on containers-storage."""

    name = "containers-storage"

    def __init__(self, store: Store, settings: Settings, thread: Executor) -> None:
        """*thread* is a single thread for the files that runtimes read."""
        self._store = store
        self._settings = settings
        self._thread = thread
        self._root = store.layout.root
        self._records = Records()
        self._flat = Flat(store, settings.sync)
        self._shown: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
        self._waiting: list[_Change] = []
        self._working: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._files: tuple[LockedFile, LockedFile] | None = None
        self._renew: Callable[[], None] = lambda: None
        self._failure = ""
        self._owed = ""
        self._dropped = Records()
        self._flattening: Counter[str] = Counter()

    async def start(self, renew: Callable[[], None]) -> None:
        """Read what was published last time, and take away the names of images that are not here any more."""
        self._renew = renew
        self._files, self._records = await self._in_thread(self._open)
        await self._flat.start(self._records.sources.values())
        await self._put_right()
        self._sweeping = asyncio.create_task(self._sweep_often(), name="sweep records of containers-storage")

    async def stop(self) -> None:
        """Let what is under way come to its end."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait([self._sweeping])
        while self._working is not None and not self._working.done():
            await asyncio.wait([self._working])
        await self._flat.stop()
        for file in self._files or ():
            file.close()
        self._files = None

    async def publish(self, image: Image) -> None:
        """Make *image* visible; see `HandOff.publish`."""
        if self._settings.withdraw or (self._is_shown(image) and self._is_ours()):
            return
        await self._publish(image)

    async def renamed(self, image: Image) -> None:
        """Give the record of *image* the names that are left; most were taken when the other was published."""
        await self._change(lambda records: records.with_names(image.id.hex, image.names))
        if image.id.hex in self._shown:
            self._shown[image.id.hex] = (image.names, image.layer_names)

    async def retract(self, image: Image) -> None:
        """Take *image* away, or only its names while a runtime's records name it."""
        self._shown.pop(image.id.hex, None)
        await self._change(lambda records: records.retracted((image.id.hex,)), sweep=True)

    async def verify(self, image: Image) -> bool:
        """Tell whether *image* is published as it is now, and publish it if not."""
        if not self._settings.withdraw and not self._is_ours():
            _log.warning("somebody else changed the records of containers-storage; they are written anew")
            self._shown.clear()
            self._renew()
        try:
            await self.publish(image)
        except (ShimError, RootfsError) as error:
            self._told(f"image {image.id} cannot be published: {error}")
            return False
        return True

    async def in_use(self, layers: frozenset[str]) -> frozenset[str]:
        """Return those of *layers* that something published stands on."""
        await self._sweep()
        return layers & frozenset((*self._records.sources.values(), *self._dropped.sources.values()))

    def status(self) -> Mapping[str, object]:
        """Return what is published."""
        return {
            "state": "withdrawn" if self._settings.withdraw else "on",
            "images": len(self._records.images),
            "layers": len(self._records.layers),
            "held by runtimes": len(self._records.lingering),
            "failure": self._failure or self._owed,
            "owed": self._owed,
        }

    def _is_shown(self, image: Image) -> bool:
        return self._shown.get(image.id.hex) == (image.names, image.layer_names)

    def _is_ours(self) -> bool:
        if self._working is not None and not self._working.done():
            return True  # they are being written
        return self._files is not None and all(file.is_ours() for file in self._files)

    async def _publish(self, image: Image) -> None:
        flat = self._flat.name_for(image) if self._settings.flatten else ""
        self._flattening[flat] += 1
        try:
            if flat:
                await self._flat.make(image, flat)
            plan = await self._store.disk(lambda: plan_of(image, self._store, flat))

            async def prepare() -> None:
                await run_job(self._store.helper.chain(plan.entries, sync=self._settings.sync))
                await self._in_thread(lambda: put_files(self._root, plan))

            await self._change(lambda records: records.with_image(plan.image, plan.layers, plan.sources), prepare)
        finally:
            self._flattening[flat] -= 1
            self._let_go((flat,))  # it is not published: that failed
        self._shown[plan.image.id] = (image.names, image.layer_names)
        self._failure = ""

    def _let_go(self, flat: Iterable[str]) -> None:
        """Let the layers *flat* go that are neither published nor about to be."""
        self._flat.forget(name for name in flat if not self._flattening[name] and name not in self._records.layers)

    async def _put_right(self) -> None:
        """Take away what an earlier life published of images that are not here; what fails is owed, and tried again."""
        present = set() if self._settings.withdraw else {digest.hex for digest in self._store.catalog.images}
        gone = self._records.images.keys() - present
        try:
            await self._carry_out((lambda records: records.retracted(gone),), sweep=True)
            strays = await self._in_thread(self._strays)
            await self._take_away(*strays)
        except (ShimError, RootfsError) as error:
            self._owed = f"what was published before could not be put right, and is tried again: {error}"
            _log.error("%s", self._owed)
        else:
            self._owed = ""

    # What stays because a runtime names it

    async def _sweep(self) -> None:
        """Take away the images that are not here any more, as far as no runtime's records name them."""
        if self._owed or self._records.lingering or self._is_dropping:
            await self._change(_as_they_are, sweep=True)
            if self._is_dropping:
                await self._change(_as_they_are, sweep=True)

    @property
    def _is_dropping(self) -> bool:
        return bool(self._dropped.images or self._dropped.layers)

    async def _references(self) -> References | None:
        try:
            return await self._in_thread(self._read_references)
        except (ShimError, ValueError) as error:
            _log.error("what runtimes use cannot be read, so everything counts as in use: %s", error)
            return None

    def _read_references(self) -> References:
        """Return what runtimes name in their records, and what is mounted by whom we do not know."""
        sources = {**self._dropped.sources, **self._records.sources}
        named = read_references(self._settings.graph_roots)
        short, long = mounted(Path("/proc"))
        below = {
            layer for layer, source in sources.items() if link_name(layer).encode("ascii") in short or source in long
        }
        return References(named.layers | below, named.images)

    async def _sweep_often(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self._sweep()
                await self._look()
            except (ShimError, RootfsError) as error:
                self._told(f"records that nothing needs any more could not be taken away: {error}")

    async def _look(self) -> None:
        """Publish those images again of whose files somebody took some away: containers of them could not start."""
        records = self._records
        lacking = await self._in_thread(
            lambda: [image for image in records.images if not has_files(self._root, records, image)]
        )
        lost = [image for image in lacking if self._shown.pop(image, None) is not None]
        if lost:
            _log.warning("files of %d images in containers-storage are gone, and are made anew", len(lost))
            self._renew()

    def _told(self, failure: str) -> None:
        self._failure = failure
        _log.error("%s", failure)

    # The queue

    async def _change(
        self,
        apply: Callable[[Records], Records],
        prepare: Callable[[], Awaitable[None]] | None = None,
        *,
        sweep: bool = False,
    ) -> None:
        change = _Change(apply, prepare or _nothing, sweep, asyncio.get_running_loop().create_future())
        self._waiting.append(change)
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work(), name="publish to containers-storage")
        await change.done

    async def _work(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            if self._owed:  # now, while nobody is making entries that would look like strays
                await self._put_right()
            failures = await asyncio.gather(*(change.prepare() for change in batch), return_exceptions=True)
            ready = [change for change, failure in zip(batch, failures, strict=True) if failure is None]
            try:
                await self._carry_out(
                    tuple(change.apply for change in ready), sweep=any(change.sweep for change in ready)
                )
            except BaseException as error:
                failures = [failure or error for failure in failures]
            for change, failure in zip(batch, failures, strict=True):
                _settle(change.done, failure)

    async def _carry_out(self, changes: Iterable[Callable[[Records], Records]], *, sweep: bool) -> None:
        """Write the records anew; with *sweep* look at what is lingering, and at what was dropped last time."""
        old, dropped = self._records, self._dropped
        references = await self._references() if sweep else None

        def rewrite() -> Records:
            new = old if references is None else old.revived(dropped)
            for apply in changes:
                new = apply(new)
            if references is not None:
                new = new.without(new.lingering - _named(new, references))
            self._write(old, new)
            return new

        self._records = new = await self._in_thread(rewrite)
        looked_at, fresh = dropped.lost(new), old.lost(new)
        self._dropped = fresh.joined(looked_at)
        self._flat.keep(dropped.layers.keys() & new.layers.keys())
        self._let_go(fresh.layers)
        if references is not None and references.layers.isdisjoint(looked_at.layers):
            await self._forget(looked_at, fresh)

    async def _forget(self, gone: Records, fresh: Records) -> None:
        """Take the files of *gone* away, which nobody has begun to use; those of *fresh* stay for a second look."""
        try:
            await self._take_away(tuple(gone.images), tuple(sorted(gone.layers)))
        except (ShimError, RootfsError) as error:
            self._told(f"files that no runtime needs any more could not be taken away: {error}")
        else:
            self._dropped = fresh

    async def _take_away(self, images: tuple[str, ...], layers: tuple[str, ...]) -> None:
        if images or layers:
            await self._in_thread(lambda: take_files(self._root, images, layers))
        if layers:
            await run_job(self._store.helper.unchain(layers))

    def _write(self, old: Records, new: Records) -> None:
        """Write both files in an order in which no reader meets an image without its layers."""
        if self._files is None:
            raise HandOffFailed("the hand-off to containers-storage is stopped")
        layers_file, images_file = self._files
        layers_file.replace(encode_layers(union(old, new)))
        images_file.replace(encode_images(new))
        layers_file.replace(encode_layers(new))

    # In the thread

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await undisturbed(asyncio.get_running_loop().run_in_executor(self._thread, work))
        except OSError as error:
            raise from_os_error(error, self._root) from error

    def _open(self) -> tuple[tuple[LockedFile, LockedFile], Records]:
        for name in ("overlay-layers", "overlay-images"):
            (self._root / name).mkdir(mode=0o700, exist_ok=True)
        layers = LockedFile(self._root / "overlay-layers", "layers")
        images = LockedFile(self._root / "overlay-images", "images")
        try:
            return (layers, images), decode(images.read(), layers.read(), self._sources())
        except StoreDamaged as error:
            _log.error("%s; all images are published anew", error)
            return (layers, images), Records()

    def _sources(self) -> dict[str, str]:
        """Return the directory whose tree each entry of a chain has."""
        found: dict[str, str] = {}
        for entry in os.scandir(self._root / "overlay"):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                tree = os.path.join(entry.path, "diff")
                found[entry.name] = os.readlink(tree).split("/")[-2] if os.path.islink(tree) else entry.name
        return found

    def _strays(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the images and the entries of chains that have files and no records."""
        images = {entry.name for entry in os.scandir(self._root / "overlay-images") if entry.is_dir()}
        layers = {name for name, layer in self._sources().items() if name != layer}
        known = (self._records, self._dropped)
        return (
            tuple(sorted(images.difference(*(one.images for one in known)))),
            tuple(sorted(layers.difference(*(one.layers for one in known)))),
        )


def _named(records: Records, references: References) -> frozenset[str]:
    """Return the lingering images that *references* name, or that have a layer for themselves that they name."""
    alive = {layer for image in records.images.keys() - records.lingering for layer in records.chain(image)}
    return frozenset(
        image
        for image in records.lingering
        if image in references.images or not references.layers.isdisjoint(set(records.chain(image)) - alive)
    )


async def _nothing() -> None:
    pass


def _as_they_are(records: Records) -> Records:
    return records


def _settle(done: asyncio.Future[None], failure: BaseException | None) -> None:
    if done.done():
        return
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)
