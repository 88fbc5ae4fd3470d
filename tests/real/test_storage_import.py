"""`cri-shim import containers-storage:` out of what podman, skopeo and buildah have left, and CRI-O's way over and back.

The registry is stopped before anything is taken over.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from tests.real.crio import Crio
from tests.real.podman import RUN_OPTIONS, Podman
from tests.real.pods import LOOK_AROUND, SEEN, Pods, app_layers, busybox_layer, write_app
from tests.real.programs import run, stop
from tests.real.registry import DockerRegistry
from tests.real.shim import Shim, crictl
from tests.real.test_adopt import looks
from tests.real.test_containerd import until

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


@pytest.mark.needs("crio", "pinns")
def test_a_node_with_cri_o_changes_over_and_back(place, own):
    app, pause = f"{own.host}/app:1", f"{own.host}/pause:1"
    crio = Crio(place / "c", place / "n/root", pause)
    (crio.base / "registries.conf").write_text(f'[[registry]]\nlocation = "{own.host}"\ninsecure = true\n')
    storage, ours = crio.base / "storage.conf", (crio.base / "storage.conf").read_text()
    alone = ours.replace(f'"{place / "n/root"}"', "")
    storage.write_text(alone)
    shim = Shim(place / "n", runtime="cri-o", adopt=True, containers_storage_roots=[str(crio.root)])
    before, after = Pods(place / "before", crio.socket, crio.socket), Pods(place / "after", crio.socket, shim.socket)
    before.written = after.written = app
    try:
        crio.start()
        theirs = {name: image_id(crio, name) for name in (app, pause) if crictl(crio.socket, "pull", name)}
        running, _ = before.begun(app, "sleep 100000")
        own.close()
        shim.start()
        until(lambda: shim.status()["adoption"]["state"] == "done")
        assert shim.status()["adoption"]["left"] == []
        crio.kill()
        storage.write_text(ours)
        crio.start()
        assert {name: shim.inspect(name)["status"]["id"] for name in theirs} == theirs
        trees = (crio.root / "overlay" / one["id"] / "diff" for one in layers_of(crio.root, theirs))
        assert set().union(*map(inodes, trees)) <= inodes(shim.root / "overlay")
        assert before.execute(running, "cat", "/etc/motd") == "from the third layer"
        assert after.output(theirs[app]) == SEEN
        # What is CRI-O's own goes when nothing uses it, and once: there is no more to be removed then.
        assert "in use by a container" in removed(crio, theirs[app]).stderr
        before.close()
        after.close()
        assert removed(crio, theirs[app]).returncode == 0
        assert [one["id"] for one in crio.own_images()] == [theirs[pause]]
        assert after.output(theirs[app]) == SEEN
        after.close()

        # The way back, as docs/kubernetes.md has it.
        stop(crio.process)
        storage.write_text(alone)
        crio.start()
        shim.stop()
        shutil.rmtree(shim.root)
        assert crio.images() == {theirs[pause]}
        own.start()
        crictl(crio.socket, "pull", app)
        assert image_id(crio, app) == theirs[app]
        assert before.output(app) == SEEN
    finally:
        before.close()
        after.close()
        crio.close()
        if shim.process is not None and shim.process.poll() is None:
            shim.stop()


def image_id(crio, name):
    return json.loads(crictl(crio.socket, "inspecti", "-o", "json", name).stdout)["status"]["id"]


def removed(crio, image):
    return crictl(crio.socket, "rmi", image, check=False)
