"""Who pays for bytes that come: an image that is pulled, and how heavily it counts beside the others.

A flow is one image, however many layers and connections it has, so that no image gets more by being in more pieces. A
layer for which several images wait is paid by the heaviest of them, for as long as that one waits: what a system pod
needs is not held up because somebody else began to fetch it.

All this changes on the event loop and is read by the threads that transfer; each read is of one value.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

ORDINARY: Final = 100
"""The weight of an image that nobody says anything about. Twice the weight is twice the bytes per second."""
LIGHTEST: Final = 10
HEAVIEST: Final = 1000
"""Between these all weights lie: the lightest beside the heaviest still gets a hundredth."""


class Flow:
    """One image on its way; *weight* is that of the heaviest who waits for it, and stays when nobody does."""

    __slots__ = ("__weakref__", "_claims", "name", "weight")

    def __init__(self, name: str, weight: int = ORDINARY) -> None:
        self.name = name
        self.weight = weight
        self._claims: list[int] = []

    @contextmanager
    def claimed(self, weight: int) -> Iterator[None]:
        """While inside, somebody of *weight* waits for the image."""
        self._claims.append(weight)
        self.weight = max(self._claims)
        try:
            yield
        finally:
            self._claims.remove(weight)
            self.weight = max(self._claims, default=weight)

    def __repr__(self) -> str:
        return f"Flow({self.name!r}, {self.weight})"


class Payers:
    """The images that wait for one layer. When none does, whoever was the last still pays for what comes after."""

    __slots__ = ("_last", "_waiting")

    def __init__(self, last: Flow | None = None) -> None:
        self._last = last or Flow("")
        self._waiting: tuple[Flow, ...] = ()

    @contextmanager
    def shared_by(self, flow: Flow) -> Iterator[None]:
        """While inside, *flow* waits for the layer."""
        self._last = flow
        self._waiting = (*self._waiting, flow)
        try:
            yield
        finally:
            rest = list(self._waiting)
            rest.remove(flow)
            self._last, self._waiting = flow, tuple(rest)

    @property
    def heaviest(self) -> Flow:
        """The one that pays, of several the first."""
        return max(self._waiting, key=lambda flow: flow.weight, default=self._last)
