"""Text that a person looks at: the table of crictl, the waterfall of a pull, what was reused. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cri_shim.table import human_size, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cri_shim.demo.client import Listed

WIDTH: Final = 48
LEGEND: Final = "waiting .   fetching -   fetching and unpacking =   unpacking, syncing #"
_PHASES: Final = ("queued", "fetch_start", "fetch_end", "unpack_start", "unpack_end")


@dataclass(frozen=True, slots=True)
class Span:
    """One layer of a pull, times in milliseconds from the beginning of the pull."""

    blob: str
    size_bytes: int
    queued: float = 0.0
    fetch_start: float = 0.0
    fetch_end: float = 0.0
    unpack_start: float = 0.0
    unpack_end: float = 0.0
    reused: bool = False

    @classmethod
    def from_record(cls, row: Mapping[str, Any]) -> Span:
        """Read a row of a pull record."""
        times = {name: row.get(f"{name}_ms") or 0.0 for name in _PHASES}
        return cls(row["blob"], row["size_bytes"], reused=row["reused"], **times)

    def mark(self, moment: float) -> str:
        """Return the letter for *moment*."""
        if not self.queued <= moment < self.unpack_end:
            return " "
        if moment < self.fetch_start:
            return "."
        if moment >= self.fetch_end:
            return "#"
        return "=" if moment >= self.unpack_start else "-"


def images_table(images: Iterable[Listed]) -> list[str]:
    """Return the lines that `crictl images` would print."""
    rows = [("IMAGE", "TAG", "IMAGE ID", "SIZE")]
    for image in images:
        for name, tag in sorted(_split(tag) for tag in image.tags or ("<none>:<none>",)):
            rows.append((name, tag, image.id.removeprefix("sha256:")[:13], human_size(image.size_bytes)))
    return table(rows)


def waterfall(record: Mapping[str, Any], width: int = WIDTH) -> list[str]:
    """Draw one pull: a row for each layer, the time from left to right."""
    spans = [Span.from_record(row) for row in record["layers"]]
    total_ms = max(record["seconds"] * 1000, 0.001)
    head = f"{record['name']}   {len(spans)} blobs, {total_ms:.0f} ms"
    return [head, *(_row(span, total_ms, width) for span in spans)]


def reuse(layers: int, fetched: int, needed_bytes: int, fetched_bytes: int) -> str:
    """Say how much of what the images need did not have to be fetched."""
    saved = 100 * (needed_bytes - fetched_bytes) / needed_bytes if needed_bytes else 0.0
    return (
        f"fetched {fetched} of {layers} layers, {human_size(fetched_bytes)} of {human_size(needed_bytes)}: "
        f"{saved:.1f} % reused"
    )


def skipped_line(counts: Mapping[str, int]) -> str:
    """Say what the unpacker recorded and could not apply."""
    if not counts:
        return "everything in the layers was applied"
    listed = ", ".join(f"{what} {count}" for what, count in sorted(counts.items()))
    return f"recorded and not applied, because this user may not: {listed}"


def _row(span: Span, total_ms: float, width: int) -> str:
    size = human_size(span.size_bytes)
    head = f"  {span.blob.removeprefix('sha256:')[:12]} {size:>7} "
    if span.reused:
        return f"{head}|{'reused: already on this node':<{width}}|"
    step = total_ms / width
    # A mark stands for the middle of its step, and nothing that took place is left without one.
    marks = [span.mark((column + 0.5) * step) for column in range(width)]
    if not "".join(marks).strip():
        marks[min(int(span.fetch_start / step), width - 1)] = "="
    tail = f"fetch {_took(span.fetch_start, span.fetch_end)}, whole {_took(span.queued, span.unpack_end)}"
    return f"{head}|{''.join(marks)}| {tail}"


def _took(start: float, end: float) -> str:
    return f"{max(end - start, 0):.0f} ms"


def _split(tag: str) -> tuple[str, str]:
    name, _, version = tag.rpartition(":")
    return name, version
