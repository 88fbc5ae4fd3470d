"""Pods on CRI-O, from images that it never fetched: crictl with both endpoints, as kubelet has them.

The registry is stopped before a pod starts. CRI-O itself has no image: the pause image is ours as well.
"""

from __future__ import annotations

import json

import pytest

from tests.real.crio import Crio
from tests.real.pods import Pods
from tests.real.registry import DockerRegistry
from tests.real.runnable import LISTED, LISTING, bottom, deep, pushed, stack, top
from tests.real.shim import Shim

pytestmark = pytest.mark.needs(
    "root", "docker-registry", "skopeo", "crictl", "crio", "pinns", "conmon", "runc", "busybox"
)

# The first process of a pod hears no signal that it does not ask for.
PAUSE = ("/bin/sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait")


@pytest.fixture
def own(place):
    running = DockerRegistry(place / "reg")
    yield running
    running.close()


@pytest.fixture
def node(place, own):
    """The daemon, CRI-O on its store, and pods; the pause image is here, and no registry is needed for it any more."""
    crio = Crio(place / "c", place / "n/root", f"{own.host}/pause:1")
    shim = Shim(place / "n", runtime="cri-o", containers_storage_roots=[str(crio.root)])
    pods = Pods(place / "pods", crio.socket, shim.socket)
    shim.trust(own.host)
    pushed(place, own, "pause:1", (bottom(), top("pause")), command=PAUSE)
    shim.start()
    try:
        shim.pull(f"{own.host}/pause:1")
        crio.start()
        yield shim, crio, pods
    finally:
        pods.close()
        crio.close()
        shim.stop()


def listing(pods: Pods, container: str) -> str:
    """What the container says about itself; crictl ends it with lines of its own."""
    return pods.execute(container, "sh", "-c", LISTING).rstrip() + "\n"


def test_pods_start_by_tag_id_and_digest_while_the_registry_is_stopped(node, own, place):
    shim, crio, pods = node
    target = pushed(place, own, "app:1", stack(), index=True)
    name = f"{own.host}/app:1"
    image_id = shim.pull(name)
    manifest = shim.inspect(name)["info"]["manifest"]
    own.close()
    pod, pods.written = pods.pod(), name
    for text in (name, image_id, f"{own.host}/app@{target}", f"{own.host}/app@{manifest}"):
        assert pods.output(text, LISTING, pod) == LISTED, text
    assert crio.own_images() == []
    # What kubelet's collection of images stands on: the ids of containers are ids of images, letter for letter.
    listed = {image["id"] for image in json.loads(pods.crictl("images", "-o", "json").stdout)["images"]}
    assert pods.image_ids() == {image_id} <= listed == crio.images()


def test_an_image_of_very_many_layers(node, own, place):
    shim, _, pods = node
    pushed(place, own, "deep:1", deep(80))
    pods.written = f"{own.host}/deep:1"
    image_id = shim.pull(pods.written)
    own.close()
    assert len(json.loads((shim.root / "overlay-layers/layers.json").read_text())) > 80
    assert pods.output(image_id, "ls /srv") == "79\n"


def test_removal_and_a_moved_tag_leave_a_running_pod_alone(node, own, place):
    shim, crio, pods = node
    name = f"{own.host}/app:1"
    pushed(place, own, "app:1", stack())
    first, pods.written = shim.pull(name), name
    container, _ = pods.begun(first, "sleep 1000")
    pushed(place, own, "app:1", stack("moved"))
    second = shim.pull(name)
    assert second != first
    assert pods.output(name, "cat /etc/word") == "moved\n"
    pods.crictl("rmi", first)
    assert listing(pods, container) == LISTED
    assert first not in shim.crictl("images", "-o", "json").stdout
    crio.kill()
    crio.start()  # its check finds the parent of the container, which has no name any more
    assert listing(pods, container) == LISTED
    pods.crictl("stop", "--timeout", "0", container)
    pods.crictl("rm", container)
    again = shim.pull(name)
    assert again == second
    assert pods.output(second, "cat /etc/word") == "moved\n"


def test_either_side_may_be_killed(node, own, place):
    shim, crio, pods = node
    name = f"{own.host}/app:1"
    pushed(place, own, "app:1", stack())
    image_id, pods.written = shim.pull(name), name
    own.close()
    container, _ = pods.begun(image_id, "sleep 1000")
    shim.kill()
    alone = Pods(place / "alone", crio.socket, crio.socket)  # crictl asks both endpoints whatever it is to do
    assert listing(alone, container) == LISTED
    crio.kill()
    crio.start()
    assert listing(alone, container) == LISTED
    assert image_id in crio.images()
    shim.start()
    assert pods.output(image_id, LISTING) == LISTED
    assert pods.output(name, LISTING) == LISTED
