"""What a pull is doing, and what it has done: for the admin socket, and the record that every pull leaves.

These objects are changed on the event loop by the pull that owns them and read by whoever asks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from cri_shim.registry.flow import Flow, Payers

if TYPE_CHECKING:
    from cri_shim.store.ingest import Ingest
    from rootfs.apply import Applied

_PHASES = ("queued", "fetch_start", "fetch_end", "unpack_start", "unpack_end")


@dataclass(slots=True)
class Transfer:
    """One layer on its way from a registry into a directory, shared by every pull that waits for it.

    *found*: another repository's pull had brought it by the time that it was its turn.

    Times are monotonic seconds, 0 until the phase is reached. *host* and *credential*, the source of one, tell who
    gave the blob to whom.
    """

    blob: str
    size_bytes: int
    host: str = ""
    credential: str = ""
    queued: float = field(default_factory=time.monotonic)
    fetch_start: float = 0.0
    fetch_end: float = 0.0
    unpack_start: float = 0.0
    unpack_end: float = 0.0
    resumed_bytes: int = 0
    stopped_bytes: int = 0
    entries: int = 0
    unpacked_bytes: int = 0
    compression: str = ""
    found: bool = False
    ingest: Ingest | None = None
    payers: Payers = field(default_factory=Payers)

    def begin(self, ingest: Ingest) -> None:
        """Note that the blob begins to arrive, or goes on to."""
        self.ingest, self.resumed_bytes, self.fetch_end = ingest, ingest.resumed_bytes, 0.0

    def stop(self) -> None:
        """Note that no more of the blob will arrive here."""
        if self.ingest is not None:
            self.stopped_bytes, self.ingest = self.ingest.present_bytes, None

    def find(self) -> None:
        """Note that the layer lies here, although nothing was fetched for this."""
        self.found = True
        self.fetch_start = self.fetch_end = self.unpack_start = self.unpack_end = time.monotonic()

    def unpacked(self, applied: Applied) -> None:
        """Note that the layer is in its place, and what it was."""
        self.unpack_end = time.monotonic()
        self.entries, self.unpacked_bytes, self.compression = (
            applied.entries,
            applied.diff_size_bytes,
            applied.compression,
        )

    @property
    def arrived_bytes(self) -> int:
        """How much of the blob is here."""
        if self.fetch_end:
            return self.size_bytes
        return self.ingest.present_bytes if self.ingest is not None else self.stopped_bytes

    @property
    def phase(self) -> str:
        """Where the layer stands, in one word."""
        if self.unpack_end:
            return "done"
        if self.fetch_end:
            return "unpacking"
        return "fetching" if self.fetch_start else "queued"


@dataclass(slots=True)
class LayerProgress:
    """A layer as one pull sees it. *why* tells how it came: fetched, present, joined, checked."""

    blob: str
    size_bytes: int
    why: str = "waiting"
    transfer: Transfer | None = None
    media_type: str = ""

    @property
    def came(self) -> str:
        """How it came after all: who waited for somebody else's has joined him."""
        return "joined" if self.transfer is not None and self.transfer.found else self.why

    @property
    def reused(self) -> bool:
        """Whether this pull fetched nothing for the layer."""
        return self.came in ("present", "joined")


@dataclass(slots=True)
class PullProgress:
    """One pull. *seconds* is 0 while it runs; *error* is empty unless it failed.

    *host* and *credential*, the source of one, tell who gave the manifest to whom; *entered* when each phase began.
    *flow* is who pays for its bytes.
    """

    name: str
    flow: Flow = field(default_factory=lambda: Flow(""))
    number: int = field(default_factory=count(1).__next__)
    started_ns: int = field(default_factory=time.time_ns)
    begun: float = field(default_factory=time.monotonic)
    phase: str = "resolving"
    entered: list[tuple[str, float]] = field(default_factory=list)
    host: str = ""
    credential: str = ""
    image: str = ""
    error: str = ""
    seconds: float = 0.0
    layers: list[LayerProgress] = field(default_factory=list)

    def enter(self, phase: str) -> None:
        """Note that the next phase begins."""
        self.phase = phase
        self.entered.append((phase, time.monotonic()))

    def end(self, image: str = "", error: str = "") -> None:
        """Note how the pull ended."""
        self.seconds = time.monotonic() - self.begun
        self.image, self.error, self.phase = image, error, "failed" if error else "done"

    def steps(self) -> list[tuple[str, float, float]]:
        """Return the phases with the moments of their begin and end; what runs still ends now."""
        last = self.begun + (self.seconds or time.monotonic() - self.begun)
        begins = [("resolving", self.begun), *self.entered]
        ends = [*(moment for _, moment in self.entered), last]
        return [(phase, begin, end) for (phase, begin), end in zip(begins, ends, strict=True)]

    def as_json(self) -> dict[str, object]:
        """Return the record: names and numbers only, times in milliseconds from the start of the pull.

        Bytes are those of the layers that are, or were, on their way.
        """
        return {
            "number": self.number,
            "name": self.name,
            "phase": self.phase,
            "weight": self.flow.weight,
            "image": self.image,
            "error": self.error,
            "host": self.host,
            "credential": self.credential,
            "started_ns": self.started_ns,
            "seconds": round(self.seconds or time.monotonic() - self.begun, 4),
            "size_bytes": sum(transfer.size_bytes for transfer in self._transfers),
            "arrived_bytes": sum(transfer.arrived_bytes for transfer in self._transfers),
            "steps": [
                {"phase": phase, "begin_ms": self._ms(begin), "end_ms": self._ms(end)}
                for phase, begin, end in self.steps()
            ],
            "layers": [self._layer(layer) for layer in self.layers],
        }

    @property
    def _transfers(self) -> list[Transfer]:
        return [layer.transfer for layer in self.layers if layer.transfer is not None]

    def _layer(self, layer: LayerProgress) -> dict[str, object]:
        row: dict[str, object] = {
            "blob": layer.blob,
            "size_bytes": layer.size_bytes,
            "reused": layer.reused,
            "why": layer.came,
        }
        if layer.transfer is not None:
            transfer = layer.transfer
            row |= {"phase": transfer.phase, "arrived_bytes": transfer.arrived_bytes, "host": transfer.host}
            row |= {"resumed_bytes": transfer.resumed_bytes, "credential": transfer.credential}
            row |= {f"{phase}_ms": self._since_begin_ms(getattr(transfer, phase)) for phase in _PHASES}
        return row

    def _since_begin_ms(self, moment: float) -> float | None:
        return self._ms(moment) if moment else None

    def _ms(self, moment: float) -> float:
        return round((moment - self.begun) * 1000, 1)
