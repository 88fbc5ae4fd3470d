"""What the operator decides about asking registries."""

from __future__ import annotations

from dataclasses import dataclass

from cri_shim.registry.connections import Bounds
from cri_shim.registry.rates import UNLIMITED, RateLimits


@dataclass(frozen=True, slots=True)
class Terms:
    """What the operator decides.

    Attributes:
        mirror_stall_seconds: How long to wait for a word from a host for which there is another.
        progress_seconds: How long to wait for a byte of one document or blob, from whichever host.
        same_site: Refuse realms on another site than their registry.
        foreign_layers: Ask the URLs of layers that their registry has not.
        connections: How many there may be at once for blobs.
        rates: How many bytes of blobs may come per second.
    """

    mirror_stall_seconds: float = 20.0
    progress_seconds: float = 300.0
    same_site: bool = False
    foreign_layers: bool = False
    connections: Bounds = Bounds()  # noqa: RUF009 - a value that does not change
    rates: RateLimits = UNLIMITED


USUAL = Terms()
