"""A whole Debian, pulled with crictl, against what umoci unpacks."""

from __future__ import annotations

import json

import pytest

from tests.real.mounts import merged
from tests.real.programs import run
from tests.real.registry import DockerRegistry
from tests.real.trees import differences, except_fields, read_tree

pytestmark = pytest.mark.needs("root", "debootstrap", "docker-registry", "skopeo", "umoci", "crictl", "tar")


@pytest.fixture(scope="module")
def unpacked(work, debian):
    """The tree that umoci makes of the image."""
    bundle = work / "bundle"
    run("umoci", "unpack", "--image", f"{debian.layout}:{debian.tag}", bundle)
    return read_tree(bundle / "rootfs")


@pytest.fixture(params=["gzip", "zstd"])
def pushed(place, request, debian):
    """A registry of its own for each compression: skopeo remembers what a registry has and would push that again."""
    running = DockerRegistry(place / "reg")
    # Only what is not compressed yet gets the compression that is asked for.
    running.push(debian.layout, debian.tag, "debian/slim:12", "--dest-compress-format", request.param)
    media_type = running.manifest("debian/slim:12")["layers"][0]["mediaType"]
    assert media_type == f"application/vnd.oci.image.layer.v1.tar+{request.param}"
    yield running
    running.close()


def test_pulled_tree_equals_umoci_unpack(shim, pushed, unpacked, place):
    name = f"{pushed.host}/debian/slim:12"
    shim.trust(pushed.host)
    shim.pull(name)
    assert len(unpacked) > 5000
    with merged(shim.layers(name), place / "m") as ours:
        assert differences(read_tree(ours), unpacked, except_fields("mtime_ns", at=frozenset({b""}))) == []


def test_id_is_the_config_digest(shim, pushed):
    name = f"{pushed.host}/debian/slim:12"
    shim.trust(pushed.host)
    config = pushed.manifest("debian/slim:12")["config"]["digest"]
    assert shim.pull(name) == config
    assert shim.inspect(name)["status"]["id"] == config


def test_blob_and_diff_ids_are_those_of_the_manifest(shim, pushed, debian):
    name = f"{pushed.host}/debian/slim:12"
    shim.trust(pushed.host)
    shim.pull(name)
    layer = shim.inspect(name)["info"]["layers"][0]
    manifest = pushed.manifest("debian/slim:12")
    config = json.loads(pushed.blob_file(manifest["config"]["digest"]).read_text())
    assert layer["digest"] == manifest["layers"][0]["digest"]
    assert layer["diffID"] == config["rootfs"]["diff_ids"][0]
