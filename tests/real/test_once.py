"""Each byte once: pulls side by side, and what a restart keeps. The registry's own log is the witness."""

from __future__ import annotations

import json
import subprocess
from collections import Counter

import pytest

from tests.real.trees import differences, read_tree

pytestmark = pytest.mark.needs("root", "debootstrap", "docker-registry", "skopeo", "umoci", "buildah", "crictl")


def blobs_of(registry, name):
    manifest = registry.manifest(name)
    return {layer["digest"] for layer in manifest["layers"]} | {manifest["config"]["digest"]}


def pull_at_once(shim, names):
    """Run one crictl for each name at the same time; return their exit codes and what they printed."""
    shim.crictl("version")  # writes the configuration that all of them read
    config = shim.socket.parent / "crictl.yaml"
    running = [
        subprocess.Popen(
            ["crictl", "--config", str(config), "pull", name],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name in names
    ]  # fmt: skip
    return [(process.communicate(timeout=300)[0], process.returncode) for process in running]


@pytest.mark.parametrize("name", ["debian/slim:12", "stack/many:1"])
def test_ten_pulls_of_one_image_fetch_each_blob_once(shim, registry, debian, stacks, name):
    if name.startswith("debian"):
        registry.push(debian.layout, debian.tag, name)
    before = registry.blob_gets()
    answers = pull_at_once(shim, [f"{registry.host}/{name}"] * 10)
    assert {code for _, code in answers} == {0}, answers
    assert len({said for said, _ in answers}) == 1
    assert registry.blob_gets() - before == Counter(blobs_of(registry, name))


def test_pulls_of_images_that_share_layers_fetch_each_blob_once(shim, registry, stacks):
    names = ["stack/many:1", "stack/ghost-below:1", "stack/change-below:1", "stack/through-link:1", "stack/one:1"]
    before = registry.blob_gets()
    answers = pull_at_once(shim, [f"{registry.host}/{name}" for name in names * 2])
    assert {code for _, code in answers} == {0}, answers
    wanted = set().union(*(blobs_of(registry, name) for name in names))
    assert registry.blob_gets() - before == Counter(wanted)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_restart_keeps_images_and_fetches_nothing(shim, registry, stacks, end):
    name = f"{registry.host}/stack/many:1"
    reference = shim.pull(name)
    page, trees = shim.inspect(name), [read_tree(path) for path in shim.layers(name)]
    getattr(shim, end)()
    shim.start()
    before = registry.lines()
    assert [image["id"] for image in images(shim)] == [reference]
    assert shim.inspect(name) == page
    assert registry.lines() == before
    assert shim.pull(name) == reference
    assert not any("/blobs/" in line.path for line in registry.lines()[len(before) :])
    for path, tree in zip(shim.layers(name), trees, strict=True):
        assert differences(read_tree(path), tree) == []


def test_sigterm_ends_with_zero_and_removes_the_socket(shim):
    assert shim.stop() == 0
    assert not shim.socket.exists()


def images(shim):
    return json.loads(shim.crictl("images", "-o", "json").stdout)["images"]
