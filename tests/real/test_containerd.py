"""Pods of containerd (Debian's 1.6 and a current one) from images that cri-shim pulled, with the registry stopped.

containerd is as it comes: stock snapshotter, no registry it could reach. crictl has it as runtime endpoint and our
socket as image endpoint.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from tests.real.peers import Containerd
from tests.real.pods import LOOK_AROUND, SEEN, Pods, app_layers, busybox_layer, write_app
from tests.real.programs import cache_dir
from tests.real.registry import DockerRegistry
from tests.real.shim import Shim, crictl
from tests.real.spoiled import CHANGED, DAMAGED, check, flipped
from tests.real.tars import LayerTar

pytestmark = pytest.mark.needs("root", "docker-registry", "skopeo", "containerd", "ctr", "runc", "crictl", "busybox")
LOOKS = 2400
DEEP = 120


def programs_of(which: str) -> Path | None:
    """Where that containerd's programs are; None for those of the machine."""
    if which == "debian":
        return None
    found = cache_dir() / "containerd-current"
    assert (found / "containerd").exists(), "tests/real/install builds it"
    return found


def until(condition):
    """Wait for something that another process does in its own time."""
    for _ in range(LOOKS):
        if found := condition():
            return found
        threading.Event().wait(0.05)
    raise AssertionError("it did not happen")


@pytest.fixture(scope="module")
def layouts(work):
    """OCI layouts: `app` in two versions, `pause`, and one of 120 layers."""
    base = work / "apps"
    base.mkdir()
    newer = (*app_layers(), LayerTar().directory("etc").file("etc/motd", b"from the fourth layer\n"))
    deep = [LayerTar().file(f"layer{number:03}", b"%d" % number) for number in range(DEEP - 1)]
    return {
        "app": write_app(base, "app", app_layers(), ["sh"], indexed=True),
        "newer": write_app(base, "newer", newer, ["sh"]),
        "deep": write_app(base, "deep", (busybox_layer(), *deep), ["sh"]),
        "pause": write_app(base, "pause", (busybox_layer(),), ["sleep", "100000"]),
    }


class World:
    """A registry, a containerd, a cri-shim that gives it images, and pods; `app:1` and `pause:1` are pulled."""

    def __init__(self, base: Path, which: str, layouts: dict[str, Path]) -> None:
        base.mkdir()
        self.layouts = layouts
        self.registry = DockerRegistry(base / "reg")
        self.app, self.pause = (f"{self.registry.host}/{name}:1" for name in ("app", "pause"))
        self.push("app", "app:1")
        self.push("pause", "pause:1")
        self.containerd = Containerd(base / "c", programs=programs_of(which), sandbox=self.pause)
        self.shim = Shim(
            base / "n",
            runtime="containerd",
            containerd_address=str(self.containerd.socket),
            containerd_root=str(self.containerd.root),
        )
        self.shim.trust(self.registry.host)
        self.shim.environ = {"CRI_SHIM_PREPULL_SANDBOX": self.pause}
        self.shim.start()
        self.pods = Pods(base / "p", self.containerd.socket, self.shim.socket)
        self.id = self.shim.pull(self.app)
        until(lambda: self.shim.status()["prepull"][0]["state"] == "here")

    def push(self, tag: str, name: str) -> None:
        self.registry.push(self.layouts[tag], tag, name)

    def records(self) -> set[str]:
        return set(self.containerd.ctr("images", "ls", "-q").split())

    def documents(self) -> set[str]:
        """What its content store has."""
        return set(self.containerd.ctr("content", "ls", "-q").split())

    def snapshots(self) -> dict[str, str]:
        """containerd's snapshots and their kinds."""
        rows = [line.split() for line in self.containerd.ctr("snapshots", "ls").splitlines()[1:]]
        return {row[0]: row[-1] for row in rows if row}

    def published(self) -> dict:
        return self.shim.status()["published"]["containerd"]

    def connected(self) -> bool:
        return self.published()["state"] == "connected"

    def close(self) -> None:
        self.pods.close()
        for part in (self.shim, self.containerd, self.registry):
            (part.close if part is not self.shim else part.stop)()


@pytest.fixture(scope="module", params=["debian", "current"])
def world(request, work, layouts):
    """One for all tests that leave it as they found it; its registry is stopped."""
    made = World(work / f"w-{request.param}", request.param, layouts)
    made.registry.close()
    yield made
    made.close()


@pytest.fixture(params=["debian", "current"])
def fresh(request, place, layouts):
    made = World(place / "w", request.param, layouts)
    yield made
    made.close()


def test_the_sandbox_image_came_by_itself_and_is_pinned(world):
    assert [row["name"] for row in world.shim.status()["prepull"]] == [world.pause]
    assert world.shim.inspect(world.pause)["status"]["pinned"]
    assert not world.shim.inspect(world.app)["status"]["pinned"]


def names_of(world):
    listed = json.loads(world.shim.crictl("inspecti", "-o", "json", world.app).stdout)["status"]
    return {"tag": world.app, "digest": listed["repoDigests"][0], "id": world.id, "hex": world.id.split(":")[1]}


@pytest.mark.parametrize("form", ["tag", "digest", "id", "hex"])
def test_a_container_by(world, form):
    assert world.pods.output(names_of(world)[form]) == SEEN


def test_containerd_asked_no_registry_and_keeps_no_layer(world):
    agents = world.registry.log.read_text()
    assert "cri-shim" in agents
    assert "containerd/" not in agents
    kept = {line.split()[0] for line in world.containerd.ctr("content", "ls", "-q").splitlines()}
    manifests = {digest for digest in kept if "layers" in json.loads(world.containerd.ctr("content", "get", digest))}
    assert len(kept) == 5  # two manifests, two configs, an index; nothing of the other machine's image
    assert len(manifests) == 2


def test_files_are_on_the_disk_once(world):
    layers = world.shim.layers(world.app)
    busybox = layers[0] / "bin/busybox"
    inode = busybox.stat().st_ino
    snapshots = world.containerd.root / "io.containerd.snapshotter.v1.overlayfs/snapshots"
    assert inode in {path.stat().st_ino for path in snapshots.glob("*/fs/bin/busybox")}
    assert (world.published()["files"], world.published()["copies"]) == ("link", 0)


def test_ids_of_containers_are_ids_of_images(world):
    world.pods.output(world.app)
    used = world.pods.image_ids()
    listed = {image["id"] for image in json.loads(world.pods.crictl("images", "-o", "json").stdout)["images"]}
    assert used
    assert used <= listed
    assert used == {world.id}


def test_crictl_with_both_endpoints(world):
    told = world.pods.config.read_text()
    assert str(world.containerd.socket) in told
    assert str(world.shim.socket) in told
    assert world.id.split(":")[1][:13] in world.pods.crictl("images").stdout
    assert json.loads(world.pods.crictl("imagefsinfo", "-o", "json").stdout)
    assert world.pods.crictl("info").stdout


def test_removed_through_containerd_it_is_there_again(world):
    world.containerd.ctr("images", "rm", "--sync", *world.records())
    assert world.records() == set()
    assert until(lambda: world.shim.crictl("inspecti", world.app) and world.id in world.records())
    until(lambda: world.shim.crictl("inspecti", world.pause) and world.pause in world.records())
    assert world.pods.output(world.app) == SEEN
    for document in (world.id, world.shim.inspect(world.app)["info"]["manifest"]):
        world.containerd.ctr("content", "rm", document)
        until(lambda gone=document: world.shim.crictl("inspecti", world.app) and gone in world.documents())
    assert world.pods.output(world.app) == SEEN


def test_containerd_restarted_without_us(world):
    world.shim.stop()
    world.containerd.close()
    world.containerd.start()
    try:
        assert world.app in crictl(world.containerd.socket, "images", "-o", "json").stdout
        alone = world.pods.without_images()
        assert alone.output(world.id) == SEEN
        alone.close()
    finally:
        world.shim.start()


def test_we_restarted_without_containerd(world):
    world.shim.stop()
    world.containerd.close()
    world.shim.start()
    try:
        assert world.id in world.shim.crictl("images", "-q", "--no-trunc").stdout
        assert world.shim.inspect(world.app)["status"]["id"] == world.id
        assert world.published()["state"] == "waiting"
    finally:
        world.containerd.start()
    until(world.connected)
    assert world.pods.output(world.app) == SEEN


def test_containerd_killed_while_a_container_runs(world):
    container, _ = world.pods.begun(world.app, "sleep 100000")
    world.containerd.kill()
    world.containerd.start()
    until(world.connected)
    assert world.pods.execute(container, "cat", "/etc/motd") == "from the third layer"
    assert world.pods.output(world.app) == SEEN


def test_we_killed_while_a_container_runs(world):
    container, _ = world.pods.begun(world.app, "sleep 100000")
    world.shim.kill()
    assert world.pods.without_images().execute(container, "cat", "/etc/motd") == "from the third layer"
    world.shim.start()
    until(world.connected)
    assert world.pods.output(world.app) == SEEN


def test_a_removal_frees_the_disk_and_containerds_records(fresh):
    before = fresh.snapshots()
    fresh.push("newer", "newer:1")
    fresh.shim.pull(f"{fresh.registry.host}/newer:1")
    more = set(fresh.snapshots()) - set(before)
    assert len(more) == 1  # three of its four layers were there
    fresh.shim.crictl("rmi", f"{fresh.registry.host}/newer:1")
    assert fresh.snapshots() == before
    fresh.shim.crictl("rmi", fresh.app)
    fresh.shim.crictl("rmi", fresh.pause)
    assert fresh.records() == set()
    assert fresh.snapshots() == {}
    snapshots = fresh.containerd.root / "io.containerd.snapshotter.v1.overlayfs/snapshots"
    until(lambda: os.listdir(snapshots) == [])


def test_removed_while_it_runs_it_goes_on(fresh):
    container, _ = fresh.pods.begun(fresh.app, "sleep 100000")
    fresh.shim.crictl("rmi", fresh.app)
    assert fresh.app not in fresh.records()
    assert fresh.pods.execute(container, "cat", "/etc/motd") == "from the third layer"
    assert fresh.pods.execute(container, "/bin/busybox", "echo", "here") == "here"
    assert fresh.shim.pull(fresh.app) == fresh.id
    assert fresh.pods.output(fresh.app) == SEEN


def test_a_tag_that_moves_while_its_image_runs(fresh):
    container, _ = fresh.pods.begun(fresh.app, "sleep 100000")
    fresh.push("newer", "app:1")
    newer = fresh.shim.pull(fresh.app)
    fresh.registry.close()
    assert newer != fresh.id
    assert fresh.pods.execute(container, "cat", "/etc/motd") == "from the third layer"
    assert fresh.pods.output(fresh.app, "cat /etc/motd") == "from the fourth layer\n"
    assert fresh.pods.output(fresh.id, "cat /etc/motd") == "from the third layer\n"
    assert fresh.pods.image_ids() == {newer, fresh.id}
    fresh.registry.start()


def test_killed_in_the_middle_nothing_half_is_seen_and_the_next_start_cleans_up(fresh):
    fresh.shim.crictl("rmi", fresh.app)
    before = (fresh.records(), {key for key, kind in fresh.snapshots().items() if kind == "Committed"})
    fresh.shim.stop()
    fresh.shim.environ["CRI_SHIM_FAILPOINTS"] = "graft.syncfs=kill@2"
    fresh.shim.start()
    assert fresh.shim.crictl("pull", fresh.app, check=False).returncode
    fresh.shim.process.wait()
    assert fresh.records() == before[0]
    assert "Active" in fresh.snapshots().values()
    del fresh.shim.environ["CRI_SHIM_FAILPOINTS"]
    fresh.shim.start()
    until(lambda: fresh.id in fresh.records())  # its bytes were here: it is given without another pull
    until(lambda: "Active" not in fresh.snapshots().values())
    assert fresh.containerd.ctr("leases", "ls", "-q").split() == []
    fresh.registry.close()
    assert fresh.pods.output(fresh.app) == SEEN
    fresh.registry.start()


@pytest.mark.parametrize("fresh", ["current"], indirect=True)
def test_an_image_of_120_layers(fresh):
    fresh.push("deep", "deep:1")
    fresh.shim.pull(f"{fresh.registry.host}/deep:1")
    fresh.registry.close()
    said = fresh.pods.output(f"{fresh.registry.host}/deep:1", "cat /layer000 /layer118")
    assert said == "0118\n"
    fresh.registry.start()


def test_damage_that_is_shared_with_containerd_is_repaired_there_too(fresh):
    """The file has one inode here and there. The sandbox, of an image that shares a layer, runs meanwhile."""
    pod = fresh.pods.pod()
    layer = fresh.shim.layers(fresh.app)[-1]
    flipped(layer / "etc/motd")
    code, said = check(fresh.shim, "--full")
    assert (code, f'"etc/motd": {CHANGED}' in said) == (DAMAGED, True), said
    assert fresh.shim.crictl("inspecti", fresh.app, check=False).returncode != 0
    code, said = check(fresh.shim, "--full", "--repair")
    assert code == 0, said
    assert fresh.pods.output(fresh.app, LOOK_AROUND, pod) == SEEN
    snapshots = fresh.containerd.root / "io.containerd.snapshotter.v1.overlayfs/snapshots"
    inode = (layer / "etc/motd").stat().st_ino
    until(lambda: inode in {path.stat().st_ino for path in snapshots.glob("*/fs/etc/motd")})
    assert check(fresh.shim, "--full")[0] == 0
