"""The waterfall of a pull as SVG, alone or in a page of HTML: nothing in it is loaded from anywhere. Pure."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, Final

from cri_shim.table import human_size
from cri_shim.waterfall import WORDS, Span, critical, head, short, total

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Record = Mapping[str, Any]

_WIDTH: Final = 960
_LEFT: Final = 190
_RIGHT: Final = 170
_ROW: Final = 26
_TOP: Final = 54
_MOST_TICKS: Final = 6
_LONGEST_TITLE: Final = 80
_STEPS: Final = {"resolving": "manifest", "committing": "record", "publishing": "hand-off"}
_COLOURS: Final = {
    "waiting": "#d0d7de",
    "fetching": "#4c8fd6",
    "fetching and unpacking": "#2a9d8f",
    "unpacking, syncing": "#e9a23b",
    "manifest, record, hand-off": "#6e7781",
}
_STYLE: Final = (
    "text{font:12px ui-sans-serif,system-ui,'DejaVu Sans',sans-serif;fill:#1f2328}"
    ".quiet{fill:#59636e}.bold{font-weight:600}.end{text-anchor:end}.middle{text-anchor:middle}"
)
_PAGE_STYLE: Final = (
    "body{font:14px/1.5 ui-sans-serif,system-ui,sans-serif;color:#1f2328;background:#fff;max-width:1000px;"
    "margin:2em auto;padding:0 1em}table{border-collapse:collapse}td,th{text-align:left;padding:.2em 1.2em .2em 0;"
    "border-bottom:1px solid #d0d7de;vertical-align:top}"
    "p{margin:.2em 0}td.n{text-align:right}code{font-size:12px}svg{max-width:100%}"
)


def svg(record: Record) -> str:
    """Return the picture of *record*."""
    rows = [*_rows(record)]
    height = _TOP + _ROW * len(rows) + 46
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img">',
        f"<title>{_text(record['name'])}</title><style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="12" y="22" class="bold">{_text(_title(record))}</text>',
        f'<text x="{_WIDTH - 12}" y="22" class="quiet end">{_text(head(record)[1])}</text>',
        *_axis(record, _ROW * len(rows)),
        *(part for number, row in enumerate(rows) for part in _shift(row, _TOP + number * _ROW)),
        *_legend(height - 16),
        "</svg>\n",
    ]
    return "\n".join(parts)


def page(record: Record) -> str:
    """Return a page of HTML with the picture, and where each layer came from."""
    cells = "".join(_cells(layer) for layer in record["layers"])
    told = "".join(f"<p>{_text(line)}</p>" for line in head(record)[1:])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{_text(record['name'])}</title><style>{_PAGE_STYLE}</style></head>\n<body>"
        f"<h1>{_text(record['name'])}</h1>{told}\n{svg(record)}"
        "<table><tr><th>layer</th><th>size</th><th>from</th><th>credential</th></tr>"
        f"{cells}</table></body></html>\n"
    )


def _title(record: Record) -> str:
    name, said = record["name"], f": {record['phase']}, {record['seconds']:.3f} s"
    return f"{name if len(name) <= _LONGEST_TITLE else name[: _LONGEST_TITLE - 1] + '…'}{said}"


def _rows(record: Record) -> Iterator[list[str]]:
    """Give the parts of each row, as if it were the first."""
    for step in record["steps"]:
        if step["phase"] == "layers":
            yield from (_layer(row, record) for row in record["layers"])
        else:
            yield _step(step, record)


def _step(step: Record, record: Record) -> list[str]:
    begin, end = step["begin_ms"], step["end_ms"]
    name = _STEPS.get(step["phase"], step["phase"])
    return [
        f'<text x="12" y="17">{_text(name)}</text>',
        _box(record, begin, end, "manifest, record, hand-off"),
        _note(f"{end - begin:.0f} ms"),
    ]


def _layer(row: Record, record: Record) -> list[str]:
    span = Span.from_record(row)
    parts = [
        f'<text x="12" y="17">{_text(short(span.blob))}</text>',
        f'<text x="{_LEFT - 14}" y="17" class="quiet end">{human_size(span.size_bytes)}</text>',
    ]
    if row["why"] == "present":
        return [*parts, f'<text x="{_LEFT + 6}" y="17" class="quiet">{WORDS["present"]}</text>']
    overlap = min(span.fetch_end, max(span.fetch_start, span.unpack_start or span.fetch_end))
    parts += [
        f"<g><title>{_text(_told(row, span))}</title>",
        _box(record, span.queued, span.fetch_start, "waiting"),
        _box(record, span.fetch_start, overlap, "fetching"),
        _box(record, overlap, span.fetch_end, "fetching and unpacking"),
        _box(record, span.fetch_end, span.unpack_end, "unpacking, syncing"),
        "</g>",
    ]
    took = f"{span.unpack_end - span.queued:.0f} ms" if span.unpack_end else "not whole"
    return [*parts, _note(f"{took}, last" if row is critical(record) else took)]


def _told(row: Record, span: Span) -> str:
    parts = [f"{row['blob']}: fetch {span.fetch_end - span.fetch_start:.0f} ms"]
    parts += [f"from {row['host']}"] if row.get("host") else []
    parts += [f"credential: {row['credential']}"] if row.get("credential") else []
    parts += [WORDS["joined"]] if row["why"] == "joined" else []
    return ", ".join(parts)


def _cells(layer: Record) -> str:
    origin = (
        WORDS["present"] if layer["why"] == "present" else layer.get("host") or WORDS.get(layer["why"], "nobody yet")
    )
    return (
        f'<tr><td><code>{_text(layer["blob"])}</code></td><td class="n">{human_size(layer["size_bytes"])}</td>'
        f"<td>{_text(origin)}</td><td>{_text(layer.get('credential') or '')}</td></tr>"
    )


def _box(record: Record, begin: float, end: float, kind: str) -> str:
    if end <= begin:
        return ""
    left, right = _x(record, begin), _x(record, end)
    return f'<rect x="{left:.1f}" y="4" width="{max(1.0, right - left):.1f}" height="18" fill="{_COLOURS[kind]}"/>'


def _note(text: str) -> str:
    return f'<text x="{_WIDTH - _RIGHT + 12}" y="17" class="quiet">{_text(text)}</text>'


def _axis(record: Record, height: int) -> Iterator[str]:
    total_ms = total(record)
    step = _round_step(total_ms)
    for number in range(int(total_ms / step) + 1):
        moment = number * step
        place = _x(record, moment)
        yield f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{_TOP}" y2="{_TOP + height}" stroke="#eaeef2"/>'
        yield f'<text x="{place:.1f}" y="{_TOP - 8}" class="quiet middle">{_moment(moment, step)}</text>'


def _round_step(total_ms: float) -> float:
    """Return the smallest 1, 2 or 5 times a power of ten of which not more than so many fit."""
    power = 0.001
    while True:
        for factor in (1, 2, 5):
            if total_ms / (factor * power) <= _MOST_TICKS:
                return factor * power
        power *= 10


def _legend(y: int) -> Iterator[str]:
    x = 12
    for kind, colour in _COLOURS.items():
        yield f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>'
        yield f'<text x="{x + 18}" y="{y}" class="quiet">{kind}</text>'
        x += 40 + 7 * len(kind)


def _shift(row: list[str], y: int) -> list[str]:
    return [f'<g transform="translate(0,{y})">', *filter(None, row), "</g>"]


def _x(record: Record, moment: float) -> float:
    room = _WIDTH - _LEFT - _RIGHT
    return _LEFT + room * max(0.0, min(1.0, moment / total(record)))


def _moment(moment: float, step: float) -> str:
    return f"{moment / 1000:g} s" if step >= 1000 else f"{moment:g} ms"


def _text(text: object) -> str:
    return escape(str(text))
