"""Where bytes came from: which blob was seen to unpack to which diff ID, and which registry delivered which blob.

Each is kept by what it is asked for as well, so that neither an answer nor a removal goes through all of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rootfs.digest import Digest

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Proof:
    """This blob was seen to unpack to this diff ID."""

    blob: Digest
    diff_id: Digest


@dataclass(frozen=True, slots=True)
class Delivery:
    """This registry delivered these bytes to this node for this repository."""

    registry: str
    repository: str
    blob: Digest


class Provenance:
    """Proofs and deliveries. The sets are for reading; they change by the methods."""

    def __init__(self, proofs: Iterable[Proof] = (), deliveries: Iterable[Delivery] = ()) -> None:
        self.proofs: set[Proof] = set()
        self.deliveries: set[Delivery] = set()
        self._of_diff_id: defaultdict[Digest, set[Proof]] = defaultdict(set)
        self._of_blob: defaultdict[Digest, set[Delivery]] = defaultdict(set)
        self._proved: Counter[Digest] = Counter()
        self._delivered: Counter[tuple[str, Digest]] = Counter()
        self.add(proofs, deliveries)

    def add(self, proofs: Iterable[Proof], deliveries: Iterable[Delivery]) -> None:
        """Record what is not known yet."""
        for proof in proofs:
            if proof not in self.proofs:
                self.proofs.add(proof)
                self._of_diff_id[proof.diff_id].add(proof)
                self._proved[proof.blob] += 1
        for delivery in deliveries:
            if delivery not in self.deliveries:
                self.deliveries.add(delivery)
                self._of_blob[delivery.blob].add(delivery)
                self._delivered[delivery.registry, delivery.blob] += 1

    def __eq__(self, other: object) -> bool:
        """Tell whether the same is known."""
        if not isinstance(other, Provenance):
            return NotImplemented
        return self.proofs == other.proofs and self.deliveries == other.deliveries

    __hash__ = None  # type: ignore[assignment]  # it changes

    def delivered(self, registry: str, blob: Digest) -> bool:
        """Tell whether *registry* delivered *blob* to this node, for any repository."""
        return self._delivered[registry, blob] > 0

    def disprove(self, diff_ids: Iterable[Digest]) -> set[Proof]:
        """Forget what unpacks to *diff_ids*, and return it."""
        gone = {proof for diff_id in diff_ids for proof in self._of_diff_id.pop(diff_id, ())}
        self.proofs -= gone
        for proof in gone:
            _less(self._proved, proof.blob)
        return gone

    def unneeded(self, blobs: Iterable[Digest], needed: Callable[[Digest], bool]) -> set[Digest]:
        """Return those of *blobs* that nothing is proved of and nobody has *needed*."""
        return {blob for blob in blobs if blob not in self._proved and not needed(blob)}

    def forget(self, blobs: Iterable[Digest], needed: Callable[[Digest], bool]) -> set[Delivery]:
        """Forget who delivered the `unneeded` of *blobs*, and return it."""
        gone = {delivery for blob in self.unneeded(blobs, needed) for delivery in self._of_blob.pop(blob, ())}
        self.deliveries -= gone
        for delivery in gone:
            _less(self._delivered, (delivery.registry, delivery.blob))
        return gone


def _less(counts: Counter[K], key: K) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
