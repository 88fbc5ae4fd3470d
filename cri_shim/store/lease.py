"""What a pull holds while it runs, whether or not an image refers to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from rootfs.digest import Digest


@dataclass(eq=False, slots=True)
class Lease:
    """What one pull relies on: layers and documents that must not be removed while it runs.

    Attributes:
        settled: layers that had an image under this lease; they need no grace when somebody has removed that meanwhile.
    """

    layers: set[str] = field(default_factory=set)
    documents: set[Digest] = field(default_factory=set)
    settled: set[str] = field(default_factory=set)
    writing: list[asyncio.Task[None]] = field(default_factory=list)

    def hold(self, name: str) -> None:
        """Keep the layer directory *name* until the lease ends."""
        self.layers.add(name)
