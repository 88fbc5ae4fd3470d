"""A graph root of containers-storage, as CRI-O and podman leave it after a pull."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path

from rootfs.apply import apply_layer
from rootfs.digest import Digest, layer_ids
from rootfs.limits import Limits
from tests.fakes.images import FakeImage, FakeIndex, FakeLayer, digest_of, plain


class FakeGraphRoot:
    """The files below *path*. `records` and `layers` are what stands in the JSON; `write` puts them there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images: list[dict] = []
        self.layers: dict[str, dict] = {}
        for name in ("images", "layers"):
            (path / f"overlay-{name}").mkdir(parents=True)
            (path / f"overlay-{name}/{name}.lock").write_bytes(bytes(64))
        self.write()

    def write(self) -> None:
        (self.path / "overlay-images/images.json").write_text(json.dumps(self.images))
        (self.path / "overlay-layers/layers.json").write_text(json.dumps([*self.layers.values()]))

    def pulled(self, made: FakeImage, *names: str, out_of: FakeIndex | None = None) -> list[Path]:
        """Have *made*, which came out of an index or not; return the trees of its layers, bottom first."""
        ids = layer_ids([Digest.parse(one.diff_id) for one in made.layers])
        for name, parent, one in zip(ids, ("", *ids), made.layers, strict=False):
            self._layer(name, parent, one)
        documents = {made.id: made.config, "manifest": made.manifest, f"manifest-{made.digest}": made.manifest}
        if out_of is not None:
            documents[f"manifest-{out_of.digest}"] = out_of.data
        identity = made.id.removeprefix("sha256:")
        for key, data in documents.items():
            path = self.big_data(identity, key)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        record = {
            "id": identity,
            "digest": made.digest if out_of is None else out_of.digest,
            "names": [*names],
            "layer": ids[-1] if ids else "",
            "big-data-names": [*documents],
            "big-data-digests": {key: digest_of(data) for key, data in documents.items()},
        }
        self.images = [one for one in self.images if one["id"] != identity] + [record]
        self.write()
        return [self.path / "overlay" / name / "diff" for name in ids]

    def big_data(self, image: str, key: str) -> Path:
        name = key if key.isalnum() else "=" + base64.b64encode(key.encode()).decode()
        return self.path / "overlay-images" / image / name

    def record(self, layer: str) -> Path:
        """The record of the tar of a layer."""
        return self.path / f"overlay-layers/{layer}.tar-split.gz"

    def _layer(self, name: str, parent: str, one: FakeLayer) -> None:
        tar = plain(one)
        entry = {"id": name, "diff-digest": one.diff_id, "diff-size": len(tar), "uidset": [0]}
        self.layers[name] = entry | ({"parent": parent} if parent else {})
        tree = self.path / "overlay" / name / "diff"
        if tree.exists():
            return
        tree.mkdir(parents=True)
        root = os.open(tree, os.O_RDONLY)
        record = os.open(self.record(name), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            apply_layer(io.BytesIO(tar), root, limits=Limits(), privileged=os.geteuid() == 0, record_fd=record)
        finally:
            os.close(root)
            os.close(record)
