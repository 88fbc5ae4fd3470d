"""`cri-shim explain IMAGE`: what a pull of an image would do now, and why, without doing it.

The registry is asked as a pull asks it, by the same client with the same credentials, but every host is asked, not only
the first that answers. Manifests and the config are read, and no layer is: what would be downloaded is told from them
and from what lies here. Of a credential nothing is shown but where it comes from.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cri_shim.errors import LimitExceeded, ShimError
from cri_shim.images.shortname import References, plainly
from cri_shim.oci.manifest import Index, Layer, pair_layers, parse_config, parse_manifest
from cri_shim.oci.platforms import INDEX_DEPTH, select
from cri_shim.registry.cancel import Cancel
from cri_shim.store.provenance import Delivery, Proof
from rootfs.errors import RootfsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from cri_shim.auth.credential import Credential
    from cri_shim.oci.manifest import Descriptor, Manifest
    from cri_shim.oci.platforms import Platform
    from cri_shim.oci.reference import Reference
    from cri_shim.registry.client import Client, Fetched
    from cri_shim.store.catalog import Catalog

CONFIG_BYTES = 4 << 20
OFFERED = 64  # entries of an index that are told


@dataclass(frozen=True, slots=True)
class View:
    """What a pull would have: the node's platform, its credentials, its bound, and threads to ask in.

    *references* tells what a name means, and *meaning* which rule makes a short one so.
    """

    platform: Platform
    authorise: Callable[[Reference, Credential | None], tuple[Credential, ...]]
    most_layers: int
    threads: Executor
    references: References = plainly
    meaning: Callable[[str], str] = lambda _: ""


@dataclass(slots=True)
class _Seen:
    """What was found out, as far as it went; *page* is what is shown."""

    reference: Reference
    page: dict[str, object]
    digests: list[str] = field(default_factory=list)
    layers: tuple[Layer, ...] = ()


class Explainer:
    """Tells what a pull would do. Called on the event loop."""

    def __init__(self, catalog: Catalog, client: Client, view: View) -> None:
        self._catalog = catalog
        self._client = client
        self._view = view

    async def explain(self, name: str) -> dict[str, object]:
        """Return what a pull of *name* would do; where it would fail, `error` says why and the rest how far it comes.

        Raises:
            InvalidReference: *name* is none.
        """
        references, cancel = self._view.references(name), Cancel()
        seen, failures = await self._seen(references[0], cancel), list[str]()
        for other in references[1:]:
            if not seen.page["error"]:
                break
            failures.append(f"{seen.page['reference']}: {seen.page['error']}")
            seen = await self._seen(other, cancel)
        seen.page |= {"short_name": self._view.meaning(name), "tried_before": failures}
        return self._page(seen)

    async def _seen(self, reference: Reference, cancel: Cancel) -> _Seen:
        asking = asyncio.get_running_loop().run_in_executor(self._view.threads, self._ask, reference, cancel)
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            cancel.cancel()
            raise

    def _page(self, seen: _Seen) -> dict[str, object]:
        reference = seen.reference
        image = self._catalog.by_name(str(reference))
        rows = [self._row(reference, layer) for layer in {one.descriptor.digest: one for one in seen.layers}.values()]
        return {
            **seen.page,
            "here": None if image is None else str(image.id),
            "up_to_date": image is not None and bool({str(image.target), str(image.manifest)} & set(seen.digests)),
            "layers": rows,
            "download_bytes": sum(size for row in rows if isinstance(size := row["download_bytes"], int)),
        }

    def _ask(self, reference: Reference, cancel: Cancel) -> _Seen:
        seen = _Seen(reference, {"reference": str(reference), "node": str(self._view.platform), "error": ""})
        try:
            credentials = self._view.authorise(reference, None)
            seen.page["credentials"] = [one.source for one in credentials]
            seen.page["hosts"] = [one.as_json() for one in self._client.survey(reference, credentials, cancel)]
            self._read(reference, credentials, cancel, seen)
        except (ShimError, RootfsError) as error:
            seen.page["error"] = str(error)
        return seen

    def _read(self, reference: Reference, credentials: tuple[Credential, ...], cancel: Cancel, seen: _Seen) -> None:
        fetched = self._client.manifest(reference, credentials, cancel)
        seen.page["manifest_from"] = fetched.host
        seen.page["credential_used"] = fetched.credential.source
        manifest = self._choose(reference, credentials, cancel, seen, fetched)
        digest = manifest.config.digest
        data = self._client.blob(reference, manifest.config, credentials, cancel, limit_bytes=CONFIG_BYTES)
        config = parse_config(data)
        seen.page |= {"config": str(digest), "platform": str(config.platform), "created": config.created}
        seen.layers = pair_layers(manifest, config)

    def _choose(
        self,
        reference: Reference,
        credentials: tuple[Credential, ...],
        cancel: Cancel,
        seen: _Seen,
        fetched: Fetched,
    ) -> Manifest:
        """Go down from an index to the manifest for this node, and note why."""
        media_type = fetched.media_type
        for _ in range(INDEX_DEPTH + 1):
            seen.digests.append(str(fetched.digest))
            parsed = parse_manifest(fetched.data, media_type, most_layers=self._view.most_layers)
            seen.page["manifests"] = list(seen.digests)
            if not isinstance(parsed, Index):
                seen.page.setdefault("chosen_because", "it is the only one: the name stands for no index")
                return parsed
            seen.page["offered"] = [_offer(one) for one in parsed.manifests[:OFFERED]]
            candidates = select(parsed.manifests, self._view.platform)
            seen.page["chosen_because"] = _reason(candidates, self._view.platform)
            media_type = candidates[0].media_type
            fetched = self._client.manifest(reference, credentials, cancel, digest=candidates[0].digest)
        raise LimitExceeded(f"indexes are nested more than {INDEX_DEPTH} deep")

    def _row(self, reference: Reference, layer: Layer) -> dict[str, object]:
        blob, size_bytes = layer.descriptor.digest, layer.descriptor.size_bytes
        state, download_bytes = self._state(reference, layer)
        return {"blob": str(blob), "size_bytes": size_bytes, "state": state, "download_bytes": download_bytes}

    def _state(self, reference: Reference, layer: Layer) -> tuple[str, int]:
        blob, size_bytes = layer.descriptor.digest, layer.descriptor.size_bytes
        catalog = self._catalog
        if layer.diff_id.hex not in catalog.layers or Proof(blob, layer.diff_id) not in catalog.proofs:
            return "download", size_bytes
        if Delivery(reference.registry, reference.repository, blob) in catalog.deliveries:
            return "here", 0
        if catalog.provenance.delivered(reference.registry, blob):
            return "here, once the registry says that this repository has it", 0
        return "here, but never delivered by this registry, which must show that it has it", size_bytes


def _offer(entry: Descriptor) -> str:
    return f"{entry.platform or 'no platform'} {entry.digest}"


def _reason(candidates: tuple[Descriptor, ...], node: Platform) -> str:
    best, others = candidates[0], len(candidates) - 1
    if best.platform is None:
        return f"no entry names a platform that {node} runs; this one names none, and its config decides"
    return f"{best.platform} is the best that {node} runs" + (f", before {others} that it also runs" if others else "")
