from __future__ import annotations

import json
from dataclasses import replace

from cri_shim.store.catalog import Catalog, Layer
from cri_shim.store.image import Document, Image, ImageLayer, Usage
from cri_shim.store.recover import plan_recovery
from cri_shim.store.seal import Seal, decode_implied, decode_seal, encode_implied, encode_seal, seal_of
from rootfs.apply import Applied
from rootfs.commit import Found
from rootfs.digest import Digest
from rootfs.tarsplit import Record


def seal(seed: str) -> Seal:
    diff_id = Digest.of(seed.encode())
    return Seal(diff_id.hex, diff_id, "plain", Usage(9, 2), ghosts=True, implied=2)


def found(seed: str) -> Found:
    return Found(name=seal(seed).name, seal=encode_seal(seal(seed)))


def catalog_with(*seeds: str) -> Catalog:
    catalog = Catalog()
    for seed in seeds:
        catalog.put_layer(seal(seed).layer, None, None)
    return catalog


def image_on(*layers: Layer) -> Image:
    config = Digest.of(b"config")
    rows = tuple(ImageLayer(l.diff_id, l.name, config, 1, "t", 1, 1) for l in layers)
    return Image(config, (), (), "", config, config, "", (Document(config, 4),), rows)


def test_a_seal_is_read_back_whole() -> None:
    assert decode_seal(encode_seal(seal("a"))) == seal("a")


def test_a_seal_of_before_there_were_records_is_read() -> None:
    old = json.loads(encode_seal(seal("a")))
    del old["tar_split"], old["tar_split_bytes"]
    assert decode_seal(json.dumps(old).encode()) == seal("a")


def test_the_record_of_a_tar_counts_as_used() -> None:
    applied = Applied(
        diff_id=Digest.of(b"tar"),
        diff_size_bytes=3,
        blob=Digest.of(b"blob"),
        blob_size_bytes=4,
        compression="gzip",
        entries=1,
        usage_bytes=100,
        inodes=5,
        whiteouts=0,
        opaque=(),
        implied=(),
        skipped=(),
    )
    record = Record(Digest.of(b"record"), 40)
    kept = seal_of(replace(applied, record=record))
    assert (kept.tar_split, kept.tar_split_bytes, kept.usage) == (str(record.digest), 40, Usage(140, 6))
    for without in (None, Record(None, 0, "replaced")):
        none = seal_of(replace(applied, record=without))
        assert (none.tar_split, none.tar_split_bytes, none.usage) == ("", 0, Usage(100, 5))


def test_implied_directories_are_read_back() -> None:
    for paths in ((), (b"tmp", b"caf\xe9/a\nb"), (b"",)):
        assert decode_implied(encode_implied(paths)) == paths


def test_a_directory_without_a_row_is_adopted() -> None:
    plan = plan_recovery(Catalog(), [found("a")], [])
    assert [layer.name for layer, _ in plan.adopt] == [seal("a").name]
    assert plan.trash == ()


def test_a_directory_without_a_good_seal_goes_to_the_trash() -> None:
    strays = [Found("1" * 64, None), Found("2" * 64, b"{"), Found("3" * 64, encode_seal(seal("a")))]
    plan = plan_recovery(Catalog(), [*strays, Found("lost+found", None)], [])
    assert plan.trash == ("1" * 64, "2" * 64, "3" * 64)
    assert plan.adopt == ()


def test_an_image_whose_layer_is_gone_is_lost_and_its_row_too() -> None:
    catalog = catalog_with("a", "b")
    catalog.put(image_on(seal("a").layer, seal("b").layer), ("r/a:1",))
    plan = plan_recovery(catalog, [found("a")], [Digest.of(b"config")])
    assert plan.lost_images == (Digest.of(b"config"),)
    assert plan.lost_layers == (seal("b").name,)
    assert plan.stray_documents == (Digest.of(b"config"),)


def test_an_image_whose_config_is_gone_is_lost() -> None:
    catalog = catalog_with("a")
    catalog.put(image_on(seal("a").layer), ("r/a:1",))
    plan = plan_recovery(catalog, [found("a")], [])
    assert plan.lost_images == (Digest.of(b"config"),)


def test_what_agrees_is_left_alone() -> None:
    catalog = catalog_with("a")
    catalog.put(image_on(seal("a").layer), ("r/a:1",))
    plan = plan_recovery(catalog, [found("a")], [Digest.of(b"config")])
    assert plan == type(plan)((), (), (), (), ())
