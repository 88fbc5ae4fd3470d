"""The catalog keeps sums and names in step with what is put and dropped: compared with counting anew."""

from __future__ import annotations

import random

from cri_shim.store.catalog import Catalog, Layer
from cri_shim.store.image import Document, Image, ImageLayer, Usage
from rootfs.digest import Digest


def layer(number: int) -> Layer:
    diff_id = Digest.of(b"layer %d" % number)
    return Layer(diff_id.hex, diff_id, "plain", Usage(1000 + number, number), ghosts=False, implied=0)


def image(number: int, *layers: Layer) -> Image:
    config, manifest = Digest.of(b"config %d" % number), Digest.of(b"manifest %d" % number)
    rows = tuple(ImageLayer(row.diff_id, row.name, row.diff_id, 1, "t", 1000, 1) for row in layers)
    return Image(config, (), (), "", manifest, manifest, "", (Document(config, 7), Document(manifest, 11)), rows)


def counted(catalog: Catalog) -> Usage:
    documents = {doc.digest: doc.size_bytes for one in catalog.images.values() for doc in one.documents}
    layers = sum((row.usage for row in catalog.layers.values()), Usage(0, 0))
    return layers + Usage(sum(documents.values()), len(documents))


def test_usage_and_names_after_any_changes() -> None:
    dice = random.Random(3)
    catalog = Catalog()
    layers = [layer(number) for number in range(6)]
    for _ in range(500):
        match dice.randrange(5):
            case 0 | 1:
                chosen = dice.sample(layers, 2)
                for row in chosen:
                    catalog.put_layer(row, None, None)
                catalog.put(image(dice.randrange(4), *chosen), dice.sample(["a:1", "a:2", "b:1", "a@sha256:x"], 2))
            case 2:
                catalog.drop(Digest.of(b"config %d" % dice.randrange(4)))
            case 3:
                unused = set(catalog.layers) - catalog.referenced()
                before = catalog.drop_layers(unused)
                assert catalog.usage() == counted(catalog)
                if dice.randrange(2):
                    catalog.restore(before)
                    assert (catalog.proofs, catalog.deliveries) == (before.proofs, before.deliveries)
            case 4:
                catalog.put_layer(dice.choice(layers), None, None)
        assert catalog.usage() == counted(catalog)
        assert catalog.names == {name: one.id for one in catalog.images.values() for name in one.names}
        assert all(catalog.by_name(name) is catalog.images[digest] for name, digest in catalog.names.items())
        assert all(one.tags == tuple(sorted(one.tags)) for one in catalog.images.values())


def test_an_image_that_is_put_again_keeps_its_names() -> None:
    catalog = Catalog()
    catalog.put(image(1), ("a:1",))
    catalog.put(image(1), ("b:1", "b@sha256:x"))
    assert catalog.images[image(1).id].names == ("a:1", "b:1", "b@sha256:x")
    catalog.put(image(2), ("a:1",))
    assert catalog.images[image(1).id].tags == ("b:1",)
    assert catalog.images[image(2).id].tags == ("a:1",)


def test_what_is_kept_is_the_same_value_until_it_changes() -> None:
    """The server keeps a message for each image as long as it is handed out unchanged."""
    catalog = Catalog()
    catalog.put(image(1), ("a:1",))
    catalog.put(image(2), ("b:1",))
    one = catalog.images[image(1).id]
    catalog.put(image(3), ("c:1",))
    catalog.drop(image(2).id)
    assert catalog.images[image(1).id] is one
