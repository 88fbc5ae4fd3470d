"""critest's images, offline, and its benchmarks.

The names in critest are those of real hosts; hosts.toml leads them to a loopback registry.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.real.programs import run
from tests.real.registry import DockerRegistry
from tests.real.samples import architecture, finish_layout, write_image, write_index
from tests.real.tars import LayerTar

MIRRORED = ("gcr.io", "registry.k8s.io", "k8s.gcr.io", "public.ecr.aws")
TOOLS = "k8s-staging-cri-tools"
# Path in the registry, tags that stand for one image, its User. By-digest images are no index: one repo digest each.
IMAGES = (
    (f"{TOOLS}/test-image-1", ("latest",), ""),
    (f"{TOOLS}/test-image-2", ("latest",), ""),
    (f"{TOOLS}/test-image-3", ("latest",), ""),
    (f"{TOOLS}/test-image-latest", ("latest",), ""),
    (f"{TOOLS}/test-image-digest", ("latest",), ""),
    (f"{TOOLS}/test-image-tag", ("test",), ""),
    (f"{TOOLS}/test-image-tag", ("all",), ""),
    (f"{TOOLS}/test-image-tags", ("1", "2", "3"), ""),
    (f"{TOOLS}/test-image-user-uid", ("latest",), "1002"),
    (f"{TOOLS}/test-image-user-username", ("latest",), "www-data"),
    (f"{TOOLS}/test-image-user-uid-group", ("latest",), "1003:1004"),
    (f"{TOOLS}/test-image-user-username-group", ("latest",), "www-data:1004"),
    ("pause", ("3.9",), "65535:65535"),
)
PLAIN = f"{TOOLS}/test-image-digest"
BUSYBOX = "docker/library/busybox:1.35.0-glibc"
BENCHMARKED = f"public.ecr.aws/{BUSYBOX}"


def build(base: Path, number: int, path: str, user: str) -> Path:
    """Make one image: a shared base, a marker layer of its own, for two platforms; return its layout."""
    below = LayerTar().directory("etc").file("etc/passwd", b"www-data:x:33:33::/:/bin/sh\n").write(base / "below.tar")
    marker = LayerTar().file("marker", f"{number} {path}".encode()).write(base / "marker.tar")
    return _layout(base / f"layout-{number}", [below, marker], user, plain=path == PLAIN)


def busybox(base: Path) -> Path:
    """Make what the benchmarks pull: a program of about a megabyte with its links below, a marker above."""
    program = Path("/bin/bash").read_bytes()
    below = LayerTar().directory("bin").file("bin/busybox", program, 0o755)
    for number in range(300):
        below.hardlink(f"bin/applet{number}", "bin/busybox")
    marker = LayerTar().file("marker", b"1.35.0").write(base / "marker.tar")
    return _layout(base / "layout-busybox", [below.write(base / "below.tar"), marker], "", plain=False)


def _layout(layout: Path, layers: list[Path], user: str, *, plain: bool) -> Path:
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)
    config = {"User": user, "Cmd": ["/bin/sh"]} if user else {"Cmd": ["/bin/sh"]}
    manifests = [write_image(blobs, arch, layers, config) for arch in (architecture(), "riscv64")]
    finish_layout(layout, "image", manifests[0] if plain else write_index(blobs, manifests))
    return layout


def fill(registry: DockerRegistry, base: Path, image_format: str) -> dict[str, str]:
    """Push everything that critest asks for; return the digest of the last tag of each path."""
    digests = {}
    for number, (path, tags, user) in enumerate(IMAGES):
        layout = build(base, number, path, user)
        for tag in tags:
            digests[path] = registry.push(layout, "image", f"{path}:{tag}", "--format", image_format)
    registry.push(busybox(base), "image", BUSYBOX, "--format", image_format)
    return digests


def references() -> list[str]:
    """Every name of the image specs, with a tag."""
    hosts = {TOOLS: "gcr.io", "pause": "registry.k8s.io"}
    return [f"{hosts[path.partition('/')[0]]}/{path}:{tag}" for path, tags, _ in IMAGES for tag in tags]


@dataclass(frozen=True)
class Benchmark:
    """One of critest's image benchmarks: *skip* leaves the others out, *file* is where it writes what it measured."""

    skip: str
    file: str


LIFECYCLE = Benchmark("PodSandbox|Container|listing", "image_lifecycle_benchmark_data.json")
LISTING = Benchmark("PodSandbox|Container|basic operations", "image_listing_benchmark_data.json")


def benchmark(sock: Path, place: Path, which: Benchmark, samples: int, workers: int) -> dict[str, list[float]]:
    """Run one benchmark against the server on *sock*; return the milliseconds of every call, by operation.

    critest panics, and writes nothing, when a call fails: then this raises with what it said.
    """
    place.mkdir()
    params = place / "params.yaml"
    params.write_text(
        f"imagesNumber: {samples}\nimagesNumberParallel: {workers}\nimageBenchmarkTimeoutSeconds: 120\n"
        f"imagePullingBenchmarkImage: {BENCHMARKED}\n"
    )
    endpoint = f"unix://{sock}"
    done = run(
        "critest", "-benchmark", f"--runtime-endpoint={endpoint}", f"--image-endpoint={endpoint}", "--ginkgo.no-color",
        f"--ginkgo.skip={which.skip}", f"--benchmarking-params-file={params}", f"--benchmarking-output-dir={place}",
        cwd=place, check=False, timeout=600,
    )  # fmt: skip
    written = place / which.file
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert written.exists(), done.stdout  # without parameters it skips and ends with 0
    told = json.loads(written.read_text())
    points = [point["operationsDurationsNs"] for point in told["datapoints"]]
    return {name: [point[at] / 1e6 for point in points] for at, name in enumerate(told["operationsNames"])}
