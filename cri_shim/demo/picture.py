"""Text that a person looks at: the table of crictl, the waterfall of a pull, what was reused. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cri_shim.table import human_size, table
from cri_shim.waterfall import LEGEND, Span, bar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cri_shim.demo.client import Listed

WIDTH: Final = 48


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
    tail = f"fetch {_took(span.fetch_start, span.fetch_end)}, whole {_took(span.queued, span.unpack_end)}"
    return f"{head}|{bar(span, total_ms, width)}| {tail}"


def _took(start: float, end: float) -> str:
    return f"{max(end - start, 0):.0f} ms"


def _split(tag: str) -> tuple[str, str]:
    name, _, version = tag.rpartition(":")
    return name, version


__all__ = ["LEGEND", "Span", "images_table", "reuse", "skipped_line", "waterfall"]
