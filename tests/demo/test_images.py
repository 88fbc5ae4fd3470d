"""The sample images are what the demo says they are."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile

import pytest
import zstandard

from cri_shim.demo.images import ARCHITECTURES, digest_of, samples
from cri_shim.demo.layout import write_layout

SAMPLES = samples()


def manifests_of(name: str) -> dict[str, dict]:
    index = json.loads(SAMPLES.names[name].data)
    return {
        entry["platform"]["architecture"]: json.loads(SAMPLES.documents[entry["digest"]].data)
        for entry in index["manifests"]
    }


def plain(descriptor: dict) -> bytes:
    data = SAMPLES.blobs[descriptor["digest"]]
    if descriptor["mediaType"].endswith("+gzip"):
        return gzip.decompress(data)
    if descriptor["mediaType"].endswith("+zstd"):
        return zstandard.ZstdDecompressor().decompress(data)
    return data


def members_of(name: str) -> dict[str, tarfile.TarInfo]:
    found = {}
    for descriptor in manifests_of(name)["amd64"]["layers"]:
        with tarfile.open(fileobj=io.BytesIO(plain(descriptor))) as tar:
            found |= {member.name: member for member in tar}
    return found


def test_the_same_bytes_every_time():
    again = samples()
    assert again.blobs == SAMPLES.blobs
    assert again.documents == SAMPLES.documents


@pytest.mark.parametrize("name", SAMPLES.names)
def test_digests_sizes_and_diff_ids_hold(name):
    manifests = manifests_of(name)
    assert tuple(manifests) == ARCHITECTURES
    for architecture, manifest in manifests.items():
        config = SAMPLES.blobs[manifest["config"]["digest"]]
        assert json.loads(config)["architecture"] == architecture
        for descriptor in (manifest["config"], *manifest["layers"]):
            data = SAMPLES.blobs[descriptor["digest"]]
            assert (digest_of(data), len(data)) == (descriptor["digest"], descriptor["size"])
        diff_ids = [f"sha256:{hashlib.sha256(plain(layer)).hexdigest()}" for layer in manifest["layers"]]
        assert json.loads(config)["rootfs"]["diff_ids"] == diff_ids


def test_every_compression_and_the_same_layer_twice():
    layers = manifests_of("shop/web:2.1")["amd64"]["layers"]
    assert {layer["mediaType"].rpartition("tar")[2] for layer in layers} == {"", "+gzip", "+zstd"}
    assert layers[2] == layers[4]


def test_two_images_share_layers_and_keep_some_for_themselves():
    web, worker = (
        {layer["digest"] for layer in manifests_of(name)["amd64"]["layers"]}
        for name in ("shop/web:2.1", "shop/worker:2.1")
    )
    assert len(web & worker) == 2
    assert worker - web


def test_troublesome_layers_are_in_every_platform_of_the_first_image():
    for manifest in manifests_of("shop/web:2.1").values():
        assert set(SAMPLES.everywhere) <= {layer["digest"] for layer in manifest["layers"]}


def test_the_kinds_of_entries_that_the_demo_promises():
    members = members_of("shop/web:2.1")
    assert members["etc/.wh.motd"].isreg()
    assert members["srv/cache/.wh..wh..opq"].isreg()
    assert members["bin/app-again"].islnk()
    assert members["bin/sh"].issym()
    assert members["var/lib/data/null"].ischr()
    assert members["var/lib/data/tagged"].pax_headers["SCHILY.xattr.user.demo"] == "tagged"
    assert members["bin/become"].mode == 0o4755
    assert members["var/lib/data/rows"].uid == 1000


def test_layout_holds_every_blob_under_its_digest(tmp_path):
    write_layout(SAMPLES, tmp_path / "layout")
    blobs = {path.name: path.read_bytes() for path in (tmp_path / "layout/blobs/sha256").iterdir()}
    assert all(hashlib.sha256(data).hexdigest() == name for name, data in blobs.items())
    assert len(blobs) == len(SAMPLES.blobs) + len(SAMPLES.documents)
    index = json.loads((tmp_path / "layout/index.json").read_text())
    names = [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in index["manifests"]]
    assert names == ["shop-web-2.1", "shop-worker-2.1"]
