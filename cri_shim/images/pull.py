"""PullImage, top to bottom.

A pull is one straight line: parse the name, put the credentials in order, read the manifest with them (always: a
present image is authorised anew), choose the platform, read the config, bring the layers, give those that need it a
form of their own, write the record. Pulls of the same name with the same credentials are one flight.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

from cri_shim.errors import (
    Denied,
    HandOffFailed,
    LimitExceeded,
    NotFound,
    RegistryUnavailable,
    ShimError,
    Unauthenticated,
)
from cri_shim.images.flight import Flights, Rounds, all_of
from cri_shim.images.layers import FULL
from cri_shim.images.network import Source
from cri_shim.images.openings import Openings
from cri_shim.images.progress import LayerProgress, PullProgress
from cri_shim.images.shortname import PASSED_OVER, References, bound, none_of, plainly
from cri_shim.oci.manifest import Index, pair_layers, parse_config, parse_manifest
from cri_shim.oci.platforms import INDEX_DEPTH, runs_on, select
from cri_shim.registry.failure import HostFailed
from cri_shim.registry.flow import ORDINARY, Flow
from cri_shim.store.image import LONGEST_CREATED, LONGEST_TEXTS_BYTES, Document, Image, ImageLayer, fitting
from cri_shim.store.provenance import Delivery
from rootfs.errors import RootfsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator
    from concurrent.futures import Executor

    from cri_shim.auth.credential import Credential
    from cri_shim.images.forms import Forms
    from cri_shim.images.layers import Layers
    from cri_shim.images.network import Origin
    from cri_shim.oci.manifest import Descriptor, ImageConfig, Layer, Manifest
    from cri_shim.oci.platforms import Platform
    from cri_shim.oci.reference import Reference
    from cri_shim.registry.client import Fetched
    from cri_shim.store.image import Usage
    from cri_shim.store.lease import Lease
    from cri_shim.store.store import Store
    from rootfs.digest import Digest

T = TypeVar("T")
Authorise = Callable[["Reference", "Credential | None"], "tuple[Credential, ...]"]
_CONFIG_LIMIT_BYTES = 4 << 20
_READ_AT_ONCE_BYTES = 64 << 10  # a larger document may take most of a second, in which nothing else would be served
_CHOSEN_FROM_AT_ONCE = 64
_NAMELESS_TRIED = 8
_ROUNDS = 5
_PAUSE_SECONDS = 0.003  # between two lookups of the same credentials: a pull that comes meanwhile waits for the next
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """What does not change while the daemon runs.

    *authorise* puts the credentials in order; it reads files and may run programs for a minute, so it has threads of
    its own. *worked* is told which credential opened a repository. *stale_seconds* is how long a credential that opened
    a name counts while the registry cannot be reached (see `openings`). *references* tells what a name means.
    *grace_seconds* is how long a pull goes on that nobody waits for any more. *origin* stands in the place of a
    registry's name in what is noted about deliveries; without *by_digest* an image gets no name by its digest.
    """

    platform: Platform
    authorise: Authorise
    worked: Callable[[Reference, Credential], None]
    credential_threads: Executor
    fingerprint_key: bytes
    downloads_per_image: int
    most_layers: int
    stale_seconds: int = 0
    references: References = plainly
    grace_seconds: float = 0.0
    origin: str = ""
    by_digest: bool = True


Publish = Callable[["Image"], "Awaitable[None]"]
Ended = Callable[[PullProgress, "BaseException | None"], None]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """One manifest for this platform, with its config, and the documents passed on the way to it."""

    digest: Digest
    manifest: Manifest
    config: ImageConfig
    documents: tuple[Document, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """What the registry says the name stands for, and to which credential."""

    source: Source
    opened: Credential
    target: Digest
    host: str
    chosen: _Chosen
    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class _Order:
    """The credentials that a pull tries, and the key of its flight: the name, and who they are."""

    credentials: tuple[Credential, ...]
    flight: tuple[str, ...]


class _OtherPlatform(NotFound):
    """An entry of an index that names no platform turned out to be for another one."""


class Puller:
    """Pulls in flight."""

    def __init__(
        self, store: Store, network: Origin, layers: Layers, forms: Forms, publish: Publish, settings: Settings
    ) -> None:
        """*publish* gives the runtimes an image that is recorded."""
        self._store = store
        self._publish = publish
        self._network = network
        self._layers = layers
        self._forms = forms
        self._settings = settings
        self._openings = Openings(store, settings.stale_seconds)
        self._orders: Rounds[tuple[str, ...], _Order] = Rounds(_PAUSE_SECONDS)
        self._flights: Flights[tuple[str, ...], Image] = Flights(settings.grace_seconds)
        self._flows: WeakValueDictionary[tuple[str, ...], Flow] = WeakValueDictionary()
        self.running: dict[int, PullProgress] = {}
        self.recent: list[PullProgress] = []
        self.ended: list[Ended] = []

    async def pull(self, name: str, given: Credential | None, weight: int = ORDINARY) -> Image:
        """Bring the image *name* onto this node, or show that the caller may use the one that is here.

        A short name may mean several (registries.conf): they are tried in turn. *weight* is how heavily it counts
        beside other images, as long as this caller waits for it (`registry.flow`).

        Raises:
            ShimError, RootfsError: with the name in front of the reason; nothing half was recorded.
        """
        references = self._settings.references(name)
        if len(references) == 1:
            return await self._pull_one(references[0], bound(given, name, references[0]), weight)
        tries: list[ShimError] = []
        for reference in references:
            try:
                return await self._pull_one(reference, bound(given, name, reference), weight)
            except PASSED_OVER as error:
                tries.append(error)
        raise none_of(name, tries)

    async def _pull_one(self, reference: Reference, given: Credential | None, weight: int) -> Image:
        prints = () if given is None else (given.server, given.fingerprint(self._settings.fingerprint_key))
        order = await self._orders.join(
            (str(reference), *prints),
            lambda: self._ordered(reference, given),
        )
        flow = self._flows.setdefault(order.flight, Flow(str(reference)))
        with flow.claimed(weight):
            return await self._flights.join(order.flight, lambda: self._recorded(reference, order.credentials, flow))

    async def _ordered(self, reference: Reference, given: Credential | None) -> _Order:
        """Put the credentials in order, in a thread: files are read."""
        credentials = await asyncio.get_running_loop().run_in_executor(
            self._settings.credential_threads, self._settings.authorise, reference, given
        )
        key = self._settings.fingerprint_key
        return _Order(credentials, (str(reference), *(credential.fingerprint(key) for credential in credentials)))

    async def close(self) -> None:
        """End the pulls that go on although nobody waits for them."""
        await self._flights.close()

    async def _recorded(self, reference: Reference, credentials: tuple[Credential, ...], flow: Flow) -> Image:
        progress = PullProgress(str(reference), flow)
        self.running[id(progress)] = progress
        try:
            with _within(f"pull {reference}"):
                image = await self._given(reference, credentials, progress)
        except BaseException as error:
            progress.end(error=str(error) or type(error).__name__)
            self._tell(progress, error)
            raise
        else:
            progress.end(image=str(image.id))
            self._tell(progress, None)
            return image
        finally:
            del self.running[id(progress)]
            self.recent = [*self.recent[-199:], progress]

    def _tell(self, progress: PullProgress, error: BaseException | None) -> None:
        for tell in self.ended:
            tell(progress, error)

    async def _given(self, reference: Reference, credentials: tuple[Credential, ...], progress: PullProgress) -> Image:
        """Bring the image and give it to the runtimes; again where it was removed before they had it."""
        for _ in range(_ROUNDS):
            progress.layers.clear()
            image = await self._allowed(reference, credentials, progress)
            progress.enter("publishing")
            with _within("hand-off"):
                await self._publish(image)
            if image.id in self._store.catalog.images:
                return image
        raise HandOffFailed(
            f"it was removed while it was pulled, {_ROUNDS} times; pull it again when nothing removes it"
        )

    async def _allowed(
        self, reference: Reference, credentials: tuple[Credential, ...], progress: PullProgress
    ) -> Image:
        try:
            return await self._pull(reference, credentials, progress)
        except (Unauthenticated, Denied, NotFound):
            await self._openings.withdraw(reference, credentials)
            raise

    async def _pull(self, reference: Reference, credentials: tuple[Credential, ...], progress: PullProgress) -> Image:
        try:
            present = await self._present(reference, credentials, progress)
        except RegistryUnavailable as error:
            present = await self._standing_in(reference, credentials, error)
        if present is not None:
            return present
        async with self._store.lease() as lease:
            found = await self._find(reference, credentials, lease)
            found = replace(found, layers=await self._network.expect(found.layers))
            progress.host, progress.credential = found.host, found.opened.source
            progress.enter("layers")
            await self._bring(found, lease, progress)
            progress.enter("committing")
            names = await self._forms.names_for(tuple(layer.diff_id for layer in found.layers), lease)
            image = await self._record(reference, found, names, lease)
        await self._openings.note(reference, found.opened, found.target)
        return image

    async def _standing_in(
        self, reference: Reference, credentials: tuple[Credential, ...], error: RegistryUnavailable
    ) -> Image:
        """Return the image that is here for a registry that cannot be reached, or raise *error*."""
        refused = error.refused if isinstance(error, HostFailed) else ()
        image = self._store.catalog.by_name(str(reference))
        age = None
        if image is not None:
            await self._store.look_at(image)
            age = await self._openings.age_seconds(reference, credentials, image, refused)
        await self._openings.withdraw(reference, refused)
        if image is None or age is None or not self._store.is_whole(image):
            raise error
        _log.warning("%s is answered from what is here, opened by this credential %d s ago: %s", reference, age, error)
        return image

    async def _present(
        self, reference: Reference, credentials: tuple[Credential, ...], progress: PullProgress
    ) -> Image | None:
        """One HEAD decides whether the image that has this name is still what the name stands for."""
        image = self._store.catalog.by_name(str(reference))
        if image is None:
            return None
        with _within("manifest"):
            resolved = await self._network.resolve(reference, credentials)
            self._settings.worked(reference, resolved.credential)
        progress.host, progress.credential = resolved.host, resolved.credential.source
        await self._store.look_at(image)
        still = self._store.catalog.by_name(str(reference))
        if still is None or not self._means(reference, resolved.digest, still):
            return None
        await self._openings.note(reference, resolved.credential, resolved.digest)
        return still

    def _means(self, reference: Reference, digest: Digest, image: Image) -> bool:
        """Tell whether *digest* stands for *image* in this repository, and the image is whole as far as is known."""
        named = f"{reference.name}@{digest}" in image.digests
        return (named or digest in (image.target, image.manifest)) and self._store.is_whole(image)

    async def _find(self, reference: Reference, credentials: tuple[Credential, ...], lease: Lease) -> _Found:
        with _within("manifest"):
            fetched = await self._network.manifest(reference, credentials)
            self._settings.worked(reference, fetched.credential)
            self._store.keep_document(fetched.digest, fetched.data, lease)
            source = Source(reference, _in_order(credentials, fetched), self._settings.origin)
            parsed = await self._parsed(fetched.data, fetched.media_type)
            here = (Document(fetched.digest, len(fetched.data)),)
            chosen = await self._choose(source, parsed, here, lease)
            layers = pair_layers(chosen.manifest, chosen.config)
            return _Found(source, fetched.credential, fetched.digest, fetched.host, chosen, layers)

    async def _choose(
        self, source: Source, parsed: Index | Manifest, trail: tuple[Document, ...], lease: Lease
    ) -> _Chosen:
        """Go down from an index to the manifest for this platform, at most INDEX_DEPTH indexes deep."""
        if not isinstance(parsed, Index):
            return await self._with_config(source, parsed, trail, lease)
        if len(trail) > INDEX_DEPTH:
            raise LimitExceeded(f"indexes are nested more than {INDEX_DEPTH} deep")
        candidates = await self._candidates(parsed)
        # Where entries name no platform their configs must tell; a named one is taken at its word.
        tried = candidates[:1] if candidates[0].platform else candidates[:_NAMELESS_TRIED]
        for candidate in tried:
            data = await self._instance(source, candidate, lease)
            below = (*trail, Document(candidate.digest, len(data)))
            with suppress(_OtherPlatform):
                parsed = await self._parsed(data, candidate.media_type)
                return await self._choose(source, parsed, below, lease)
        raise _OtherPlatform(f"none of the {len(tried)} entries of the index is for {self._settings.platform}")

    async def _candidates(self, offered: Index) -> tuple[Descriptor, ...]:
        """Choose for this platform: among many in a disk thread, for an index has room for tens of thousands."""
        entries, platform = offered.manifests, self._settings.platform
        if len(entries) <= _CHOSEN_FROM_AT_ONCE:
            return select(entries, platform)
        return await self._store.disk(lambda: select(entries, platform))

    async def _with_config(
        self, source: Source, manifest: Manifest, trail: tuple[Document, ...], lease: Lease
    ) -> _Chosen:
        descriptor = manifest.config
        with _within("config"):
            data = await self._config(source, descriptor, lease)
            config = await self._read(data, lambda: parse_config(data))
        if not runs_on(self._settings.platform, config.platform):
            raise _OtherPlatform(f"the image is for {config.platform}, and this node is {self._settings.platform}")
        return _Chosen(trail[-1].digest, manifest, config, (*trail, Document(descriptor.digest, len(data))))

    async def _parsed(self, data: bytes, media_type: str) -> Index | Manifest:
        most_layers = self._settings.most_layers
        return await self._read(data, lambda: parse_manifest(data, media_type, most_layers=most_layers))

    async def _read(self, data: bytes, parse: Callable[[], T]) -> T:
        """Parse *data*, a large document off the event loop: in a disk thread, as those wait for no registry."""
        return parse() if len(data) <= _READ_AT_ONCE_BYTES else await self._store.disk(parse)

    async def _instance(self, source: Source, descriptor: Descriptor, lease: Lease) -> bytes:
        if (known := await self._known(source, descriptor.digest, lease)) is not None:
            return known
        fetched: Fetched = await self._network.manifest(source.reference, source.credentials, descriptor.digest)
        self._store.keep_document(fetched.digest, fetched.data, lease)
        return fetched.data

    async def _config(self, source: Source, descriptor: Descriptor, lease: Lease) -> bytes:
        if (known := await self._known(source, descriptor.digest, lease)) is not None:
            return known
        data = await self._network.document(source, descriptor, _CONFIG_LIMIT_BYTES)
        self._store.keep_document(descriptor.digest, data, lease)
        return data

    async def _known(self, source: Source, digest: Digest, lease: Lease) -> bytes | None:
        """Return a document that this repository delivered before and that is still here."""
        if Delivery(source.registry, source.repository, digest) not in self._store.catalog.deliveries:
            return None
        return await self._store.get_document(digest, lease)

    async def _bring(self, found: _Found, lease: Lease, progress: PullProgress) -> None:
        at_once = asyncio.Semaphore(self._settings.downloads_per_image)
        distinct = {layer.descriptor.digest: layer for layer in found.layers}
        largest_first = sorted(distinct.values(), key=lambda layer: -layer.descriptor.size_bytes)
        rows = {layer: _row(layer) for layer in largest_first}
        progress.layers.extend(rows.values())

        async def bring(layer: Layer) -> None:
            with _within(f"layer {layer.descriptor.digest}"):
                async with at_once:
                    await self._layers.bring(found.source, layer, lease, rows[layer], progress.flow)

        try:
            await all_of(bring(layer) for layer in largest_first)
        except FULL:  # the others were interrupted by it, and have kept what they had
            await self._layers.make_room()
            raise

    async def _record(self, reference: Reference, found: _Found, names: tuple[str, ...], lease: Lease) -> Image:
        source, chosen = found.source, found.chosen
        rows = self._store.catalog.layers
        image = Image(
            id=chosen.manifest.config.digest,
            tags=(),
            digests=(),
            user=chosen.config.user[:LONGEST_TEXTS_BYTES],
            manifest=chosen.digest,
            target=found.target,
            media_type=chosen.manifest.media_type,
            documents=chosen.documents,
            layers=tuple(
                _placed(layer, name, rows[layer.diff_id.hex].usage)
                for layer, name in zip(found.layers, names, strict=True)
            ),
            annotations=fitting(chosen.manifest.annotations),
            created=chosen.config.created[:LONGEST_CREATED],
            pulled_at_ns=time.time_ns(),
            pulled_from=f"{self._settings.origin} {found.host}".strip(),
            delivered=() if self._settings.origin else (reference.name,),
        )
        deliveries = tuple(Delivery(source.registry, source.repository, doc.digest) for doc in chosen.documents)
        by_digest = str(replace(reference, tag=None, digest=found.target))
        digests = (by_digest,) if self._settings.by_digest or reference.digest else ()
        named = (str(reference), *digests) if reference.digest is None else digests
        return await self._store.put_image(image, named, deliveries, lease)


def _in_order(credentials: tuple[Credential, ...], fetched: Fetched) -> tuple[Credential, ...]:
    """Put what opened the manifest in front; what a mirror takes, or does without, says nothing of its registry."""
    if fetched.mirrored:
        return credentials
    return (fetched.credential, *(one for one in credentials if one is not fetched.credential))


def _row(layer: Layer) -> LayerProgress:
    descriptor = layer.descriptor
    return LayerProgress(str(descriptor.digest), descriptor.size_bytes, media_type=descriptor.media_type)


def _placed(layer: Layer, name: str, usage: Usage) -> ImageLayer:
    # What a form shares with the plain layer it was made of counts for the image all the same.
    return ImageLayer(
        diff_id=layer.diff_id,
        name=name,
        blob=layer.descriptor.digest,
        blob_size_bytes=layer.descriptor.size_bytes,
        media_type=layer.descriptor.media_type,
        unpacked_bytes=usage.used_bytes,
        inodes=usage.inodes,
    )


@contextmanager
def _within(step: str) -> Iterator[None]:
    try:
        yield
    except (ShimError, RootfsError) as error:
        # A flight raises one error in every pull that is aboard: each names its own steps on a copy.
        raise copy.copy(error).within(step) from error
