"""Tables and sizes as crictl prints them, for every verb that shows some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_NARROWEST: Final = 20
_BETWEEN: Final = 3
_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def human_size(size_bytes: float) -> str:
    """Return a size as crictl prints it: decimal units, three significant digits."""
    size, unit = float(size_bytes), 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.3g}{_UNITS[unit]}"


def table(rows: Iterable[Sequence[str]], narrowest: int = _NARROWEST) -> list[str]:
    """Return a line for each of *rows*, all of one length: columns of *narrowest* characters, wider where one needs it.

    The last column is not filled up, as crictl does it.
    """
    rows = list(rows)
    columns = len(rows[0]) - 1 if rows else 0
    widths = [max(narrowest, max(len(row[column]) for row in rows) + _BETWEEN) for column in range(columns)]
    return ["".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)) for row in rows]
