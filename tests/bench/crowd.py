"""A thousand calls for one image, beside one call for it, in turns on one machine.

The image is the debootstrap root filesystem; every pull finds an empty store. The calls come from four processes, 250
at once from each, which take their share of the machine too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.meter import cpu_seconds
from tests.load.crowd import Work, crowd
from tests.real import samples
from tests.real.registry import DockerRegistry
from tests.real.shim import Shim

CLIENTS, CALLS = 4, 1000


@dataclass(frozen=True)
class Run:
    """One run: seconds from the first call to the last answer, and the daemon's CPU with its helpers."""

    wall_seconds: float
    cpu_seconds: float


def pulled(base: Path, registry: DockerRegistry, works: list[Work], sync: str) -> Run:
    """Let a crowd pull into an empty store, and see that the registry was asked once for everything."""
    shim = Shim(base, sync=sync)
    shim.trust(registry.host)
    shim.start()
    try:
        before, asked = cpu_seconds(shim.process.pid), registry.blob_gets()
        with crowd(shim.socket, works) as clients:
            clients.go()
            outcome = clients.outcome()
        assert not outcome.failed, outcome.failed[:3]
        assert len(outcome.answers) == 1
        assert set((registry.blob_gets() - asked).values()) == {1}
        return Run(outcome.wall_seconds, cpu_seconds(shim.process.pid) - before)
    finally:
        shim.stop()


def measure(base: Path, rounds: int, sync: str) -> dict[str, list[Run]]:
    """Pull alone and in a crowd, in turns."""
    registry = DockerRegistry(base / "reg")
    try:
        image = samples.debian(base)
        registry.push(image.layout, image.tag, "debian:12", "--dest-compress-format", "gzip")
        name = f"{registry.host}/debian:12"
        kinds = {
            "one call": [Work("PullImage", 1, 1, name)],
            f"{CALLS} calls": [Work("PullImage", CALLS // CLIENTS, CALLS // CLIENTS, name)] * CLIENTS,
        }
        found: dict[str, list[Run]] = {kind: [] for kind in kinds}
        for number in range(rounds):
            for kind, works in kinds.items():
                found[kind].append(pulled(base / f"{number}{kind[0]}{len(works)}", registry, works, sync))
        return found
    finally:
        registry.close()


def table(found: dict[str, list[Run]]) -> Iterator[str]:
    """Medians, and how they compare."""
    walls = {kind: statistics.median(run.wall_seconds for run in runs) for kind, runs in found.items()}
    for kind, runs in found.items():
        cpu = statistics.median(run.cpu_seconds for run in runs)
        every = ", ".join(f"{run.wall_seconds:.2f}" for run in runs)
        yield f"{kind:<11} {walls[kind]:6.2f} s   CPU of the daemon {cpu:5.2f} s   (each: {every})"
    one, many = walls.values()
    pairs = [b.wall_seconds / a.wall_seconds for a, b in zip(*found.values(), strict=True)]
    yield f"ratio of the medians {many / one:.2f}; median of the ratios {statistics.median(pairs):.2f} (bar 1.3)"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/bench/run crowd", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds (5)")
    parser.add_argument("--sync", default="syncfs", help="sync of the configuration (syncfs)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cs-bench-") as work:
        print("\n".join(table(measure(Path(work), options.rounds, options.sync))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
