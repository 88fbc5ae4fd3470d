"""`cri-shim import containers-storage:` out of what podman, skopeo and buildah have left, and CRI-O's way over and back.

The registry is stopped before anything is taken over.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from tests.real.podman import RUN_OPTIONS, Podman
from tests.real.pods import LOOK_AROUND, SEEN, app_layers, busybox_layer, write_app
from tests.real.programs import run
from tests.real.registry import DockerRegistry
from tests.real.shim import Shim
from tests.real.test_adopt import looks

pytestmark = pytest.mark.needs("root", "docker-registry", "skopeo", "podman", "runc", "conmon", "crictl", "busybox")

PAUSE = ["/bin/sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"]


@pytest.fixture(scope="module")
def layouts(work):
    base = work / "stored"
    base.mkdir()
    return {
        "app": write_app(base, "app", app_layers(), ["sh"], indexed=True),
        "pause": write_app(base, "pause", (busybox_layer(),), PAUSE),
    }


@pytest.fixture
def own(place, layouts):
    running = DockerRegistry(place / "reg")
    for name, layout in layouts.items():
        running.push(layout, name, f"{name}:1")
    yield running
    running.close()


def inodes(root: Path) -> set[int]:
    """The inodes of all files with content below *root*."""
    found = (path.lstat() for path in root.rglob("*"))
    return {status.st_ino for status in found if stat.S_ISREG(status.st_mode) and status.st_size}


def cli(shim, *words, check=True):
    return run(sys.executable, "-m", "cri_shim", *words, "--config", shim.base / "config.toml", check=check)


def in_runc(place, shim, name):
    """What a container of our image sees, by runc alone."""
    bundle = place / "bundle"
    cli(shim, "bundle", name, bundle)
    spec = json.loads((bundle / "config.json").read_text())
    spec["process"]["args"] = ["/bin/sh", "-c", LOOK_AROUND]
    (bundle / "config.json").write_text(json.dumps(spec))
    said = run("runc", "--root", place / "runc", "run", "--bundle", bundle, f"s{os.getpid()}").stdout
    run(sys.executable, "-m", "cri_shim", "umount", bundle)
    return said


def test_what_podman_skopeo_and_buildah_have(place, own):
    podman = Podman(place / "p")
    app, copied, built = f"{own.host}/app:1", "example.test/copied:1", "localhost/built:1"
    podman("pull", "--quiet", "--tls-verify=false", app)
    podman("copy", "--quiet", "--src-tls-verify=false", f"docker://{own.host}/pause:1", f"containers-storage:{copied}",
           program="skopeo")  # fmt: skip
    container = podman("from", "--pull-never", app, program="buildah").stdout.strip()
    mounted = Path(podman("mount", container, program="buildah").stdout.strip())
    (mounted / "etc/motd").write_text("from buildah\n")
    podman("umount", container, program="buildah")
    podman("commit", "--quiet", "--rm", container, built, program="buildah")
    running = podman("run", "--detach", *RUN_OPTIONS, app, "sleep", "100000").stdout.strip()
    own.close()
    ids = {name: f"sha256:{one['Id']}" for one in podman.images() for name in one["Names"]}
    trees = [podman.root / "overlay" / one["id"] for one in layers_of(podman.root, ids)]
    before = {tree: looks(tree / "diff") for tree in trees}

    shim = Shim(place / "n", containers_storage_roots=[str(podman.root)]).start()
    try:
        said = cli(shim, "import", "containers-storage:")
        assert dict(line.split() for line in said.stdout.splitlines()) == ids
        assert ids.keys() == {app, copied, built}
        assert "are linked, 0 files (0.0 MB) are copies" in said.stderr
        assert {tree: looks(tree / "diff") for tree in trees} == before
        files = set().union(*(inodes(tree / "diff") for tree in trees))
        assert files <= inodes(shim.root / "overlay")
        repo_digests = {name: set(one["RepoDigests"]) for one in podman.images() for name in one["Names"]}
        for name in ids:
            assert set(shim.inspect(name)["status"]["repoDigests"]) <= repo_digests[name]
        assert in_runc(place, shim, app) == SEEN
        assert in_runc(place, shim, built) == SEEN.replace("the third layer", "buildah")
        assert podman("exec", running, "cat", "/etc/motd").stdout == "from the third layer\n"
        # What they remove afterwards, they remove of theirs.
        podman("rm", "--force", "--time", "0", running)
        podman("rmi", "--all", "--force")
        assert podman.own_layers() == 0
        assert in_runc(place, shim, app) == SEEN
        cli(shim, "check", "--full")  # ends with 0 when everything is whole
    finally:
        podman("rm", "--all", "--force", "--time", "0", check=False)
        shim.stop()


def layers_of(root, ids):
    """The records of the layers of images."""
    assert ids
    return json.loads((root / "overlay-layers/layers.json").read_text())
