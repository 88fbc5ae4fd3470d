"""The image specs of critest, offline: 16 of 16, in any order, with images as OCI and as docker schema 2.

One spec has the digest of the original image built in: the 64 digits are replaced in a copy of the binary by those of
ours.
"""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.real.critest import BENCHMARKED, LIFECYCLE, LISTING, MIRRORED, PLAIN, benchmark, fill
from tests.real.programs import run
from tests.real.registry import DockerRegistry
from tests.real.shim import Shim

pytestmark = pytest.mark.needs("root", "docker-registry", "skopeo", "critest", "crictl")

FOCUS = "Image Manager|Image Consistency|Idempotence RemoveImage|Runtime info"
SPECS = 16
BUILT_IN = b"9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf"
WORKERS = 4


@pytest.fixture(scope="module", params=["oci", "v2s2"])
def mirror(work, request):
    """A registry with all images in one format, and critest with the digest of ours."""
    base = work / f"critest-{request.param}"
    registry = DockerRegistry(base / "reg")
    digests = fill(registry, base, request.param)
    yield registry, with_digest(base / "critest", digests[PLAIN])
    registry.close()


def with_digest(target: Path, digest: str) -> Path:
    program = Path(shutil.which("critest")).read_bytes()
    assert program.count(BUILT_IN) == 1
    target.write_bytes(program.replace(BUILT_IN, digest.removeprefix("sha256:").encode()))
    target.chmod(0o755)
    return target


def mirrored(place: Path, registry: DockerRegistry) -> Shim:
    shim = Shim(place / "n")
    for host in MIRRORED:
        shim.trust(host, f"http://{registry.host}")
    return shim.start()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_image_specs(mirror, place, seed):
    registry, critest = mirror
    shim = mirrored(place, registry)
    try:
        endpoint, report = f"unix://{shim.socket}", place / "critest.xml"
        done = run(
            critest,
            f"--runtime-endpoint={endpoint}",
            f"--image-endpoint={endpoint}",
            f"--ginkgo.focus={FOCUS}",
            "--ginkgo.fail-on-empty",
            "--ginkgo.no-color",
            "--ginkgo.v",
            "--ginkgo.randomize-all",
            f"--ginkgo.seed={seed}",
            f"--ginkgo.junit-report={report}",
            check=False,
            cwd=place,
        )
        assert done.returncode == 0, done.stdout
        # A run that matched nothing, or skipped, also ends with 0.
        assert len(passed(report)) == SPECS, done.stdout
        assert shim.crictl("images", "-q").stdout == ""
    finally:
        shim.stop()


def passed(report: Path) -> list[str]:
    cases = ET.parse(report).iter("testcase")
    return [
        case.get("name") for case in cases if case.get("status") == "passed" and case.get("name").startswith("[It]")
    ]


@pytest.mark.parametrize("workers", [1, WORKERS])
def test_image_benchmarks(mirror, place, workers):
    """With several workers pull, status and removal of one name race: a call that fails would be a panic of critest."""
    registry, _ = mirror
    shim = mirrored(place, registry)
    try:
        lifecycle = benchmark(shim.socket, place / "lifecycle", LIFECYCLE, 20, workers)
        assert {name: len(found) for name, found in lifecycle.items()} == {
            "PullImage": 20,
            "StatusImage": 20,
            "RemoveImage": 20,
        }
        assert shim.crictl("images", "-q").stdout == ""
        shim.pull(BENCHMARKED)
        listing = benchmark(shim.socket, place / "listing", LISTING, 100, workers)
        assert {name: len(found) for name, found in listing.items()} == {"ListImages": 100}
    finally:
        shim.stop()
