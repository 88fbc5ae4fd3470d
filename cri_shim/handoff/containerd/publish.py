"""One image into containerd, from its lowest layer to its names.

    lease → for each layer, bottom up: prepare, graft, commit → blobs → records → its CRI plugin sees it → lease ends

Rule: the names come last, so that containerd never has a name without what it stands for; what is there already is left
as it is, so that every step can be done again. Whatever is interrupted belongs to the lease, and goes with it.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from cri_shim.errors import HandOffFailed, StoreDamaged
from cri_shim.handoff.containerd.client import Refused, Unreachable, Vanished, named
from cri_shim.handoff.containerd.records import (
    LEASE_PREFIX,
    OWNER,
    SNAPSHOT_REF,
    chain_of,
    labels_of,
    names_of,
    registration_of,
    targets_of,
)
from cri_shim.store.store import run_job, undisturbed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from cri_shim.handoff.containerd.client import Client, Mount
    from cri_shim.store.image import Image, ImageLayer
    from cri_shim.store.store import Store
    from rootfs.digest import Digest

SNAPSHOTTER: Final = "overlayfs"
LEASE_SECONDS: Final = 3600
"""How long what an interrupted publication left stays in containerd at most; it goes when we are connected again."""

_TRIES: Final = 4
_SEEN_SECONDS: Final = 20.0
_TIDY_SECONDS: Final = 2.0
_FIRST_PAUSE_SECONDS: Final = 0.001
_LONGEST_PAUSE_SECONDS: Final = 0.1


@dataclass(slots=True)
class Counts:
    """What was made in containerd's directories since the start."""

    layers: int = 0
    links: int = 0
    copies: int = 0
    copied_bytes: int = 0


class Publisher:
    """Registers images of *store* with the containerd whose data lie under *runtime_root*."""

    def __init__(self, client: Client, store: Store, runtime_root: str, sync: str) -> None:
        self._client = client
        self._store = store
        self._root = os.path.normpath(runtime_root)
        self._sync = sync
        self.owner = (OWNER, str(store.layout.root))
        self.leases: set[str] = set()
        self.counts = Counts()

    async def is_whole(self, image: Image, seconds: float) -> bool:
        """Tell whether containerd has *image* under all of its names, with layers and documents, and its CRI knows it.

        Its CRI keeps on telling of an image whose config is gone, of which no container can be made.

        Raises:
            Unreachable, Refused: that cannot be asked.
        """
        chain, names = chain_of(image), names_of(image)
        documents = (self._client.has_blob(str(document.digest), seconds) for document in image.documents)
        records, seen, layered, documented = await asyncio.gather(
            self._client.records(map(named, names), seconds),
            self._client.seen(str(image.id), seconds),
            self._client.has_layer(SNAPSHOTTER, chain[-1], seconds) if chain else _yes(),
            asyncio.gather(*documents),
        )
        targets = targets_of(image)
        right = {record.name for record in records if record.target.digest in targets}
        return (
            layered
            and all(documented)
            and right == set(names)
            and seen is not None
            and set(image.names) <= set(seen[1])
        )

    async def publish(self, image: Image, limit: asyncio.Timeout) -> None:
        """Register *image*, and begin once more where containerd collected what was just found.

        The caller is within *limit*; it stands still while files are linked or copied, which is not containerd's time.

        Raises:
            HandOffFailed: why containerd does not have it.
            StoreDamaged: a document of it is not here any more.
        """
        for _ in range(_TRIES - 1):
            with suppress(Vanished):
                return await self._publish(image, limit)
        return await self._publish(image, limit)

    async def _publish(self, image: Image, limit: asyncio.Timeout) -> None:
        documents = await self._documents(image)
        registration = registration_of(image, documents, SNAPSHOTTER)
        async with self._lease() as lease:
            chain = chain_of(image)
            for layer, name, parent in zip(image.layers, chain, ("", *chain), strict=False):
                await self._layer(layer, name, parent, lease, limit)
            for blob in registration.blobs:
                await self._client.put_blob(blob, lease)
            for record in registration.records:
                await self._client.put_record(record, labels_of(self.owner[1]), lease)
            await self._until_seen(image)

    async def _documents(self, image: Image) -> dict[Digest, bytes]:
        digests = [document.digest for document in image.documents]
        try:
            return await self._store.disk(lambda: {digest: self._store.blobs.get(digest) for digest in digests})
        except StoreDamaged:
            self._store.damaged.add(image.id)  # the next pull fetches it again
            raise

    @asynccontextmanager
    async def _lease(self) -> AsyncIterator[str]:
        lease = LEASE_PREFIX + uuid.uuid4().hex
        expires = datetime.now(UTC) + timedelta(seconds=LEASE_SECONDS)
        labels = {"containerd.io/gc.expire": expires.strftime("%Y-%m-%dT%H:%M:%SZ"), self.owner[0]: self.owner[1]}
        self.leases.add(lease)
        try:
            await self._client.make_lease(lease, labels)
            try:
                yield lease
            finally:
                with suppress(HandOffFailed):  # it expires
                    await undisturbed(self._client.end_lease(lease, _TIDY_SECONDS))
        finally:
            self.leases.discard(lease)

    async def directories(self, name: str) -> tuple[str, ...]:
        """Return where the layers of the chain *name* lie, bottom first; nothing where they are not unpacked.

        Raises:
            HandOffFailed: containerd cannot be asked.
        """
        key = f"cri-shim-view-{uuid.uuid4().hex}"
        async with self._lease() as lease:
            try:
                return lowers_of(await self._client.view(SNAPSHOTTER, key, name, lease))
            except Refused:  # it was not unpacked, or with another snapshotter
                return ()
            finally:
                with suppress(HandOffFailed):  # it goes with the lease
                    await undisturbed(self._client.remove_snapshot(SNAPSHOTTER, key, lease, _TIDY_SECONDS))

    async def _layer(self, layer: ImageLayer, name: str, parent: str, lease: str, limit: asyncio.Timeout) -> None:
        key = f"extract-{uuid.uuid4().hex} {name}"
        mounts = await self._client.prepare(SNAPSHOTTER, key, parent, {SNAPSHOT_REF: name}, lease)
        if mounts is None:  # nothing may hold it: its image may be on its way out
            await self._client.hold_layer(SNAPSHOTTER, name, lease)
            return
        committed = False
        try:
            target = self._beneath(upper_of(mounts))
            with standing_still(limit):
                made = await run_job(self._store.helper.graft(layer.name, target, sync=self._sync))
            committed = await self._client.commit(SNAPSHOTTER, name, key, lease)
        finally:
            if not committed:
                with suppress(HandOffFailed):
                    await undisturbed(self._client.remove_snapshot(SNAPSHOTTER, key, lease, _TIDY_SECONDS))
        self.counts.layers += committed
        self.counts.links += made.links
        self.counts.copies += made.copies
        self.counts.copied_bytes += made.copied_bytes

    def _beneath(self, directory: str) -> bytes:
        inside = os.path.normpath(directory)
        if not inside.startswith(f"{self._root}/"):
            raise Refused(
                f"containerd keeps its layers in {inside}, which is not below {self._root}: "
                "set containerd_root to the `root` of containerd's configuration"
            )
        return os.fsencode(inside.removeprefix(f"{self._root}/"))

    async def _until_seen(self, image: Image) -> None:
        """Wait until containerd's CRI plugin, which hears of records a little later, has all names of *image*."""
        pause = _FIRST_PAUSE_SECONDS
        failure: HandOffFailed = Refused("it does not know the image")
        try:
            async with asyncio.timeout(_SEEN_SECONDS):
                while True:
                    try:
                        seen = await self._client.seen(str(image.id), _SEEN_SECONDS)
                        if seen is not None and set(image.names) <= set(seen[1]):
                            return
                    except (Refused, Unreachable) as error:  # it says so while it starts, the one or the other
                        failure = error
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        except TimeoutError:
            raise type(failure)(
                f"the CRI plugin of containerd did not take the image within {_SEEN_SECONDS:.0f} s: {failure}"
            ) from None


@contextmanager
def standing_still(limit: asyncio.Timeout) -> Iterator[None]:
    """Let what is done inside not count for *limit*."""
    ends, begun = limit.when(), asyncio.get_running_loop().time()
    limit.reschedule(None)
    try:
        yield
    finally:
        limit.reschedule(None if ends is None else ends + asyncio.get_running_loop().time() - begun)


async def _yes() -> bool:
    return True


def lowers_of(mounts: tuple[Mount, ...]) -> tuple[str, ...]:
    """Return the directories that a view of containerd's `overlayfs` is made of, bottom first."""
    if len(mounts) != 1:
        return ()
    mount = mounts[0]
    if mount.kind == "bind":
        return (mount.source,)
    found = [option.removeprefix("lowerdir=") for option in mount.options if option.startswith("lowerdir=")]
    return tuple(reversed(found[0].split(":"))) if mount.kind == "overlay" and len(found) == 1 else ()


def upper_of(mounts: tuple[Mount, ...]) -> str:
    """Return the directory that a prepared snapshot of containerd's `overlayfs` is written in.

    Raises:
        Refused: the snapshot is of another kind.
    """
    if len(mounts) == 1:
        mount = mounts[0]
        if mount.kind == "bind":
            return mount.source
        uppers = [option.removeprefix("upperdir=") for option in mount.options if option.startswith("upperdir=")]
        if mount.kind == "overlay" and len(uppers) == 1:
            return uppers[0]
    kinds = ", ".join(mount.kind for mount in mounts) or "none"
    raise Refused(f"containerd's snapshotter {SNAPSHOTTER} gave a mount of an unknown kind ({kinds})")
