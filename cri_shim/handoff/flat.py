"""Images too deep for one mount, given to runtimes as one layer.

Each layer of an additional image store costs its whole path in the one page of options that mount(2) takes, and older
runtimes of containers-storage (podman 4.3 among them) can then not start the image at all. So its layers are merged
into one directory, of hard links: nothing is copied but directories. Such an image runs as any other; it cannot be
exported, as one layer is not what its config says.
"""

from __future__ import annotations

import hashlib
import uuid
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from cri_shim.images.flight import Flights
from cri_shim.store.image import Usage
from cri_shim.store.seal import Seal, encode_seal
from cri_shim.store.store import run_job, undisturbed
from rootfs.digest import Digest
from rootfs.overlay import LINK_LETTERS, OPTION_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cri_shim.store.image import Image
    from cri_shim.store.lease import Lease
    from cri_shim.store.store import Store

_OTHER_OPTIONS_BYTES: Final = 512  # the runtime's own two directories, and a label of SELinux


class Flat:
    """Makes the layers that stand for all layers of an image, and keeps them as long as they are published."""

    def __init__(self, store: Store, sync: str) -> None:
        self._store = store
        self._sync = sync
        self._flights: Flights[str, None] = Flights()
        self._held = AsyncExitStack()
        self._lease: Lease | None = None

    async def start(self, names: Iterable[str]) -> None:
        """Keep those of the directories *names* that are such layers."""
        self._lease = await self._held.enter_async_context(self._store.lease())
        self.keep(names)

    async def stop(self) -> None:
        """Let go of them; they stay for the grace that every layer has."""
        await self._held.aclose()

    def keep(self, names: Iterable[str]) -> None:
        """Keep those of the directories *names* that are such layers."""
        for name in names:
            layer = self._store.catalog.layers.get(name)
            if self._lease is not None and layer is not None and layer.form == "flat":
                self._lease.hold(name)

    def forget(self, names: Iterable[str]) -> None:
        """Let go of *names*, which are not published any more."""
        if self._lease is not None:
            self._lease.layers.difference_update(names)

    def name_for(self, image: Image) -> str:
        """Return the name of the layer that stands for all of *image*; "" when a mount can take them as they are."""
        link_bytes = len(str(self._store.layout.root)) + len("/overlay/l/:") + LINK_LETTERS
        if len("lowerdir=") + len(image.layers) * link_bytes + _OTHER_OPTIONS_BYTES <= OPTION_BYTES:
            return ""
        return hashlib.sha256(b"flat " + ",".join(image.layer_names).encode("ascii")).hexdigest()

    async def make(self, image: Image, name: str) -> None:
        """Make the layer *name* of all layers of *image*, unless it is here.

        Raises:
            ShimError, RootfsError: it cannot be made; nothing half is there.
        """
        if self._lease is not None:
            self._lease.hold(name)
        if name not in self._store.catalog.layers:
            await self._flights.join(name, lambda: self._make(image, name))

    async def _make(self, image: Image, name: str) -> None:
        staging = uuid.uuid4().hex
        *below, top = image.layer_names
        job = self._store.helper.form(staging, source=top, kind="flat", parents=tuple(reversed(below)), implied=())
        try:
            made = await run_job(job)
        except BaseException:
            await self._store.discard(staging)
            raise
        usage = Usage(0, 0) if made is None else Usage(made.copied_bytes, made.inodes)
        seal = Seal(name, Digest("sha256", name), "flat", usage, ghosts=False, implied=0)
        await undisturbed(self._commit(staging, seal))

    async def _commit(self, staging: str, seal: Seal) -> None:
        await self._store.ready_for(seal.name)
        await run_job(self._store.helper.commit(staging, name=seal.name, seal=encode_seal(seal), sync=self._sync))
        if self._lease is not None:
            await self._store.put_layer(seal.layer, None, None, self._lease)
