"""`cri-shim bundle`, `mount` and `umount`: runc starts what was pulled, and umoci makes the same of it."""

from __future__ import annotations

import json
import os
import sys

import pytest

from tests.real.mounts import merged
from tests.real.programs import run
from tests.real.runnable import LISTED, LISTING, bottom, pushed, stack
from tests.real.tars import times_open
from tests.real.trees import any_of, differences, except_fields, read_tree

pytestmark = pytest.mark.needs("root", "docker-registry", "skopeo", "umoci", "buildah", "runc", "crictl", "busybox")
FROM_CONFIG = ("args", "env", "cwd", "user")


@pytest.fixture
def cli(shim):
    def call(*words, check=True):
        return run(sys.executable, "-m", "cri_shim", *words, "--config", shim.base / "config.toml", check=check)

    return call


def unmount(directory):
    return run(sys.executable, "-m", "cri_shim", "umount", directory)


def start(place, bundle, command):
    """Run the container of *bundle* with *command*, without the network and the limits that this machine forbids."""
    path = bundle / "config.json"
    spec = json.loads(path.read_text())
    if command:
        spec["process"]["args"] = ["/bin/sh", "-c", command]
    path.write_text(json.dumps(spec))
    return run("runc", "--root", place / "runc", "run", "--bundle", bundle, f"c{os.getpid()}").stdout


def test_runc_starts_a_bundle(shim, registry, place, cli):
    pushed(place, registry, "bundle:1", stack())
    name = f"{registry.host}/bundle:1"
    shim.pull(name)
    before = read_tree(shim.layers(name)[-1])
    bundle = place / "b"
    cli("bundle", name, bundle)
    assert (
        start(place, bundle, f"{LISTING}; pwd; echo $WORD; id -u; touch /written")
        == f"{LISTED}/srv\nfrom the image\n0\n"
    )
    assert os.listdir(bundle / "upper") == ["written"]
    assert read_tree(shim.layers(name)[-1]) == before
    assert "not empty" in cli("bundle", name, bundle, check=False).stderr
    unmount(bundle)
    assert list(bundle.iterdir()) == []


def test_a_bundle_asks_for_what_umocis_asks_for(shim, registry, place, cli):
    layout = place / "layout"
    run("umoci", "init", "--layout", layout)
    image = f"{layout}:1"
    run("umoci", "new", "--image", image)
    run("umoci", "raw", "add-layer", "--image", image, bottom().write(place / "0.tar"))
    run("umoci", "config", "--image", image, "--config.user", "app", "--config.cmd", "cat", "--config.cmd", "/etc/passwd",
        "--config.entrypoint", "/bin/env", "--config.env", "A=b c", "--config.workingdir", "/srv")  # fmt: skip
    registry.push(layout, "1", "asks:1")
    name = f"{registry.host}/asks:1"
    shim.pull(name)
    cli("bundle", name, place / "ours")
    run("umoci", "unpack", "--image", image, place / "theirs")
    ours, theirs = (json.loads((place / who / "config.json").read_text())["process"] for who in ("ours", "theirs"))
    theirs["env"] = [one for one in theirs["env"] if not one.startswith("TERM=")]
    assert {key: sorted(ours[key]) if key == "env" else ours[key] for key in FROM_CONFIG} == {
        key: sorted(theirs[key]) if key == "env" else theirs[key] for key in FROM_CONFIG
    }
    assert ours["user"] == {"uid": 12, "gid": 34, "additionalGids": [56]}
    assert "root:x:0:0" in start(place, place / "ours", "")
    unmount(place / "ours")


@pytest.mark.parametrize("tag", ["many", "one"])
def test_a_mount_shows_what_umoci_unpacks(shim, registry, stacks, place, cli, tag):
    name = f"{registry.host}/stack/{tag}:1"
    shim.pull(name)
    cli("mount", name, place / "ours")
    try:
        with merged(shim.layers(name), place / "check") as check:
            assert read_tree(place / "ours") == read_tree(check)
        run("umoci", "unpack", "--image", f"{stacks[tag].layout}:{tag}", place / "theirs")
        # umoci makes directories without an entry as it likes, and tells times by the second.
        free = times_open(stacks[tag].layers) | {b""}
        implied = frozenset().union(*(layer.implied for layer in stacks[tag].layers))
        excepted = any_of(
            except_fields("links"),
            except_fields("mtime_ns", at=frozenset(free)),
            except_fields("mode", "uid", "gid", "xattrs", "mtime_ns", at=implied),
        )
        left, right = read_tree(place / "ours"), read_tree(place / "theirs/rootfs")
        assert differences(left, right, excepted) == []
        assert "Read-only" in run("touch", place / "ours/new", check=False).stderr
    finally:
        unmount(place / "ours")
    assert list((place / "ours").iterdir()) == []


def test_an_image_that_is_mounted_keeps_its_layers_when_it_is_removed(shim, registry, place, cli):
    pushed(place, registry, "mounted:1", (bottom(),))
    name = f"{registry.host}/mounted:1"
    shim.pull(name)
    (layer,) = shim.layers(name)
    cli("mount", name, place / "m")
    shim.crictl("rmi", name)
    assert (place / "m/etc/passwd").read_text().startswith("root")
    assert "is not here" in cli("mount", name, place / "n", check=False).stderr
    unmount(place / "m")
    assert layer.is_dir()  # it is looked at again after a while
    assert "nothing is mounted" in run(sys.executable, "-m", "cri_shim", "umount", place / "m", check=False).stderr
