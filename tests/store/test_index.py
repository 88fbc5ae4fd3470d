from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from cri_shim.errors import StoreDamaged
from cri_shim.store.catalog import Catalog, Layer, Opening
from cri_shim.store.image import Document, Image, ImageLayer, Usage, image_from, record_of
from cri_shim.store.index import Index
from cri_shim.store.provenance import Delivery, Proof
from rootfs.digest import Digest


def digest(seed: str) -> Digest:
    return Digest.of(seed.encode())


def layer(seed: str, name: str = "") -> Layer:
    diff_id = digest(seed)
    return Layer(name or diff_id.hex, diff_id, "plain", Usage(100, 3), ghosts=False, implied=0)


def image(seed: str, *layers: Layer, documents: tuple[Document, ...] = ()) -> Image:
    rows = tuple(ImageLayer(l.diff_id, l.name, digest("b" + l.name), 50, "t", 100, 3) for l in layers)
    return Image(
        id=digest(seed),
        tags=(),
        digests=(),
        user="0",
        manifest=digest(seed + "m"),
        target=digest(seed + "t"),
        media_type="m",
        documents=documents or (Document(digest(seed), 10),),
        layers=rows,
        annotations=(("a", "b"),),
        pulled_from="host",
    )


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index.open(tmp_path / "index.db")


def both(index: Index, catalog: Catalog, picture: Image, names: tuple[str, ...]) -> None:
    index.put_image(picture, names)
    catalog.put(picture, names)


def test_what_was_recorded_is_read_back(index: Index, tmp_path: Path) -> None:
    base = layer("base")
    index.put_layer(base, Proof(digest("blob"), base.diff_id), Delivery("r", "a/b", digest("blob")))
    catalog = Catalog()
    catalog.put_layer(base, Proof(digest("blob"), base.diff_id), Delivery("r", "a/b", digest("blob")))
    both(index, catalog, image("one", base), ("r/a/b:1", "r/a/b@" + str(digest("onet"))))
    index.close()
    assert Index.open(tmp_path / "index.db").load() == catalog


def test_a_tag_moves_and_the_old_image_keeps_its_digest(index: Index) -> None:
    catalog = Catalog()
    both(index, catalog, image("old"), ("r/a:1", "r/a@" + str(digest("oldt"))))
    both(index, catalog, image("new"), ("r/a:1", "r/a@" + str(digest("newt"))))
    assert index.load() == catalog
    old, new = catalog.images[digest("old")], catalog.images[digest("new")]
    assert (old.tags, new.tags) == ((), ("r/a:1",))
    assert old.digests == ("r/a@" + str(digest("oldt")),)
    assert catalog.by_name("r/a:1") is new


def test_a_second_name_adds_to_the_first(index: Index) -> None:
    catalog = Catalog()
    both(index, catalog, image("one"), ("r/a:1",))
    both(index, catalog, image("one"), ("s/a:2",))
    assert catalog.images[digest("one")].tags == ("r/a:1", "s/a:2")
    assert index.load() == catalog


def test_removal_drops_every_name_and_leaves_the_rest(index: Index) -> None:
    catalog = Catalog()
    both(index, catalog, image("one"), ("r/a:1", "s/a:1"))
    both(index, catalog, image("two"), ("r/b:1",))
    index.drop_image(digest("one"))
    catalog.drop(digest("one"))
    assert index.load() == catalog
    assert set(catalog.names) == {"r/b:1"}


def test_dropping_a_layer_forgets_what_it_proved(index: Index) -> None:
    catalog = Catalog()
    for seed in ("x", "y"):
        row = layer(seed)
        for where in (index, catalog):
            where.put_layer(row, Proof(digest("b" + seed), row.diff_id), Delivery("r", "a", digest("b" + seed)))
    gone = digest("x").hex
    index.drop_layers((gone,), catalog.drop_layers((gone,)).deliveries)
    assert index.load() == catalog
    assert catalog.proofs == {Proof(digest("by"), digest("y"))}
    assert catalog.deliveries == {Delivery("r", "a", digest("by"))}


def test_a_form_keeps_what_the_diff_id_proved(index: Index) -> None:
    catalog = Catalog()
    proof = Proof(digest("b"), digest("x"))
    catalog.put_layer(layer("x"), proof, None)
    catalog.put_layer(replace(layer("x"), name="f" * 64, form="bottom"), None, None)
    catalog.drop_layers((digest("x").hex,))
    assert catalog.proofs == {proof}


def test_an_image_cannot_be_recorded_on_a_layer_that_is_not(index: Index) -> None:
    with pytest.raises(StoreDamaged, match="FOREIGN KEY"):
        index.put_image(image("one", layer("absent")), ("r/a:1",))
    assert index.load() == Catalog()


def test_a_file_that_is_no_index_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    path.write_bytes(b"this is not a database at all, it is far too short and wrong" * 40)
    with pytest.raises(StoreDamaged, match=r"index\.db"):
        Index.open(path)


def test_no_file_of_it_is_mapped_which_would_kill_on_a_failing_disk(index: Index, tmp_path: Path) -> None:
    index.put_layer(layer("base"), None, None)
    assert sorted(path.name for path in tmp_path.glob("index.db*")) == ["index.db", "index.db-wal"]
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_newer_schema_is_refused(index: Index, tmp_path: Path) -> None:
    index.close()
    db = sqlite3.connect(tmp_path / "index.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreDamaged, match="newer"):
        Index.open(tmp_path / "index.db")


def test_an_opening_takes_the_place_of_the_last_one_and_goes_with_its_name(index: Index) -> None:
    catalog = Catalog()
    both(index, catalog, image("one"), ("r/a:1",))
    both(index, catalog, image("two"), ("r/b:1",))
    openings = [Opening(name, "print", digest(seed), at_s) for name, seed, at_s in (
        ("r/a:1", "old", 10), ("r/a:1", "onet", 20), ("r/b:1", "twot", 5), ("r/b:1", "twot", 30)
    )]  # fmt: skip
    for one in openings:
        for where in (index, catalog):
            where.put_opening(one)
    assert index.load() == catalog
    assert set(catalog.openings.values()) == {openings[1], openings[3]}
    last = Opening("r/a:1", "other", digest("onet"), 40)
    for where in (index, catalog):
        where.put_opening(last, (openings[1],))
    assert index.load() == catalog
    assert set(catalog.openings.values()) == {openings[3], last}
    index.drop_image(digest("one"))
    catalog.drop(digest("one"))
    assert index.load() == catalog
    assert set(catalog.openings.values()) == {openings[3]}
    for where in (index, catalog):
        where.drop_openings([openings[3]])
    assert index.load() == catalog
    assert not catalog.openings


# What version 1 was, as it was released: a migration is tested from what lies on disks, not from what the code says.
VERSION_1 = """
CREATE TABLE images (id TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE names (name TEXT PRIMARY KEY, image TEXT NOT NULL REFERENCES images (id)) WITHOUT ROWID;
CREATE INDEX names_of_image ON names (image);
CREATE TABLE layers (name TEXT PRIMARY KEY, diff_id TEXT NOT NULL, form TEXT NOT NULL, used_bytes INTEGER NOT NULL,
    inodes INTEGER NOT NULL, ghosts INTEGER NOT NULL, implied INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE image_layers (image TEXT NOT NULL REFERENCES images (id), position INTEGER NOT NULL,
    layer TEXT NOT NULL REFERENCES layers (name), PRIMARY KEY (image, position)) WITHOUT ROWID;
CREATE INDEX images_of_layer ON image_layers (layer);
CREATE TABLE proofs (blob TEXT NOT NULL, diff_id TEXT NOT NULL, PRIMARY KEY (blob, diff_id)) WITHOUT ROWID;
CREATE TABLE deliveries (registry TEXT NOT NULL, repository TEXT NOT NULL, blob TEXT NOT NULL,
    PRIMARY KEY (registry, repository, blob)) WITHOUT ROWID;
PRAGMA user_version = 1;
"""


def test_an_index_of_version_1_opens_with_all_that_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    base = layer("base")
    with sqlite3.connect(path) as db:
        db.executescript(VERSION_1)
        db.execute("INSERT INTO images VALUES (?, ?)", (str(digest("one")), record_of(image("one", base))))
        db.execute("INSERT INTO names VALUES ('r/a:1', ?)", (str(digest("one")),))
        db.execute("INSERT INTO layers VALUES (?, ?, 'plain', 100, 3, 0, 0)", (base.name, str(base.diff_id)))
        db.execute("INSERT INTO image_layers VALUES (?, 0, ?)", (str(digest("one")), base.name))
        db.execute("INSERT INTO deliveries VALUES ('r', 'a', ?)", (str(digest("b")),))
    db.close()
    catalog = Catalog()
    catalog.put_layer(base, None, Delivery("r", "a", digest("b")))
    catalog.put(image("one", base), ("r/a:1",))
    opened = Index.open(path)
    assert opened.load() == catalog
    opening = Opening("r/a:1", "print", digest("onet"), 10)
    opened.put_opening(opening)
    opened.close()
    again = Index.open(path)
    assert set(again.load().openings.values()) == {opening}
    again.close()


def test_a_record_that_was_damaged_is_said_to_be() -> None:
    whole = record_of(image("one", layer("x")))
    assert image_from(whole, ()) == image("one", layer("x"))
    for cut in (whole[:-3], b"{}", whole.replace(b"sha256:", b"sha256?", 1), b"\xff"):
        with pytest.raises(StoreDamaged):
            image_from(cut, ())


def test_ids_are_found_whole_and_short() -> None:
    catalog = Catalog()
    catalog.put(image("one"), ("r/a:1",))
    catalog.put(image("two"), ("r/b:1",))
    hex_digits = digest("one").hex
    for text in (hex_digits, "sha256:" + hex_digits):
        found = catalog.by_id(text)
        assert found is not None
        assert found.id == digest("one")
    short = catalog.by_short_id(hex_digits[:12])
    assert short is not None
    assert short.id == digest("one")
    for text in ("", "ab", "xyz", hex_digits[:12] + "g", "sha256:"):
        assert catalog.by_short_id(text) is None


def test_an_ambiguous_short_id_means_nothing() -> None:
    catalog = Catalog()
    seen: dict[str, str] = {}
    for number in range(3000):
        seed = str(number)
        start = digest(seed).hex[:3]
        if start in seen:
            catalog.put(image(seen[start]), (f"r/a:{seen[start]}",))
            catalog.put(image(seed), (f"r/a:{seed}",))
            assert catalog.by_short_id(start) is None
            return
        seen[start] = seed
    pytest.fail("no two of 3000 digests begin alike")
