"""Layers by hand: `python -m rootfs apply` beside what else unpacks a tar, each run on a filesystem of its own.

Two layers: a debootstrap image, and as many small files as a large application of Node has. Every program reads the
same gzip file; umoci and containerd have it in an image. Nothing is brought to the disk. tar and bsdtar check nothing;
umoci and containerd compare digests, as we do, and we write the record of the tar as well in the second of our rows.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

from tests.bench.meter import cpu_seconds
from tests.bench.pull import children_seconds, fresh_filesystem, machine
from tests.real import samples
from tests.real.peers import Containerd
from tests.real.programs import run

FILES = 60_000
FILES_PER_DIRECTORY = 40
SMALLEST_BYTES, LARGEST_BYTES = 200, 6000
OURS = "rootfs apply"


@dataclass(frozen=True)
class Layer:
    """A layer as a gzip file and in an OCI layout, and what is in it."""

    blob: Path
    layout: Path
    entries: int
    tar_bytes: int


@dataclass(frozen=True)
class Cost:
    """One run."""

    wall_seconds: float
    cpu_seconds: float


def many_files(path: Path) -> None:
    """Write a tar of many small files, always the same."""
    chance = random.Random(1)
    stuff = chance.randbytes(1 << 20)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(FILES):
            parent = f"usr/lib/node_modules/package{number // FILES_PER_DIRECTORY}"
            if number % FILES_PER_DIRECTORY == 0:
                directory = tarfile.TarInfo(parent)
                directory.type, directory.mode, directory.mtime = tarfile.DIRTYPE, 0o755, 1_700_000_000
                tar.addfile(directory)
            file = tarfile.TarInfo(f"{parent}/file_{number}.js")
            file.size, file.mtime = chance.randrange(SMALLEST_BYTES, LARGEST_BYTES), 1_700_000_000 + number % 7
            start = chance.randrange(len(stuff) // 2)
            tar.addfile(file, BytesIO(stuff[start : start + file.size]))


def layer_of(base: Path, tar: Path) -> Layer:
    blob, layout = base / "layer.tar.gz", base / "layout"
    with tar.open("rb") as source, gzip.open(blob, "wb", compresslevel=1) as packed:
        shutil.copyfileobj(source, packed, 1 << 20)
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:1")
    run("umoci", "raw", "add-layer", "--image", f"{layout}:1", tar)
    with tarfile.open(tar) as members:
        return Layer(blob, layout, sum(1 for _ in members), tar.stat().st_size)


def by_command(*command: str) -> Callable[[Layer, Path], Cost]:
    """A program with the layer on its standard input; TREE stands for an empty directory, and OUT for a new file."""

    def measured(layer: Layer, at: Path) -> Cost:
        (at / "tree").mkdir()
        words = [word.replace("TREE", f"{at}/tree").replace("OUT", f"{at}/record") for word in command]
        with layer.blob.open("rb") as blob:
            return timed(lambda: subprocess.run(words, stdin=blob, stdout=subprocess.DEVNULL, check=True))

    return measured


def by_umoci(layer: Layer, at: Path) -> Cost:
    return timed(lambda: run("umoci", "raw", "unpack", "--image", f"{layer.layout}:1", at / "tree"))


def by_containerd(layer: Layer, at: Path) -> Cost:
    """Unpacking alone: the blobs lie in its content store already."""
    peer = Containerd(at / "c")
    try:
        archive = at / "image.tar"
        run("skopeo", "copy", "-q", f"oci:{layer.layout}:1", f"oci-archive:{archive}:1")
        peer.ctr("images", "import", "--no-unpack", "--base-name", "bench", archive)
        digest = json.loads((layer.layout / "index.json").read_text())["manifests"][0]["digest"]
        before, begun = cpu_seconds(peer.process.pid), time.monotonic()
        peer.ctr("snapshots", "unpack", digest)
        return Cost(time.monotonic() - begun, cpu_seconds(peer.process.pid) - before)
    finally:
        peer.close()


PROGRAMS: dict[str, Callable[[Layer, Path], Cost]] = {
    OURS: by_command(sys.executable, "-m", "rootfs", "apply", "TREE"),
    f"{OURS} --tar-split": by_command(sys.executable, "-m", "rootfs", "apply", "TREE", "--tar-split", "OUT"),
    "tar xz": by_command("tar", "xz", "--numeric-owner", "-p", "-C", "TREE"),
    "bsdtar x": by_command("bsdtar", "-x", "--numeric-owner", "-p", "-C", "TREE", "-f", "-"),
    "umoci raw unpack": by_umoci,
    "containerd": by_containerd,
}


def timed(work: Callable[[], object]) -> Cost:
    before, begun = children_seconds(), time.monotonic()
    work()
    return Cost(time.monotonic() - begun, children_seconds() - before)


@contextmanager
def made_layers(base: Path) -> Iterator[dict[str, Layer]]:
    small = base / "many.tar"
    many_files(small)
    made = {"small files": small, "debootstrap": samples.debian_tar(base)}
    for name in made:
        (base / name).mkdir()
    yield {name: layer_of(base / name, tar) for name, tar in made.items()}


def measure(runs: int) -> dict[str, object]:
    """Do everything, the programs in turns; return what was found."""
    results: dict[str, object] = {"machine": machine(), "runs": runs}
    with tempfile.TemporaryDirectory(prefix="cs-bench-") as work, made_layers(Path(work)) as layers:
        for name, layer in layers.items():
            costs: dict[str, list[Cost]] = {program: [] for program in PROGRAMS}
            for _ in range(runs):
                for program, unpack in PROGRAMS.items():
                    with fresh_filesystem(Path(work)) as at:
                        costs[program].append(unpack(layer, at))
            results[name] = {
                "entries": layer.entries,
                "tar_bytes": layer.tar_bytes,
                "programs": {program: asdict(median(found)) for program, found in costs.items()},
            }
    return results


def median(costs: list[Cost]) -> Cost:
    """The clock's and the processor's, each on its own."""
    return Cost(
        statistics.median(cost.wall_seconds for cost in costs), statistics.median(cost.cpu_seconds for cost in costs)
    )


def table(results: dict) -> Iterator[str]:
    """What people read."""
    yield f"{results['machine']}; median of {results['runs']} runs, each on a fresh ext4"
    for name, found in results.items():
        if not isinstance(found, dict):
            continue
        entries, size = found["entries"], found["tar_bytes"]
        yield f"\n{name}: {entries} entries, {size / 1e6:.0f} MB of tar, gzip"
        ours = found["programs"][OURS]["wall_seconds"]
        for program, cost in found["programs"].items():
            wall = cost["wall_seconds"]
            rates = f"{entries / wall:7.0f} entries/s {size / wall / 1e6:6.0f} MB/s"
            yield f"  {program:<24} {wall:6.2f} s  CPU {cost['cpu_seconds']:6.2f} s {rates}   {wall / ours:5.2f} times ours"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/bench/run unpack", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="runs of each program (3)")
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


if __name__ == "__main__":
    sys.exit(main())
