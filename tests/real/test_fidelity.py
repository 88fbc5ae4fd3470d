"""Real images against containerd: each layer's directory path by path, and what a container would see.

What may differ: the time of a directory that no entry of its layer sets and of a layer's root, the time of a whiteout,
and link counts, since a form of a layer shares files with the plain one. Which paths are one file is compared instead.
"""

from __future__ import annotations

import gzip
import os
import tarfile

import pytest

from tests.real.mounts import merged
from tests.real.trees import WHITEOUT, any_of, differences, except_fields, read_tree
from tests.real.wholes import WHOLES, whole

pytestmark = pytest.mark.needs(
    "root", "debootstrap", "docker-registry", "skopeo", "umoci", "buildah", "containerd", "ctr", "crictl", "tar", "npm", "go",
    "busybox", "setcap", "dpkg-deb",
)  # fmt: skip
LINKS = except_fields("links")
LEAST = {
    "debian-with-python": 7000,
    "node-modules": 700,
    "go-toolchain": 4000,
    "busybox": 200,
    "capabilities-and-devices": 10,
}
"""How many paths an image must have to be what it is called."""


@pytest.fixture(scope="module", params=WHOLES)
def pushed(request, registry):
    image = whole(request.param)
    form = ("--format", "v2s2") if request.param == "busybox" else ()
    registry.push(image.layout, image.tag, f"whole/{request.param}:1", *form)
    return request.param


def times_at(paths):
    return except_fields("mtime_ns", at=frozenset(paths))


def implied_in(blob):
    """The directories above a layer's entries that have none of their own, read by Python's tarfile.

    umoci writes whiteouts below a name that became a link in the same layer: they lead to where the link does.
    """
    with gzip.open(blob) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
        members = {as_path(member.name): as_path(member.linkname) if member.issym() else None for member in tar}
    above = {name.rpartition(b"/")[0] for name in members}
    above |= {
        os.path.normpath(os.path.join(os.path.dirname(name), members[name])) for name in above if members.get(name)
    }
    while more := {name.rpartition(b"/")[0] for name in above} - above:
        above |= more
    return above - members.keys() | {b""}


def as_path(name):
    return name.removeprefix("./").strip("/").encode("utf-8", "surrogateescape")


def test_every_layer_and_the_merged_view_equal_containerds(shim, containerd, registry, place, pushed):
    name = f"{registry.host}/whole/{pushed}:1"
    assert shim.pull(name) == containerd.pull(name)
    ours, theirs = shim.layers(name), containerd.layers(name, place / "layers")
    blobs = [registry.blob_file(layer["digest"]) for layer in registry.manifest(f"whole/{pushed}:1")["layers"]]
    assert len(ours) == len(theirs) == len(blobs)
    implied = [implied_in(blob) for blob in blobs]
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        left, right = read_tree(one), read_tree(other)
        whiteouts = {path for path, entry in left.items() if entry.kind == WHITEOUT}
        excepted = any_of(LINKS, times_at(whiteouts | implied[number]))
        assert [f"layer {number}: {line}" for line in differences(left, right, excepted)] == []
    with merged(ours, place / "ours") as mine, containerd.mounted(name, place / "theirs") as its:
        seen = read_tree(mine)
        assert differences(seen, read_tree(its), any_of(LINKS, times_at(set().union(*implied)))) == []
    assert len(seen) >= LEAST[pushed]
