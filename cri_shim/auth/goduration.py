"""Durations as Go writes them: "12h", "1m30s", "1.5h", "0".

What time.ParseDuration takes and nothing else; whole nanoseconds, what is less is cut off.
"""

from __future__ import annotations

import re
from typing import Final

LONGEST_TEXT: Final = 64
"""Characters in a duration that is read; Go writes at most 24."""

_SECOND: Final = 1_000_000_000
_UNITS: Final = {
    "ns": 1,
    "us": 1000,
    "\u00b5s": 1000,  # the micro sign, and the Greek letter
    "\u03bcs": 1000,
    "ms": 1_000_000,
    "s": _SECOND,
    "m": 60 * _SECOND,
    "h": 3600 * _SECOND,
}
_PART: Final = re.compile(r"([0-9]*)(?:\.([0-9]*))?(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
_LONGEST_NS: Final = 2**63 - 1


def parse_duration_ns(text: str) -> int:
    """Read a duration, in nanoseconds.

    Raises:
        ValueError: it is none, or is longer than 292 years. The message repeats nothing of it.
    """
    sign = -1 if text.startswith("-") else 1
    rest = text[1:] if text.startswith(("-", "+")) else text
    if rest == "0":
        return 0
    if not rest or len(rest) > LONGEST_TEXT:
        raise ValueError("it is not a duration such as 12h or 1m30s")
    total = place = 0
    while place < len(rest):
        part = _PART.match(rest, place)
        if part is None or not (part[1] or part[2]):
            raise ValueError("it is not a duration such as 12h or 1m30s")
        total += _nanoseconds(part[1], part[2] or "", _UNITS[part[3]])
        place = part.end()
    if total > _LONGEST_NS:
        raise ValueError("it is longer than 292 years")
    return sign * total


def _nanoseconds(whole: str, fraction: str, unit: int) -> int:
    scale: int = 10 ** len(fraction)
    return int(whole or "0") * unit + int(fraction or "0") * unit // scale
