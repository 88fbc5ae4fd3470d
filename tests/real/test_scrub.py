"""A disk that forgets, under a container that runs: what is damaged is found and repaired, and the container goes on.

The container is of another image, which shares most of its layers with the damaged one.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tests.real.podman import RUN_OPTIONS, Podman
from tests.real.registry import DockerRegistry
from tests.real.runnable import LISTED, LISTING, pushed, stack
from tests.real.shim import Shim
from tests.real.spoiled import CHANGED, DAMAGED, check, flipped

pytestmark = pytest.mark.needs("root", "docker-registry", "skopeo", "podman", "runc", "conmon", "crictl", "busybox")

KEPT_LISTED = LISTED.replace("hello", "kept", 1)


@pytest.fixture
def own(place):
    running = DockerRegistry(place / "reg")
    yield running
    running.close()


@pytest.fixture
def node(place, own):
    """A daemon with two images that differ in their top layer, and a container of the second one that runs."""
    podman = Podman(place / "p", place / "n/root")
    shim = Shim(place / "n", publish=["containers-storage"], containers_storage_roots=[str(podman.root)])
    shim.trust(own.host)
    shim.start()
    for name, word in (("app", "hello"), ("kept", "kept")):
        pushed(place, own, f"{name}:1", stack(word))
        shim.pull(f"{own.host}/{name}:1")
    podman("run", "--detach", "--name", "kept", *RUN_OPTIONS, f"{own.host}/kept:1", "sleep", "1000")
    yield shim, podman, f"{own.host}/app:1"
    podman("rm", "--all", "--force", "--time", "0", check=False)
    shim.stop()


def documents(shim):
    return sorted(path for path in (shim.root / "blobs/sha256").iterdir() if len(path.name) == 64)


def listing(podman):
    return podman("exec", "kept", "sh", "-c", LISTING).stdout


DAMAGES = {
    "a byte flipped": lambda _, layer: flipped(layer / "etc/word"),
    "a file emptied": lambda _, layer: os.truncate(layer / "etc/word", 0),
    "a blob gone": lambda shim, _: [path.unlink() for path in documents(shim)],
    "a directory gone": lambda _, layer: shutil.rmtree(layer.parent),
}


def test_what_is_damaged_is_found_and_repaired_while_another_container_runs(node):
    shim, podman, name = node
    assert check(shim, "--full")[0] == 0
    layer = shim.layers(name)[-1]
    for damage, spoil in DAMAGES.items():
        spoil(shim, layer)
        code, said = check(shim, "--full")
        assert (code, name in said) == (DAMAGED, True), (damage, said)
        assert shim.crictl("inspecti", name, check=False).returncode != 0, damage
        assert listing(podman) == KEPT_LISTED, damage
        code, said = check(shim, "--full", "--repair")
        assert code == 0, (damage, said)
        assert "repaired" in said, damage
        assert listing(podman) == KEPT_LISTED, damage
        assert podman.run(name, "sh", "-c", LISTING) == LISTED, damage
        assert check(shim, "--full")[0] == 0, damage
    assert podman("inspect", "--format", "{{.State.Running}}", "kept").stdout.strip() == "true"
    status = shim.status()["check"]
    assert (status["damages_found"] >= len(DAMAGES), status["damaged_layers"]) == (True, 0)


def test_the_next_pull_repairs(node):
    shim, podman, name = node
    flipped(shim.layers(name)[-1] / "etc/word")
    assert check(shim, "--full")[0] == DAMAGED
    shim.stop()
    shim.start()  # it is not forgotten
    assert shim.crictl("inspecti", name, check=False).returncode != 0
    shim.pull(name)
    assert podman.run(name, "cat", "/etc/word") == "hello\n"
    assert listing(podman) == KEPT_LISTED
    assert check(shim, "--full")[0] == 0


def test_a_layer_that_is_mounted_stays_as_it_is_until_nobody_has_it(node):
    shim, podman, name = node
    bottom = shim.layers(name)[0]
    whole = (bottom / "etc/group").read_bytes()
    flipped(bottom / "etc/group")
    code, said = check(shim, "--full", "--repair")
    assert code == 0, said
    assert (bottom / "etc/group").read_bytes() == whole
    assert podman.run(name, "cat", "/etc/group").encode() == whole

    def aside():
        return [entry for entry in os.listdir(shim.root / "overlay") if entry.startswith("damaged.")]

    assert len(aside()) == 1
    assert podman("exec", "kept", "cat", "/etc/group").stdout.encode() != whole  # nothing changed under it
    assert listing(podman) == KEPT_LISTED
    shim.stop()
    shim.start()
    assert listing(podman) == KEPT_LISTED
    podman("rm", "--force", "--time", "0", "kept")
    assert check(shim, "--quick")[0] == 0
    assert aside() == []


def test_without_a_daemon(node):
    shim, podman, name = node
    word = shim.layers(name)[-1] / "etc/word"
    shim.stop()
    assert check(shim, "--full")[0] == 0
    flipped(word)
    assert check(shim)[0] == 0
    code, said = check(shim, "--full")
    assert code == DAMAGED
    assert f'"etc/word": {CHANGED}' in said
    code, said = check(shim, "--full", "--repair")
    assert code == 0, said
    assert word.read_bytes() == b"hello\n"
    assert listing(podman) == KEPT_LISTED
    shim.start()
    assert podman.run(name, "sh", "-c", LISTING) == LISTED


@pytest.mark.needs("debootstrap", "umoci", "buildah", "tar")
def test_nothing_is_said_of_images_as_others_make_them(shim, registry, stacks, debian):
    """Forms of every kind, whiteouts, links through links, a whole Debian: whole is what they are called."""
    registry.push(debian.layout, debian.tag, "whole/debian:12")
    names = [f"{registry.host}/stack/{tag}:1" for tag in stacks]
    for name in (*names, f"{registry.host}/whole/debian:12"):
        shim.pull(name)
    forms = {layer["form"] for layer in seals(shim)}
    assert {"plain", "bottom", "chain", "again"} <= forms
    for depth in ("--quick", "--full"):
        code, said = check(shim, depth)
        print(said)
        assert code == 0, said
        assert said.rstrip().endswith("all is whole"), said


def seals(shim):
    return [json.loads(path.read_text()) for path in (shim.root / "overlay").glob("*/layer.json")]
