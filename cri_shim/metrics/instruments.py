"""Counters, gauges and histograms, and the page with all of them, in the text format 0.0.4 of Prometheus.

Any thread may count; whoever reads sees each family as it was at one moment.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
MOST_SERIES: Final = 100
"""Of one family. What goes over it is counted together, under OTHER."""

OTHER: Final = "other"
_LONGEST_LABEL: Final = 128
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})

Labels = tuple[str, ...]
Sample = tuple[str, tuple[tuple[str, str], ...], float]


class Family(ABC):
    """All series of one *name*; each has a value for every one of *labels*."""

    kind = ""

    def __init__(self, name: str, sentence: str, labels: Sequence[str] = ()) -> None:
        self.name = name
        self.sentence = sentence
        self.labels = tuple(labels)
        self._lock = threading.Lock()

    def lines(self) -> Iterator[str]:
        """Give the lines of the page."""
        with self._lock:
            samples = list(self._samples())
        yield f"# HELP {self.name} {self.sentence}"
        yield f"# TYPE {self.name} {self.kind}"
        for name, labels, value in samples:
            written = ",".join(f'{label}="{text.translate(_ESCAPES)}"' for label, text in labels)
            yield f"{name}{{{written}}} {_number(value)}" if written else f"{name} {_number(value)}"

    @abstractmethod
    def _samples(self) -> Iterator[Sample]:
        """Give every number, with the name and the labels it has."""

    def _key(self, known: Iterable[Labels], count: int, values: Labels) -> Labels:
        if len(values) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, and was given {len(values)}")
        values = tuple(value[:_LONGEST_LABEL] for value in values)
        return values if values in known or count < MOST_SERIES else (OTHER,) * len(values)

    def _pairs(self, values: Labels) -> tuple[tuple[str, str], ...]:
        return tuple(zip(self.labels, values, strict=True))


class _Numbers(Family):
    """One number for each series. Without labels there is one from the beginning, and it is 0."""

    def __init__(self, name: str, sentence: str, labels: Sequence[str] = ()) -> None:
        super().__init__(name, sentence, labels)
        self._values: dict[Labels, float] = {} if labels else {(): 0.0}

    def _samples(self) -> Iterator[Sample]:
        for values, number in sorted(self._values.items()):
            yield self.name, self._pairs(values), number


class Counter(_Numbers):
    """What only grows."""

    kind = "counter"

    def add(self, *values: str, by: float = 1) -> None:
        """Count *by* more for the label *values*."""
        with self._lock:
            key = self._key(self._values, len(self._values), values)
            self._values[key] = self._values.get(key, 0.0) + by

    def read(self, *values: str, at: float) -> None:
        """Take over what somebody else counts: it is *at* so much for the label *values*."""
        with self._lock:
            self._values[self._key(self._values, len(self._values), values)] = at


class Gauge(_Numbers):
    """What goes up and down."""

    kind = "gauge"

    def set(self, *values: str, to: float) -> None:
        """Note that it is *to* now for the label *values*."""
        with self._lock:
            self._values[self._key(self._values, len(self._values), values)] = to


class Histogram(Family):
    """How often something was at most so much, for each of *bounds*, and the sum of all."""

    kind = "histogram"

    def __init__(self, name: str, sentence: str, bounds: Sequence[float], labels: Sequence[str] = ()) -> None:
        super().__init__(name, sentence, labels)
        self.bounds = tuple(bounds)
        self._counts: dict[Labels, list[int]] = {} if labels else {(): self._nothing()}
        self._sums: dict[Labels, float] = {}

    def observe(self, number: float, *values: str) -> None:
        """Count *number* for the label *values*."""
        with self._lock:
            key = self._key(self._counts, len(self._counts), values)
            self._counts.setdefault(key, self._nothing())[bisect_left(self.bounds, number)] += 1
            self._sums[key] = self._sums.get(key, 0.0) + number

    def _nothing(self) -> list[int]:
        return [0] * (len(self.bounds) + 1)

    def _samples(self) -> Iterator[Sample]:
        for values, counts in sorted(self._counts.items()):
            pairs, below = self._pairs(values), 0
            for bound, count in zip((*map(_number, self.bounds), "+Inf"), counts, strict=True):
                below += count
                yield f"{self.name}_bucket", (*pairs, ("le", bound)), below
            yield f"{self.name}_sum", pairs, self._sums.get(values, 0.0)
            yield f"{self.name}_count", pairs, below


def exposition(families: Iterable[Family]) -> str:
    """Return the page of *families*."""
    return "".join(f"{line}\n" for family in families for line in family.lines())


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
