"""The first measurement: a Debian root filesystem, pulled from a registry on loopback.

Beside it stands the bare pipe, `curl | gunzip | tar x`, which verifies nothing. Every run has a filesystem of its own,
freshly made: unlinking thousands of files slows down the next run on ext4. Alternating runs share what the machine
does meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cri_shim.demo.client import Client
from tests.bench.meter import cpu_seconds, pss_bytes
from tests.real import samples
from tests.real.programs import run
from tests.real.registry import DockerRegistry
from tests.real.shim import Shim

FILESYSTEM_BYTES = 4 << 30
CALLS = 1000
DECOMPRESSORS = {"gzip": "gunzip", "zstd": "zstd -dc"}
BARS = {"ready": "0.5 s", "memory": "70 MB", "ImageFsInfo": "50 ms"}


@dataclass(frozen=True)
class Cost:
    """One run: time on the clock, CPU of every process in it."""

    wall_seconds: float
    cpu_seconds: float


@contextmanager
def fresh_filesystem(base: Path) -> Iterator[Path]:
    """A new ext4 on a loop device."""
    image, at = base / "fs.img", base / "fs"
    at.mkdir()
    with image.open("wb") as file:
        file.truncate(FILESYSTEM_BYTES)
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
    run("mount", "-o", "loop", image, at)
    try:
        yield at
    finally:
        run("umount", at)
        image.unlink()
        at.rmdir()


def bare(url: str, compression: str, target: Path, *, sync: bool) -> Cost:
    """The pipe; *sync* brings its files to the disk, as a pull does."""
    (target / "tree").mkdir()
    command = f"curl -sSf '{url}' | {DECOMPRESSORS[compression]} | tar x --numeric-owner -C '{target}/tree'"
    if sync:
        command += f" && sync -f '{target}/tree'"
    before, begun = children_seconds(), time.monotonic()
    subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True, stdin=subprocess.DEVNULL)
    return Cost(time.monotonic() - begun, children_seconds() - before)


def pulled(shim: Shim, name: str) -> Cost:
    """A pull over the socket."""
    with Client(shim.socket) as client:
        client.room()  # the connection is made
        before, begun = cpu_seconds(shim.process.pid), time.monotonic()
        client.pull(name)
        return Cost(time.monotonic() - begun, cpu_seconds(shim.process.pid) - before)


def room_latency_ms(shim: Shim, calls: int = CALLS) -> list[float]:
    """Times of ImageFsInfo calls, one after another."""
    with Client(shim.socket) as client:
        client.room()
        return [_timed(client.room) * 1000 for _ in range(calls)]


def room_latency_while_pulling_ms(shim: Shim, name: str) -> list[float]:
    """Times of ImageFsInfo calls while *name* is pulled over another connection."""
    found = []
    with Client(shim.socket) as client, Client(shim.socket) as other, ThreadPoolExecutor(1) as thread:
        client.room()
        pulling = thread.submit(other.pull, name)
        while not pulling.done():
            found.append(_timed(client.room) * 1000)
        pulling.result()
    return found


def measure(runs: int) -> dict[str, object]:
    """Do everything; return what was found."""
    with tempfile.TemporaryDirectory(prefix="cs-bench-") as work:
        base = Path(work)
        image = samples.debian(base)
        results: dict[str, object] = {"machine": machine(), "runs": runs}
        for compression in DECOMPRESSORS:
            results[compression] = _compare(base / compression, image, compression, runs)
        results |= _daemon(base / "idle")
        return results


def _compare(base: Path, image: samples.Made, compression: str, runs: int) -> dict[str, object]:
    base.mkdir()
    registry = DockerRegistry(base / "reg")
    try:
        registry.push(image.layout, image.tag, "debian:12", "--dest-compress-format", compression)
        layer = registry.manifest("debian:12")["layers"][0]
        url = f"http://{registry.host}/v2/debian/blobs/{layer['digest']}"
        name, found = f"{registry.host}/debian:12", _Costs()
        for number in range(runs):
            for sync in (True, False):
                ending = "synced" if sync else "unsynced"
                with fresh_filesystem(base) as at:
                    found.add(f"bare pipe, {ending}", bare(url, compression, at, sync=sync))
                with fresh_filesystem(base) as at, node(at, registry.host, sync=sync) as shim:
                    found.add(f"pull, {ending}", pulled(shim, name))
            if number == 0:
                with fresh_filesystem(base) as at, node(at, registry.host, sync=True) as shim:
                    found.while_pulling_ms = room_latency_while_pulling_ms(shim, name)
        return {"blob_bytes": layer["size"], **found.medians()}
    finally:
        registry.close()


class _Costs:
    def __init__(self) -> None:
        self._costs: dict[str, list[Cost]] = {}
        self.while_pulling_ms: list[float] = []

    def add(self, what: str, cost: Cost) -> None:
        self._costs.setdefault(what, []).append(cost)

    def medians(self) -> dict[str, object]:
        rows: dict[str, object] = {what: asdict(_median(costs)) for what, costs in self._costs.items()}
        return rows | {"ImageFsInfo while pulling": spread(self.while_pulling_ms)}


@contextmanager
def node(at: Path, host: str, *, sync: bool) -> Iterator[Shim]:
    """A daemon on an empty filesystem."""
    shim = Shim(at / "n", sync="syncfs" if sync else "off")
    shim.trust(host)
    shim.start()
    try:
        yield shim
    finally:
        shim.stop()


def _daemon(base: Path) -> dict[str, object]:
    """Start time, memory and latency of a daemon at rest."""
    ready = []
    for number in range(5):
        shim = Shim(base / str(number))
        begun = time.monotonic()
        shim.start()
        ready.append(time.monotonic() - begun)
        if number < 4:
            shim.stop()
    try:
        latency = room_latency_ms(shim)
        return {
            "ready_seconds": statistics.median(ready),
            "idle_pss_bytes": pss_bytes(shim.process.pid),
            "ImageFsInfo at rest": spread(latency),
        }
    finally:
        shim.stop()


def spread(values: list[float]) -> dict[str, float]:
    """Median, 99th percentile and worst, in milliseconds."""
    ordered = sorted(values)
    return {
        "calls": len(ordered),
        "p50_ms": ordered[len(ordered) // 2],
        "p99_ms": ordered[min(len(ordered) * 99 // 100, len(ordered) - 1)],
        "max_ms": ordered[-1],
    }


def table(results: dict) -> Iterator[str]:
    """What people read."""
    yield f"{results['machine']}; median of {results['runs']} runs, each on a fresh ext4"
    for compression in DECOMPRESSORS:
        rows = results[compression]
        yield f"\ndebootstrap image, {compression}, {rows['blob_bytes'] / 1e6:.1f} MB compressed"
        for what, cost in rows.items():
            if isinstance(cost, dict) and "wall_seconds" in cost:
                yield f"  {what:<22} {cost['wall_seconds']:6.2f} s   CPU {cost['cpu_seconds']:6.2f} s"
        yield f"  {'ImageFsInfo meanwhile':<22} {_latency(rows['ImageFsInfo while pulling'])}   (bar {BARS['ImageFsInfo']})"
    yield "\ndaemon at rest"
    yield f"  {'ready after':<22} {results['ready_seconds']:6.2f} s   (bar {BARS['ready']})"
    yield f"  {'memory, all processes':<22} {results['idle_pss_bytes'] / 1e6:6.1f} MB PSS   (bar {BARS['memory']})"
    yield f"  {'ImageFsInfo':<22} {_latency(results['ImageFsInfo at rest'])}   (bar {BARS['ImageFsInfo']})"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/bench/run", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="runs of each kind (3)")
    parser.add_argument("--json", type=Path, help="write all numbers to this file as well")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("the benchmark mounts filesystems: run it as root", file=sys.stderr)
        return 1
    results = measure(options.runs)
    print("\n".join(table(results)))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def _median(costs: list[Cost]) -> Cost:
    """The run in the middle, by the clock."""
    return sorted(costs, key=lambda cost: cost.wall_seconds)[len(costs) // 2]


def _latency(row: dict[str, float]) -> str:
    return f"p50 {row['p50_ms']:.2f}, p99 {row['p99_ms']:.2f}, max {row['max_ms']:.2f} ms of {row['calls']:.0f} calls"


def _timed(call) -> float:
    begun = time.monotonic()
    call()
    return time.monotonic() - begun


def children_seconds() -> float:
    """CPU of all children that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def machine() -> str:
    """What it was measured on."""
    kernel = os.uname()
    return f"{len(os.sched_getaffinity(0))} cores, Linux {kernel.release.partition('-')[0]}, Python {sys.version.split()[0]}"


if __name__ == "__main__":
    sys.exit(main())
