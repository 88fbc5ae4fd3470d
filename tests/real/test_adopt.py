"""A node that ran with containerd alone: we take over its images without a registry, and it can go back."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from tests.real.peers import Containerd
from tests.real.pods import SEEN, Pods, app_layers, busybox_layer, write_app
from tests.real.registry import DockerRegistry
from tests.real.shim import Shim, crictl
from tests.real.test_containerd import programs_of, until

pytestmark = pytest.mark.needs("root", "docker-registry", "skopeo", "containerd", "ctr", "runc", "crictl", "busybox")


SNAPSHOTS = "io.containerd.snapshotter.v1.overlayfs/snapshots"


@pytest.fixture(scope="module")
def layouts(work):
    base = work / "adopted"
    base.mkdir()
    return {
        "app": write_app(base, "app", app_layers(), ["sh"], indexed=True),
        "pause": write_app(base, "pause", (busybox_layer(),), ["sleep", "100000"]),
    }


def blobs_of_layers(containerd) -> set[str]:
    """The blobs of containerd's content store that are no JSON."""
    kept = containerd.ctr("content", "ls", "-q").split()
    found = set()
    for digest in kept:
        path = containerd.root / "io.containerd.content.v1.content/blobs" / digest.replace(":", "/")
        if path.read_bytes()[:1] != b"{":
            found.add(digest)
    return found


def looks(root: Path) -> dict[Path, tuple]:
    """Everything about the trees below *root* that one more name for a file does not change."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        names = os.listxattr(path, follow_symlinks=False)
        extended = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
        kept = (status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns)
        found[path.relative_to(root)] = (*kept, content, extended)
    return found


@pytest.mark.parametrize("which", ["debian", "current"])
def test_a_node_changes_over_and_back(place, layouts, which):
    registry = DockerRegistry(place / "reg")
    app, pause = f"{registry.host}/app:1", f"{registry.host}/pause:1"
    for name, layout in layouts.items():
        registry.push(layout, name, f"{name}:1")
    containerd = Containerd(place / "c", programs=programs_of(which), sandbox=pause)
    containerd.trust(registry.host)
    before = Pods(place / "before", containerd.socket, containerd.socket)
    shim = Shim(
        place / "n",
        runtime="containerd",
        containerd_address=str(containerd.socket),
        containerd_root=str(containerd.root),
        adopt=True,
    )
    after = Pods(place / "after", containerd.socket, shim.socket)
    try:
        theirs = {name: containerd.pull(name) for name in (app, pause)}
        snapshots = looks(containerd.root / SNAPSHOTS)
        running, _ = before.begun(app, "sleep 100000")
        assert blobs_of_layers(containerd)
        registry.close()

        shim.environ["CRI_SHIM_FAILPOINTS"] = "image.recorded=kill@2"  # in the middle
        shim.start()
        assert shim.process.wait(60)
        del shim.environ["CRI_SHIM_FAILPOINTS"]
        assert (shim.root / "adoption").read_text() == "begun"
        shim.start()
        until(lambda: shim.status()["adoption"]["state"] == "done")
        assert shim.status()["adoption"]["left"] == []
        until(lambda: len(json.loads(shim.crictl("images", "-o", "json").stdout)["images"]) == 2)
        assert {name: shim.inspect(name)["status"]["id"] for name in theirs} == theirs
        until(lambda: not blobs_of_layers(containerd))
        # What the containers of before stand on is as it was, and lies once: their files are ours.
        now = looks(containerd.root / SNAPSHOTS)
        assert {path: now[path] for path in snapshots} == snapshots
        inodes = {look[0] for look in snapshots.values() if stat.S_ISREG(look[1]) and look[4]}
        assert inodes
        assert inodes <= {look[0] for look in looks(shim.root / "overlay").values()}
        assert before.execute(running, "cat", "/etc/motd") == "from the third layer"
        assert after.output(app) == SEEN
        assert after.image_ids() == {theirs[app]}

        # The way back, as docs/kubernetes.md has it.
        shim.stop()
        assert before.execute(running, "cat", "/etc/motd") == "from the third layer"
        assert before.output(app) == SEEN
        before.close()
        after.close()
        ours = containerd.ctr("images", "ls", "-q", f'labels."cri-shim.root"=="{shim.root}"').split()
        assert {app, pause, *theirs.values()} <= set(ours)
        containerd.ctr("images", "rm", "--sync", *ours)
        assert containerd.ctr("snapshots", "ls").splitlines()[1:] == []
        registry.start()
        assert crictl(containerd.socket, "pull", app).stdout.strip().endswith(theirs[app])
        containerd.pull(pause)
        assert before.output(app) == SEEN
    finally:
        before.close()
        if shim.process is not None and shim.process.poll() is None:
            shim.stop()
        containerd.close()
        registry.close()
