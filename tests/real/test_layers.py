"""Images of many layers, against Debian's containerd: every layer directory, and what a container would see.

What may differ: the time of a directory that no entry of its layer sets, the time of a layer's root (containerd leaves
it as it comes) and of a whiteout (nobody sees it), and link counts, since a form of a layer shares files with the plain one. Which paths are one file is compared instead.
"""

from __future__ import annotations

import pytest

from tests.real.mounts import merged
from tests.real.samples import STACKS
from tests.real.tars import times_open
from tests.real.trees import WHITEOUT, any_of, differences, except_fields, read_tree

pytestmark = pytest.mark.needs("root", "docker-registry", "skopeo", "umoci", "buildah", "containerd", "ctr", "crictl")
LINKS = except_fields("links")


def times_at(paths):
    return except_fields("mtime_ns", at=frozenset(paths))


def pulled_by_both(shim, containerd, registry, tag):
    name = f"{registry.host}/stack/{tag}:1"
    assert shim.pull(name) == containerd.pull(name)
    return name


@pytest.mark.parametrize("tag", [*STACKS, "built"])
def test_merged_view_equals_containerds(shim, containerd, registry, stacks, place, tag):
    name = pulled_by_both(shim, containerd, registry, tag)
    with merged(shim.layers(name), place / "ours") as ours, containerd.mounted(name, place / "theirs") as theirs:
        excepted = any_of(LINKS, times_at(times_open(stacks[tag].layers) | {b""}))
        assert differences(read_tree(ours), read_tree(theirs), excepted) == []


@pytest.mark.parametrize("tag", [*STACKS, "built"])
def test_every_layer_directory_equals_containerds_snapshot(shim, containerd, registry, stacks, place, tag):
    name = pulled_by_both(shim, containerd, registry, tag)
    ours, theirs = shim.layers(name), containerd.layers(name, place / "theirs")
    assert len(ours) == len(theirs)
    written = stacks[tag].layers or [None] * len(ours)
    for position, (one, other, layer) in enumerate(zip(ours, theirs, written, strict=True)):
        left, right = read_tree(one), read_tree(other)
        whiteouts = {path for path, entry in left.items() if entry.kind == WHITEOUT}
        excepted = any_of(LINKS, times_at(whiteouts | {b""} | (layer.implied if layer else frozenset())))
        assert [f"layer {position}: {line}" for line in differences(left, right, excepted)] == []


def test_the_same_layer_twice_has_two_directories(shim, registry, stacks):
    name = f"{registry.host}/stack/many:1"
    shim.pull(name)
    layers = shim.inspect(name)["info"]["layers"]
    assert layers[3]["diffID"] == layers[5]["diffID"]
    assert len({layer["directory"] for layer in layers}) == len(layers)


def test_a_layer_is_kept_once_for_all_images(shim, registry, stacks):
    before = registry.blob_gets()
    for tag in ("many", "ghost-below", "change-below"):
        shim.pull(f"{registry.host}/stack/{tag}:1")
    # The same layer in three repositories of one registry: fetched for the first, allowed for the others.
    fetched = registry.blob_gets() - before
    layers = {
        layer["digest"]
        for tag in ("many", "ghost-below", "change-below")
        for layer in shim.inspect(f"{registry.host}/stack/{tag}:1")["info"]["layers"]
    }
    assert {digest: fetched[digest] for digest in layers} == dict.fromkeys(layers, 1)


def test_a_bottom_layer_shows_no_whiteouts(shim, registry, stacks, place):
    name = f"{registry.host}/stack/ghost-below:1"
    shim.pull(name)
    bottom = read_tree(shim.layers(name)[0])
    assert [path for path, entry in bottom.items() if entry.kind == WHITEOUT] == []
    with merged(shim.layers(name), place / "m") as ours:
        assert [path for path, entry in read_tree(ours).items() if entry.kind == WHITEOUT] == []
