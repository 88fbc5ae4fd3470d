"""The image specs of critest, offline: 16 of 16, in any order, with images as OCI and as docker schema 2.

The names in critest are those of real hosts; hosts.toml leads them to a loopback registry. One spec has the digest of
the original image built in: the 64 digits are replaced in a copy of the binary by those of ours.
"""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.real.programs import run
from tests.real.registry import DockerRegistry
from tests.real.samples import architecture, finish_layout, write_image, write_index
from tests.real.shim import Shim
from tests.real.tars import LayerTar

pytestmark = pytest.mark.needs("root", "docker-registry", "skopeo", "critest", "crictl")

FOCUS = "Image Manager|Image Consistency|Idempotence RemoveImage|Runtime info"
SPECS = 16
MIRRORED = ("gcr.io", "registry.k8s.io", "k8s.gcr.io")
BUILT_IN = b"9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf"
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


def build(base: Path, number: int, path: str, user: str) -> Path:
    """Make one image: a shared base, a marker layer of its own, for two platforms; return its layout."""
    layout = base / f"layout-{number}"
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)
    below = LayerTar().directory("etc").file("etc/passwd", b"www-data:x:33:33::/:/bin/sh\n").write(base / "below.tar")
    marker = LayerTar().file("marker", f"{number} {path}".encode()).write(base / "marker.tar")
    config = {"User": user, "Cmd": ["/bin/sh"]} if user else {"Cmd": ["/bin/sh"]}
    manifests = [write_image(blobs, arch, [below, marker], config) for arch in (architecture(), "riscv64")]
    finish_layout(layout, "image", manifests[0] if path == PLAIN else write_index(blobs, manifests))
    return layout


@pytest.fixture(scope="module", params=["oci", "v2s2"])
def mirror(work, request):
    """A registry with all images in one format, and critest with the digest of ours."""
    base = work / f"critest-{request.param}"
    registry = DockerRegistry(base / "reg")
    digests = {}
    for number, (path, tags, user) in enumerate(IMAGES):
        layout = build(base, number, path, user)
        for tag in tags:
            digests[path] = registry.push(layout, "image", f"{path}:{tag}", "--format", request.param)
    yield registry, with_digest(base / "critest", digests[PLAIN])
    registry.close()


def with_digest(target: Path, digest: str) -> Path:
    program = Path(shutil.which("critest")).read_bytes()
    assert program.count(BUILT_IN) == 1
    target.write_bytes(program.replace(BUILT_IN, digest.removeprefix("sha256:").encode()))
    target.chmod(0o755)
    return target


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_image_specs(mirror, place, seed):
    registry, critest = mirror
    shim = Shim(place / "n", runtime="containerd")
    for host in MIRRORED:
        shim.trust(host, f"http://{registry.host}")
    shim.start()
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
