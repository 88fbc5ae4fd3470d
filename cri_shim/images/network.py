"""The registry client seen from the event loop: each call runs in a thread and can be cancelled.

Two kinds of threads: short questions (manifests, HEADs, configs) never wait behind downloads.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from cri_shim.images.turns import Turns
from cri_shim.registry.cancel import Cancel
from cri_shim.registry.flow import Payers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from cri_shim.auth.credential import Credential
    from cri_shim.images.standing import Standing
    from cri_shim.oci.manifest import Descriptor, Layer
    from cri_shim.oci.reference import Reference
    from cri_shim.registry.client import Client, Delivered, Fetched, Resolved
    from cri_shim.registry.segments import Sink
    from rootfs.digest import Digest

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a pull gets its blobs: a repository, and its credentials; first the one that opened the manifest there."""

    reference: Reference
    credentials: tuple[Credential, ...]
    origin: str = ""

    @property
    def registry(self) -> str:
        """The registry's name, or that of what is in its place."""
        return self.origin or self.reference.registry

    @property
    def repository(self) -> str:
        """The repository's path."""
        return self.reference.repository


class Origin(Protocol):
    """What a pull asks: the registries (`Network`), or an archive in their place."""

    async def resolve(self, reference: Reference, credentials: Sequence[Credential]) -> Resolved:
        """Tell what a name stands for."""

    async def manifest(
        self, reference: Reference, credentials: Sequence[Credential], digest: Digest | None = None
    ) -> Fetched:
        """Return a manifest or an index, verified."""

    async def document(self, source: Source, descriptor: Descriptor, limit_bytes: int) -> bytes:
        """Return a small blob, verified."""

    async def has_blob(self, source: Source, descriptor: Descriptor) -> bool:
        """Tell whether a blob is to be had."""

    async def download(
        self,
        source: Source,
        descriptor: Descriptor,
        sink: Sink,
        begun: Callable[[], None],
        avoid: frozenset[str] = frozenset(),
        payers: Payers | None = None,
    ) -> Delivered:
        """Bring a layer blob into *sink*; nobody has verified it then."""

    async def has_others(self, source: Source, avoid: frozenset[str]) -> bool:
        """Tell whether somebody else than *avoid* may have blobs of *source*."""

    async def expect(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        """Hear which layers of an image are wanted, bottom first; return them as the blobs that they come in."""

    @property
    def standing(self) -> Standing | None:
        """Where layers stand unpacked on this node already, None where that cannot be."""


@dataclass(frozen=True, slots=True)
class Threads:
    """Where network calls wait: *questions* are short, *downloads* are not."""

    questions: Executor
    downloads: Executor


class Network:
    """The only way from a pull to a registry."""

    def __init__(self, client: Client, threads: Threads, downloads_at_once: int) -> None:
        self._client = client
        self._threads = threads
        self._turns = Turns(downloads_at_once)

    async def resolve(self, reference: Reference, credentials: Sequence[Credential]) -> Resolved:
        """Ask by HEAD what *reference* stands for."""
        return await self._ask(lambda cancel: self._client.resolve(reference, credentials, cancel))

    async def manifest(
        self, reference: Reference, credentials: Sequence[Credential], digest: Digest | None = None
    ) -> Fetched:
        """Fetch a manifest or an index: that of *reference*, or the one named *digest* below it."""
        return await self._ask(lambda cancel: self._client.manifest(reference, credentials, cancel, digest=digest))

    async def document(self, source: Source, descriptor: Descriptor, limit_bytes: int) -> bytes:
        """Fetch a small blob, verified."""
        return await self._ask(
            lambda cancel: self._client.blob(
                source.reference, descriptor, source.credentials, cancel, limit_bytes=limit_bytes
            )
        )

    async def has_blob(self, source: Source, descriptor: Descriptor) -> bool:
        """Ask by HEAD whether the credentials may have a blob."""
        return await self._ask(
            lambda cancel: self._client.has_blob(
                source.reference, descriptor.digest, source.credentials, cancel, size_bytes=descriptor.size_bytes
            )
        )

    async def download(
        self,
        source: Source,
        descriptor: Descriptor,
        sink: Sink,
        begun: Callable[[], None],
        avoid: frozenset[str] = frozenset(),
        payers: Payers | None = None,
    ) -> Delivered:
        """Bring a layer blob into *sink*, from other hosts than *avoid*. *begun* is called when it is its turn.

        Its bytes are paid by *payers*, where there is not enough for everybody.
        """
        payers = payers or Payers()
        async with self._turns.turn(payers):
            begun()
            return await in_thread(
                self._threads.downloads,
                lambda cancel: self._client.download(
                    source.reference, descriptor, source.credentials, sink, cancel, avoid=avoid, payers=payers
                ),
            )

    async def has_others(self, source: Source, avoid: frozenset[str]) -> bool:
        """Tell whether another host than *avoid* may be asked for blobs of *source*."""
        return await self._ask(lambda _: self._client.hosts_for_blobs(source.reference, avoid) > 0)

    async def expect(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        """Return them as the manifest has them: a registry is asked blob by blob."""
        return layers

    @property
    def standing(self) -> Standing | None:
        """Return None: a registry is elsewhere."""
        return None

    async def _ask(self, call: Callable[[Cancel], T]) -> T:
        return await in_thread(self._threads.questions, call)


async def in_thread(executor: Executor, call: Callable[[Cancel], T]) -> T:
    """Run *call* in a thread; when the caller leaves, it is told to stop and not waited for."""
    cancel = Cancel()
    future = asyncio.get_running_loop().run_in_executor(executor, call, cancel)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        cancel.cancel()
        future.cancel()
        future.add_done_callback(_ignore)
        raise


def _ignore(future: asyncio.Future[T]) -> None:
    if not future.cancelled():
        future.exception()  # the caller is gone; asyncio must not report the failure that we asked for
