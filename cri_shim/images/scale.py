"""Weighing a blob: its digest and nothing else.

For a registry that must prove that it has a blob, and to tell a layer that is broken from a download that is: only
the digest knows whose fault it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.errors import ContentRejected
from rootfs.digest import Digest

if TYPE_CHECKING:
    from cri_shim.oci.manifest import Descriptor
    from cri_shim.registry.client import Delivered
    from cri_shim.store.ingest import Ingest
    from rootfs.errors import RootfsError

_AT_ONCE_BYTES = 1 << 20


class WrongBytes(ContentRejected):
    """A blob is not what its digest promised; *hosts* sent it.

    With a *verdict* it is not known whose fault that is: so much of the blob was still to come that it was not weighed.
    """

    def __init__(self, sentence: str, hosts: tuple[str, ...] = (), verdict: RootfsError | None = None) -> None:
        super().__init__(sentence)
        self.hosts = hosts
        self.verdict = verdict


class Scale:
    """A `registry.download.Sink` that keeps nothing but the digest."""

    def __init__(self, descriptor: Descriptor) -> None:
        self._descriptor = descriptor
        self.restart()

    def restart(self) -> None:
        """Begin again."""
        self.position_bytes = 0
        self._hash = self._descriptor.digest.new_hash()

    def validator_of(self, host: str) -> str:
        """Return nothing: what is not kept needs no validator."""
        del host
        return ""

    def vouch(self, host: str, validator: str) -> None:
        """Take no note of who sends."""

    def append(self, data: bytes | memoryview) -> None:
        """Take *data* into account."""
        self._hash.update(data)
        self.position_bytes += len(data)

    def judge(self, delivered: Delivered) -> None:
        """Compare with the descriptor.

        Raises:
            WrongBytes: the digest is another one.
        """
        found = Digest(self._descriptor.digest.algorithm, self._hash.hexdigest())
        if found != self._descriptor.digest:
            raise WrongBytes(
                f"{delivered.host} sent {self.position_bytes} bytes whose digest is {found}: "
                "the registry, or something on the way, has damaged them",
                delivered.hosts,
            )


def weighed(ingest: Ingest, descriptor: Descriptor) -> Scale:
    """Weigh what has arrived in *ingest*. Blocks on the disk."""
    scale = Scale(descriptor)
    while piece := ingest.read_at(scale.position_bytes, _AT_ONCE_BYTES):
        scale.append(piece)
    return scale
