"""A root with thousands of images, written as the store would have written it, without pulling them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cri_shim.store.catalog import Layer
from cri_shim.store.image import Document, Image, ImageLayer, Usage
from cri_shim.store.index import Index
from cri_shim.store.layout import Layout
from cri_shim.store.seal import Seal, encode_seal
from rootfs.digest import Digest
from rootfs.overlay import link_name


def seed(root: Path, count: int, *, layers: int = 8, tags: int = 3) -> None:
    """Put *count* images of *layers* layers and *tags* tags into *root*. Half of the layers are shared by all."""
    layout = Layout(root)
    layout.prepare()
    index = Index.open(layout.index)
    index._db.execute("PRAGMA synchronous=OFF")
    common = [_layer(layout, index, f"common {place}") for place in range(layers // 2)]
    own = [_layer(layout, index, f"own {place}") for place in range(200)]
    for number in range(count):
        mine = [own[(number * 7 + place) % len(own)] for place in range(layers - len(common))]
        index.put_image(_image(layout, number, (*common, *mine)), _names(number, tags))
    index.close()


def seed_apart(root: Path, count: int, *, layers: int) -> None:
    """Put *count* images into *root* that share no layer, as a start finds most to do."""
    layout = Layout(root)
    layout.prepare()
    index = Index.open(layout.index)
    index._db.execute("PRAGMA synchronous=OFF")
    for number in range(count):
        mine = tuple(_layer(layout, index, f"{number} {place}") for place in range(layers))
        index.put_image(_image(layout, number, mine), _names(number, 3))
    index.close()


def _names(number: int, tags: int) -> list[str]:
    name = f"registry.example.com/team{number % 50}/service-{number}"
    return [*(f"{name}:v1.{tag}" for tag in range(tags)), f"{name}@{Digest.of(b'index %d' % number)}"]


def _image(layout: Layout, number: int, layers: tuple[ImageLayer, ...]) -> Image:
    config, manifest = (Digest.of(b"%s %d" % (kind, number)) for kind in (b"config", b"manifest"))
    for digest in (config, manifest):
        (layout.blobs / digest.algorithm / digest.hex).write_bytes(b"")
    return Image(
        id=config,
        tags=(),
        digests=(),
        user="1000",
        manifest=manifest,
        target=Digest.of(b"index %d" % number),
        media_type="application/vnd.oci.image.manifest.v1+json",
        documents=(Document(config, 3000), Document(manifest, 2000)),
        layers=layers,
        annotations=(("org.opencontainers.image.source", f"https://example.com/{number}"),),
    )


def _layer(layout: Layout, index: Index, name: str) -> ImageLayer:
    diff_id = Digest("sha256", hashlib.sha256(name.encode()).hexdigest())
    place = layout.overlay / diff_id.hex
    (place / "diff").mkdir(parents=True)
    seal = Seal(diff_id.hex, diff_id, "plain", Usage(1_000_000, 100), ghosts=False, implied=0)
    (place / "layer.json").write_bytes(encode_seal(seal))
    (place / "link").write_text(link_name(diff_id.hex))
    index.put_layer(Layer(diff_id.hex, diff_id, "plain", seal.usage, ghosts=False, implied=0))
    return ImageLayer(diff_id, diff_id.hex, Digest.of(diff_id.hex.encode()), 400_000, "t", 1_000_000, 100)
