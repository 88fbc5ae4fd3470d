"""The waterfall of a pull as text, from its record (`PullProgress.as_json`): where its time went. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cri_shim.table import human_size, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Record = Mapping[str, Any]

LEGEND: Final = "waiting .   fetching -   fetching and unpacking =   unpacking, syncing #"
WORDS: Final = {"present": "here already", "joined": "by another pull"}
_PHASES: Final = ("queued", "fetch_start", "fetch_end", "unpack_start", "unpack_end")
_STEPS: Final = {
    "resolving": "manifest",
    "layers": "layers",
    "committing": "record",
    "publishing": "hand-off",
}
_BESIDE_BAR: Final = 54
_NARROWEST_BAR: Final = 10
_WIDEST_BAR: Final = 80


@dataclass(frozen=True, slots=True)
class Span:
    """One layer of a pull, times in milliseconds from the beginning of the pull; 0 where it did not come so far."""

    blob: str
    size_bytes: int
    queued: float = 0.0
    fetch_start: float = 0.0
    fetch_end: float = 0.0
    unpack_start: float = 0.0
    unpack_end: float = 0.0
    reused: bool = False

    @classmethod
    def from_record(cls, row: Record) -> Span:
        """Read a row of a pull record. What began before this pull, for another one, begins with it here."""
        times = {name: max(0.0, row.get(f"{name}_ms") or 0.0) for name in _PHASES}
        return cls(row["blob"], row["size_bytes"], reused=row["reused"], **times)

    @property
    def end(self) -> float:
        """When the last that is known of it happened."""
        return max(self.queued, self.fetch_start, self.fetch_end, self.unpack_start, self.unpack_end)

    def mark(self, moment: float) -> str:
        """Return the letter for *moment*."""
        if not self.queued <= moment < self.unpack_end:
            return " "
        if moment < self.fetch_start:
            return "."
        if moment >= self.fetch_end:
            return "#"
        return "=" if moment >= self.unpack_start else "-"


def short(digest: str) -> str:
    """Return the beginning of a digest that tells it from others."""
    return digest.partition(":")[2][:12] or digest


def bar(span: Span, total_ms: float, width: int) -> str:
    """Return *width* letters for the time of the pull; nothing that took place is left without one."""
    step = total_ms / width
    # A mark stands for the middle of its step.
    marks = [span.mark((column + 0.5) * step) for column in range(width)]
    if not "".join(marks).strip():
        marks[min(int(span.fetch_start / step), width - 1)] = "="
    return "".join(marks)


def drawn(record: Record, width: int) -> Iterator[str]:
    """Give the lines of the picture for a terminal with *width* columns; a line about a layer may be longer."""
    total_ms = total(record)
    room = max(_NARROWEST_BAR, min(_WIDEST_BAR, width - _BESIDE_BAR))
    yield from head(record)
    yield ""
    for step in record["steps"]:
        begin, end = step["begin_ms"], step["end_ms"]
        if step["phase"] == "layers":
            yield from (_row(row, total_ms, room, last=row is critical(record)) for row in record["layers"])
        else:
            name = _STEPS.get(step["phase"], step["phase"])
            yield f"  {name:<20}  |{_line(begin, end, total_ms, room)}| {end - begin:.0f} ms"
    yield ""
    yield f"  {LEGEND}"
    if record["layers"]:
        yield ""
        rows = table([("  LAYER", "SIZE", "FROM", "CREDENTIAL"), *map(_origin, record["layers"])], 0)
        yield from (row.rstrip() for row in rows)


def head(record: Record) -> list[str]:
    """Return what is said of the pull as a whole."""
    reused = sum(bool(layer["reused"]) for layer in record["layers"])
    seconds, fetched = record["seconds"], fetched_bytes(record)
    rate = f", {human_size(fetched / seconds)}/s" if fetched and seconds else ""
    lines = [
        f"{record['name']}: {record['phase']}, {seconds:.3f} s",
        f"{len(record['layers'])} layers, {reused} reused; {human_size(fetched)} fetched{rate}",
    ]
    if record["host"]:
        lines.append(f"manifest from {record['host']}, credential: {record['credential']}")
    lines += [f"image {record['image']}"] if record["image"] else []
    lines += [f"failed: {record['error']}"] if record["error"] else []
    return lines


def total(record: Record) -> float:
    """Return the milliseconds that the picture spans, which are never none."""
    return max(float(record["seconds"]) * 1000, 0.001)


def fetched_bytes(record: Record) -> int:
    """Return how many bytes this pull brought to the node itself."""
    layers = [layer for layer in record["layers"] if not layer["reused"]]
    return sum(max(0, layer.get("arrived_bytes", 0) - layer.get("resumed_bytes", 0)) for layer in layers)


def critical(record: Record) -> Record | None:
    """Return the layer that was ready last, for which the others waited; None where there was nothing to wait for."""
    timed = [row for row in record["layers"] if row.get("unpack_end_ms")]
    return max(timed, key=lambda row: row["unpack_end_ms"]) if len(timed) > 1 else None


def _row(row: Record, total_ms: float, room: int, *, last: bool) -> str:
    span = Span.from_record(row)
    text = f"  {short(span.blob):<12} {human_size(span.size_bytes):>7}  "
    if row["why"] == "present":
        return f"{text}|{WORDS['present']:^{room}}|"
    if not span.end:
        return f"{text}|{'not begun':^{room}}|"
    times = [f"{span.unpack_end - span.queued:.0f} ms"] if span.unpack_end else ["not whole"]
    times += [f"fetch {span.fetch_end - span.fetch_start:.0f}"] if span.fetch_end and row["why"] != "joined" else []
    times += [WORDS["joined"]] if row["why"] == "joined" else []
    return f"{text}|{bar(span, total_ms, room)}| {', '.join(times)}{'  < last' if last else ''}"


def _line(begin: float, end: float, total_ms: float, room: int) -> str:
    first = min(room - 1, int(room * begin / total_ms))
    marks = max(1, min(room - first, round(room * (end - begin) / total_ms)))
    return f"{' ' * first}{'*' * marks}".ljust(room)


def _origin(row: Record) -> tuple[str, str, str, str]:
    size = human_size(row["size_bytes"])
    if row["why"] == "present":
        return f"  {short(row['blob'])}", size, WORDS["present"], ""
    host = row.get("host") or (WORDS["joined"] if row["why"] == "joined" else "nobody yet")
    resumed = row.get("resumed_bytes") or 0
    came = f"{host}, {human_size(resumed)} were here" if resumed else host
    return f"  {short(row['blob'])}", size, came, row.get("credential") or ""
