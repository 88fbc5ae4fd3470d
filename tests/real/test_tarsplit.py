"""The record of a tar is the one that containers-storage keeps of the same layer, line by line."""

from __future__ import annotations

import gzip
import io
import json
import os
from base64 import b64decode

import pytest

from rootfs.apply import apply_layer
from rootfs.assemble import verify
from rootfs.digest import Digest
from rootfs.limits import Limits
from tests.real.programs import run

pytestmark = pytest.mark.needs("root", "skopeo", "umoci")


def kept_by_skopeo(place, layout, tag):
    """Copy an image into a store of containers-storage and return its records by diff ID."""
    store = f"containers-storage:[overlay@{place}/cs+{place}/csr]localhost/{tag}:1"
    run("skopeo", "copy", "-q", f"oci:{layout}:{tag}", store)
    layers = json.loads((place / "cs/overlay-layers/layers.json").read_text())
    return {
        layer["diff-digest"]: (place / f"cs/overlay-layers/{layer['id']}.tar-split.gz").read_bytes() for layer in layers
    }


def kept_by_us(place, tar):
    """Unpack a layer and return its record and its tree, open."""
    place.mkdir()
    tree, record = os.open(place, os.O_RDONLY), os.memfd_create("record")
    apply_layer(io.BytesIO(tar), tree, limits=Limits(), privileged=True, record_fd=record)
    data = os.pread(record, os.fstat(record).st_size, 0)
    os.close(record)
    return data, tree


def lines(record):
    """The lines of a record; what follows the last entry is one segment, however it was cut."""
    found = [json.loads(line) for line in gzip.decompress(record).splitlines()]
    assert [line.pop("position") for line in found] == list(range(len(found)))
    last = max(place for place, line in enumerate(found) if line["type"] == 1)
    return found[: last + 1], b"".join(b64decode(line["payload"]) for line in found[last + 1 :])


@pytest.mark.parametrize("tag", ["many", "through-link"])
def test_records_equal_those_of_containers_storage(place, stacks, tag):
    made = stacks[tag]
    theirs = kept_by_skopeo(place, made.layout, tag)
    tars = {str(Digest.of(tar)): tar for tar in (layer.bytes() for layer in made.layers)}
    assert theirs.keys() == tars.keys()
    for number, (diff_id, tar) in enumerate(tars.items()):
        ours, tree = kept_by_us(place / str(number), tar)
        assert lines(ours) == lines(theirs[diff_id])
        for record in (ours, theirs[diff_id]):
            assert verify(io.BytesIO(record), tree, Digest.parse(diff_id)) == len(tar)
        os.close(tree)
