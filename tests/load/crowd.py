"""Several client processes at once, and what they measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Work:
    """What one process does: *calls* of each of *kinds*, *at_once* of them side by side."""

    kinds: str
    calls: int
    at_once: int
    name: str = ""
    user: str = ""


@dataclass(frozen=True)
class Outcome:
    """What all of them saw. *wall_seconds* is from the first call of any to the last answer."""

    seconds: dict[str, list[float]]
    failed: list[str]
    answers: set[str]
    wall_seconds: float


class Crowd:
    """Client processes that are connected and wait for the word."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self._processes = processes

    def go(self) -> None:
        for process in self._processes:
            process.stdin.write("go\n")
            process.stdin.flush()

    def outcome(self) -> Outcome:
        told = [json.loads(process.communicate(timeout=600)[0]) for process in self._processes]
        kinds = {kind for one in told for kind in one["seconds"]}
        return Outcome(
            seconds={kind: sorted(s for one in told for s in one["seconds"].get(kind, ())) for kind in kinds},
            failed=[text for one in told for text in one["failed"]],
            answers={answer for one in told for answer in one["answers"]},
            wall_seconds=max(one["span"][1] for one in told) - min(one["span"][0] for one in told),
        )


@contextmanager
def crowd(sock: Path, works: Sequence[Work]) -> Iterator[Crowd]:
    """Start a process for each of *works*; all are connected when this returns."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.load.client", os.fspath(sock)]
            + [work.kinds, str(work.calls), str(work.at_once), work.name, work.user],
            cwd=ROOT,
            **pipes,
        )
        for work in works
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        yield Crowd(processes)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def percentile(seconds: Sequence[float], share: float) -> float:
    """The value of sorted *seconds* below which *share* of them lie, in milliseconds."""
    return seconds[min(len(seconds) - 1, int(len(seconds) * share))] * 1000


def told(what: str, seconds: Sequence[float]) -> str:
    return (
        f"{what}: {len(seconds)} calls, p50 {percentile(seconds, 0.5):.1f} ms, p99 {percentile(seconds, 0.99):.1f} ms, "
        f"longest {seconds[-1] * 1000:.1f} ms"
    )
