"""The catalog keeps sums and names in step with what is put and dropped: compared with counting anew."""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Callable

from cri_shim.store.catalog import Catalog, Layer
from cri_shim.store.image import Document, Image, ImageLayer, Usage
from cri_shim.store.provenance import Delivery, Proof
from rootfs.digest import Digest


def layer(number: int) -> Layer:
    diff_id = Digest.of(b"layer %d" % number)
    return Layer(diff_id.hex, diff_id, "plain", Usage(1000 + number, number), ghosts=False, implied=0)


def provenance(row: Layer) -> tuple[Proof, Delivery]:
    """The layer as blob of its own digest, from a registry."""
    return Proof(row.diff_id, row.diff_id), Delivery("r", "a", row.diff_id)


def image(number: int, *layers: Layer, revision: int = 0) -> Image:
    config, manifest = Digest.of(b"config %d" % number), Digest.of(b"manifest %d %d" % (number, revision))
    rows = tuple(ImageLayer(row.diff_id, row.name, row.diff_id, 1, "t", 1000, 1) for row in layers)
    return Image(config, (), (), "", manifest, manifest, "", (Document(config, 7), Document(manifest, 11)), rows)


def counted(catalog: Catalog) -> Usage:
    documents = {doc.digest: doc.size_bytes for one in catalog.images.values() for doc in one.documents}
    layers = sum((row.usage for row in catalog.layers.values()), Usage(0, 0))
    return layers + Usage(sum(documents.values()), len(documents))


def needed_layers(catalog: Catalog) -> set[str]:
    rows = [row for one in catalog.images.values() for row in one.layers]
    return {row.name for row in rows} | {row.diff_id.hex for row in rows}


def needed(catalog: Catalog, blob: Digest) -> bool:
    """Whether anybody should know who delivered *blob*."""
    return any(proof.blob == blob for proof in catalog.proofs) or any(
        document.digest == blob for one in catalog.images.values() for document in one.documents
    )


def test_usage_and_names_after_any_changes() -> None:
    dice = random.Random(3)
    catalog = Catalog()
    layers = [layer(number) for number in range(6)]
    for _ in range(500):
        match dice.randrange(5):
            case 0 | 1:
                chosen = dice.sample(layers, 2)
                for row in chosen:
                    catalog.put_layer(row, *provenance(row))
                one = image(dice.randrange(4), *chosen, revision=dice.randrange(2))
                names = dice.sample(["a:1", "a:2", "b:1", "a@sha256:x"], 2)
                catalog.put(one, names, [Delivery("r", "a", document.digest) for document in one.documents])
            case 2:
                catalog.drop(Digest.of(b"config %d" % dice.randrange(4)))
            case 3:
                before = (dict(catalog.layers), set(catalog.proofs), set(catalog.deliveries))
                dropped = catalog.drop_layers(catalog.idle())
                assert catalog.usage() == counted(catalog)
                assert catalog.deliveries == {one for one in before[2] if needed(catalog, one.blob)}
                if dice.randrange(2):
                    catalog.restore(dropped)
                    assert (catalog.layers, catalog.proofs, catalog.deliveries) == before
            case 4:
                row = dice.choice(layers)
                catalog.put_layer(row, *provenance(row))
        assert catalog.usage() == counted(catalog)
        assert catalog.idle() == catalog.layers.keys() - needed_layers(catalog)
        assert catalog.ordered() == tuple(sorted(catalog.images.values(), key=lambda one: one.id.hex))
        for one in catalog.images.values():
            assert catalog.by_short_id(one.id.hex[:12]) is one
            assert all(catalog.by_manifest(name[0], one.manifest) is one for name in one.names)
        loaded = Catalog(catalog.images, catalog.names, catalog.layers, catalog.provenance, catalog.openings)
        assert (loaded.idle(), loaded.usage()) == (catalog.idle(), catalog.usage())
        assert loaded.ordered() == catalog.ordered()
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


def calls_of(work: Callable[[], object]) -> int:
    """How many functions *work* calls: what it costs, without a clock."""
    count = 0

    def called(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.disable()  # what earlier tests left to the collector would be counted with it
    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def cost_among(others: int) -> list[int]:
    """What an image costs that comes, is asked about and goes, among *others*."""
    base = layer(0)
    rows = {row.name: row for row in [base, *(layer(number) for number in range(1, others + 1))]}
    catalog = Catalog(layers=rows)
    for number in range(1, others + 1):
        catalog.put(image(number, base, layer(number)), (f"r/{number}:1",))
    one, row = image(0, base, layer(others + 1)), layer(others + 1)
    return [
        calls_of(lambda: catalog.put_layer(row, *provenance(row))),
        calls_of(lambda: catalog.put(one, ("r/new:1", "r/1:1"))),
        calls_of(lambda: (catalog.usage(), catalog.ordered(), catalog.idle(), catalog.by_name("r/new:1"))),
        calls_of(lambda: (catalog.by_short_id(one.id.hex[:9]), catalog.by_manifest("r/new", one.manifest))),
        calls_of(lambda: catalog.drop(one.id)),
        calls_of(lambda: catalog.drop_layers(catalog.idle())),
    ]


def test_what_an_image_costs_does_not_grow_with_the_images_there_are() -> None:
    few, many = cost_among(50), cost_among(5000)
    assert all(much <= little + 40 for little, much in zip(few, many, strict=True)), (few, many)  # a search by halves
