"""Drawings of pulls, line by line, from the records of the admin socket (`PullProgress.as_json`). Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cri_shim.table import human_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Record = Mapping[str, Any]

BAR: Final = 40
_NARROWEST_BAR: Final = 10
_BEFORE_BAR: Final = 29  # digest, state, and what is around the bar
_WORDS: Final = {
    "present": "here already",
    "joined": "comes with another pull",
    "checked": "here already, registry asked",
}


def drawn(record: Record, width: int, rate_bytes: float = 0.0) -> list[str]:
    """Return the lines for one pull, none longer than *width*: a bar for each layer, then what is there in all.

    Args:
        record: The pull.
        width: Columns of the terminal.
        rate_bytes: Bytes per second at which it comes at the moment; 0 is unknown.
    """
    longest = max((len(_tail(layer)) for layer in record["layers"]), default=0)
    bar = max(_NARROWEST_BAR, min(BAR, width - _BEFORE_BAR - longest))
    lines = [f"{record['name']}: {record['phase']}", *(_layer(layer, bar) for layer in record["layers"])]
    lines.append(footer(record, rate_bytes))
    return [line if len(line) <= width else f"{line[: width - 1]}…" for line in lines]


def footer(record: Record, rate_bytes: float = 0.0) -> str:
    """Return what is there of all, since when, how fast, and how long it will take at this rate."""
    there, all_of_it = record["arrived_bytes"], record["size_bytes"]
    parts = [f"elapsed: {record['seconds']:.1f} s", f"total: {human_size(there)} of {human_size(all_of_it)}"]
    if rate_bytes > 0:
        parts.append(f"({human_size(rate_bytes)}/s)")
        if there < all_of_it:
            parts.append(f"left: {(all_of_it - there) / rate_bytes:.0f} s")
    return "  ".join(parts)


def finished(record: Record, told: set[str]) -> Iterator[str]:
    """Give a line for each layer that is done and not in *told*, and note it there."""
    for layer in record["layers"]:
        blob = layer["blob"]
        if blob not in told and _state(layer) in ("done", *_WORDS.values()):
            told.add(blob)
            yield f"layer {_short(blob)}: {_state(layer)}, {human_size(layer['size_bytes'])}{_from(layer)}"


def rate(before: Record | None, now: Record) -> float:
    """Return the bytes per second that came between two records of one pull; 0 when that cannot be told."""
    if before is None or before["started_ns"] != now["started_ns"]:
        return 0.0
    seconds = now["seconds"] - before["seconds"]
    return max(0.0, (now["arrived_bytes"] - before["arrived_bytes"]) / seconds) if seconds > 0 else 0.0


def _layer(layer: Record, bar: int) -> str:
    state, size = _state(layer), layer["size_bytes"]
    full = bar if size == 0 else min(bar, bar * _there(layer) // size)
    return f"{_short(layer['blob'])}: {state:<12} |{'=' * full}{'-' * (bar - full)}|{_tail(layer)}"


def _tail(layer: Record) -> str:
    """Return what stands behind the bar: sizes, and who sends it. The bar leaves room for that."""
    return f" {human_size(_there(layer))}/{human_size(layer['size_bytes'])}{_from(layer)}"


def _there(layer: Record) -> int:
    return int(layer.get("arrived_bytes", layer["size_bytes"] if layer["reused"] else 0))


def _state(layer: Record) -> str:
    if layer["why"] in _WORDS and layer.get("phase", "done") == "done":
        return _WORDS[layer["why"]]
    return str(layer.get("phase", "waiting"))


def _from(layer: Record) -> str:
    resumed = f", {human_size(layer['resumed_bytes'])} were here" if layer.get("resumed_bytes") else ""
    return (f" from {layer['host']}" if layer.get("host") else "") + resumed


def _short(digest: str) -> str:
    return digest.partition(":")[2][:12] or digest
