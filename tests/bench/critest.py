"""critest's image benchmarks, on cri-shim and on Debian's containerd, in turns on one machine.

What is pulled is about a megabyte in two layers, so what is measured is how long a pull takes when there is hardly
anything to pull: round trips, commits, syncs. cri-shim is measured as it is delivered, which brings every layer to the
disk before the answer, and without that, which is what containerd does.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.real.critest import BENCHMARKED, LIFECYCLE, LISTING, MIRRORED, benchmark, fill, references
from tests.real.peers import Containerd
from tests.real.programs import run
from tests.real.registry import DockerRegistry
from tests.real.shim import Shim, crictl

SAMPLES, LISTS = 100, 1000
MANY_WORKERS = 16
RACING_WORKERS = 4


@dataclass
class Found:
    """What was measured of one server: milliseconds by row; *ended* tells of runs that critest did not survive."""

    milliseconds: dict[str, list[float]] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)

    def add(self, ending: str, measured: dict[str, list[float]]) -> None:
        for operation, values in measured.items():
            self.milliseconds.setdefault(f"{operation}{ending}", []).extend(values)


@contextmanager
def servers(base: Path, registry: DockerRegistry) -> Iterator[dict[str, Path]]:
    """Start all of them; yield their sockets by name."""
    url = f"http://{registry.host}"
    with ExitStack() as stack:
        sockets = {}
        for name, sync in (("cri-shim", "syncfs"), ("cri-shim, sync = off", "off")):
            shim = Shim(base / f"s-{sync}", sync=sync)
            for host in MIRRORED:
                shim.trust(host, url)
            shim.start()
            stack.callback(shim.stop)
            sockets[name] = shim.socket
        containerd = Containerd(base / "c")
        stack.callback(containerd.close)
        for host in MIRRORED:
            containerd.trust(host, url)
        yield {**sockets, f"containerd {_version()}": containerd.socket}


def measure(base: Path, rounds: int) -> dict[str, Found]:
    """Let the servers take turns, so that what the machine does meanwhile is everybody's."""
    registry = DockerRegistry(base / "reg")
    try:
        fill(registry, base, "oci")
        with servers(base, registry) as sockets:
            found = {name: Found() for name in sockets}
            for number in range(rounds):
                for name, sock in sockets.items():
                    _lifecycle(sock, base / f"{number}-{name[-4:]}", found[name])
            for name, sock in sockets.items():
                _racing(sock, base / f"racing-{name[-4:]}", found[name])
                _listing(sock, base / f"listing-{name[-4:]}", found[name])
            return found
    finally:
        registry.close()


def _lifecycle(sock: Path, place: Path, found: Found) -> None:
    found.add("", benchmark(sock, place, LIFECYCLE, SAMPLES, 1))


def _racing(sock: Path, place: Path, found: Found) -> None:
    """Pull, status and removal of one name by several at once: critest panics when one of them fails."""
    _survived(lambda: benchmark(sock, place, LIFECYCLE, SAMPLES, RACING_WORKERS), RACING_WORKERS, found)
    crictl(sock, "rmi", BENCHMARKED, check=False)


def _listing(sock: Path, place: Path, found: Found) -> None:
    for name in references():
        crictl(sock, "pull", name)
    for workers in (1, MANY_WORKERS):
        where = place.with_name(f"{place.name}-{workers}")
        found.add(_ending(workers), benchmark(sock, where, LISTING, LISTS, workers))


def _survived(measured: Callable[[], dict[str, list[float]]], workers: int, found: Found) -> None:
    try:
        found.add(_ending(workers), measured())
    except AssertionError as error:
        found.ended[f"lifecycle{_ending(workers)}"] = next(
            (line.strip() for line in str(error).splitlines() if "rpc error" in line), "it panicked"
        )


def _ending(workers: int) -> str:
    return "" if workers == 1 else f", {workers} workers"


def table(found: dict[str, Found]) -> Iterator[str]:
    """A table in Markdown, as docs/compatibility.md has it: median, 90th and 99th percentile."""
    rows = list(dict.fromkeys(row for one in found.values() for row in one.milliseconds))
    yield f"| p50 / p90 / p99, ms | {' | '.join(found)} |"
    yield f"|---|{'---|' * len(found)}"
    for row in rows:
        yield f"| {row} | {' | '.join(_cell(one.milliseconds.get(row)) for one in found.values())} |"
    for name, one in found.items():
        for what, why in one.ended.items():
            yield f"\n{name}, {what}: critest ends, {why}"


def _cell(values: list[float] | None) -> str:
    if not values:
        return "critest panics"
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return f"{cuts[49]:.2f} / {cuts[89]:.2f} / {cuts[98]:.2f}"


def _version() -> str:
    said = run("containerd", "--version").stdout.split()
    return next((word for word in said if word[:1].isdigit()), "?").partition("~")[0]


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/bench/run critest", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help=f"rounds of {SAMPLES} pulls for each server (3)")
    options = parser.parse_args()
    subprocess.run(["sync"], check=True)
    with tempfile.TemporaryDirectory(prefix="cs-bench-") as work:
        print("\n".join(table(measure(Path(work), options.rounds))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
