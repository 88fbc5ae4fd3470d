"""The store on a real disk with a real helper; layers are put there as a crash would leave them: sealed, without a row."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cri_shim.errors import ConfigError, StoreDamaged
from cri_shim.executor import DaemonExecutor
from cri_shim.store import store as store_module
from cri_shim.store.catalog import Catalog
from cri_shim.store.format import FORMAT
from cri_shim.store.image import Document, Image, ImageLayer, Usage
from cri_shim.store.layout import Layout
from cri_shim.store.lease import Lease
from cri_shim.store.seal import Seal, encode_seal
from cri_shim.store.store import Store, Threads
from rootfs.client import Helper
from rootfs.digest import Digest
from rootfs.overlay import link_name

DATA = b"a config"
CONFIG = Digest.of(DATA)


def seal(seed: str) -> Seal:
    diff_id = Digest.of(seed.encode())
    return Seal(diff_id.hex, diff_id, "plain", Usage(1000, 2), ghosts=False, implied=0)


def leave_layer(root: Path, seed: str) -> Path:
    """Put a committed layer on the disk whose row was never written."""
    place = root / "overlay" / seal(seed).name
    (place / "diff").mkdir(parents=True)
    (root / "VERSION").write_text(f"{FORMAT}\n")
    (place / "diff" / "file").write_text(seed)
    (place / "layer.json").write_bytes(encode_seal(seal(seed)))
    (place / "link").write_text(link_name(seal(seed).name))
    return place


def image_on(*seeds: str) -> Image:
    rows = tuple(ImageLayer(seal(seed).diff_id, seal(seed).name, Digest.of(b"blob"), 5, "t", 1000, 2) for seed in seeds)
    return Image(CONFIG, (), (), "", CONFIG, CONFIG, "", (Document(CONFIG, len(DATA)),), rows)


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[Store]:
    layout = Layout(root)
    layout.prepare()
    helper = Helper.start(root)
    store = await Store.open(layout, helper, Threads(DaemonExecutor("disk", 2), DaemonExecutor("index", 1)))
    try:
        yield store
    finally:
        await store.close()
        helper.close()


def room_of(store: Store) -> Usage:
    return sum(store.room(Usage(0, 0)).values(), Usage(0, 0))


async def removed(store: Store) -> None:
    await store.forget_image(CONFIG)
    await store.emptied()  # at the lowest priority: however long that takes


async def kept(store: Store, lease: Lease) -> None:
    store.keep_document(CONFIG, DATA, lease)
    await asyncio.gather(*lease.writing)


async def record(store: Store, *seeds: str, name: str = "r/a:1") -> None:
    async with store.lease() as lease:
        for seed in seeds:
            lease.hold(seal(seed).name)
        store.keep_document(CONFIG, DATA, lease)
        await store.put_image(image_on(*seeds), (name,), (), lease)


async def test_an_orphan_is_adopted_and_collected_after_its_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = leave_layer(tmp_path, "a")
    async with opened(tmp_path) as store:
        assert set(store.catalog.layers) == {seal("a").name}
        assert await store.collect() == ()
        assert place.exists()
        monkeypatch.setattr(store_module, "GRACE_SECONDS", 0.0)
        async with store.lease() as lease:
            lease.hold(seal("a").name)
        assert await store.collect() == (seal("a").name,)
        assert not place.exists()
    async with opened(tmp_path) as store:
        assert store.catalog.layers == {}


async def test_a_directory_that_is_no_layer_is_removed_at_the_start(tmp_path: Path) -> None:
    Layout(tmp_path).prepare()
    (tmp_path / "overlay" / ("f" * 64) / "diff").mkdir(parents=True)
    (tmp_path / "staging" / "half").mkdir()
    (tmp_path / "ingest" / "sha256-x").write_bytes(b"half")
    async with opened(tmp_path) as store:
        assert store.catalog.layers == {}
        await store.emptied()
        assert not (tmp_path / "overlay" / ("f" * 64)).exists()
        assert list((tmp_path / "staging").iterdir()) == []
        assert list((tmp_path / "ingest").iterdir()) == []


async def test_a_lease_keeps_a_layer_whose_image_is_removed(tmp_path: Path) -> None:
    place = leave_layer(tmp_path, "a")
    async with opened(tmp_path) as store:
        await record(store, "a")
        async with store.lease() as lease:
            lease.hold(seal("a").name)
            store._grace.clear()
            await removed(store)
            assert place.exists()
        assert not store.catalog.images


async def test_a_layer_whose_image_is_removed_under_its_lease_goes_with_the_lease(tmp_path: Path) -> None:
    place = leave_layer(tmp_path, "a")
    async with opened(tmp_path) as store:
        async with store.lease() as lease:
            lease.hold(seal("a").name)
            await kept(store, lease)
            await store.put_image(image_on("a"), ("r/a:1",), (), lease)
            await removed(store)
            assert place.exists()
        async with asyncio.timeout(60):
            while place.exists():
                await asyncio.sleep(0.002)
        assert store.catalog.layers == {}


async def test_the_grace_of_a_layer_ends_when_an_image_has_it(tmp_path: Path) -> None:
    place = leave_layer(tmp_path, "a")
    async with opened(tmp_path) as store:
        async with store.lease() as lease:
            lease.hold(seal("a").name)
        assert await store.collect() == ()
        await record(store, "a")
        await removed(store)
        assert not place.exists()


async def test_removal_leaves_nothing_of_the_image(tmp_path: Path) -> None:
    places = [leave_layer(tmp_path, seed) for seed in "ab"]
    async with opened(tmp_path) as store:
        await record(store, "a", "b")
        store._grace.clear()
        assert room_of(store) == Usage(2000 + len(DATA), 5)
        await removed(store)
        assert [place.exists() for place in places] == [False, False]
        assert not store.blobs.path(CONFIG).exists()
        assert room_of(store) == Usage(0, 0)
        await removed(store)


async def test_a_document_put_while_it_is_removed_is_there_afterwards(tmp_path: Path) -> None:
    leave_layer(tmp_path, "a")
    async with opened(tmp_path) as store:
        for _ in range(5):
            await record(store, "a")
            await asyncio.gather(store.forget_image(CONFIG), record(store, "a"))
            assert store.blobs.get(CONFIG) == DATA
            assert CONFIG in store.catalog.images


async def test_an_image_removed_while_it_is_recorded_was_recorded_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its removal gets in between the row and what is done after it: who pulls comes first, and then who removes."""
    leave_layer(tmp_path, "a")
    async with opened(tmp_path) as store:
        await record(store, "a")
        put_plainly = Catalog.put

        def put(catalog: Catalog, *given: Any) -> Image:
            recorded = put_plainly(catalog, *given)
            catalog.drop(CONFIG)  # as soon as the row is there, before anybody can wake
            return recorded

        monkeypatch.setattr(Catalog, "put", put)
        async with store.lease() as lease:
            store.keep_document(CONFIG, DATA, lease)
            found = await store.put_image(image_on("a"), ("r/b:1",), (), lease)
        assert found.tags == ("r/a:1", "r/b:1")
        assert not store.catalog.images


async def test_a_document_without_an_image_goes_with_its_lease(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        async with store.lease() as lease:
            await kept(store, lease)
            assert await store.get_document(CONFIG, lease) == DATA
        assert not store.blobs.path(CONFIG).exists()


async def test_a_damaged_document_is_not_handed_out(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, store.lease() as lease:
        await kept(store, lease)
        store.blobs.path(CONFIG).write_bytes(b"a confiG")
        assert await store.get_document(CONFIG, lease) is None
        with pytest.raises(StoreDamaged, match="digest"):
            store.blobs.get(CONFIG)
        await kept(store, lease)
        assert await store.get_document(CONFIG, lease) == DATA


async def test_an_image_whose_document_is_gone_is_not_listed_after_the_start(tmp_path: Path) -> None:
    leave_layer(tmp_path, "a")
    async with opened(tmp_path) as store:
        await record(store, "a")
        path = store.blobs.path(CONFIG)
    path.unlink()
    async with opened(tmp_path) as store:
        assert store.catalog.images == {}
        assert set(store.catalog.layers) == {seal("a").name}


def test_a_root_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--root"):
        Layout(tmp_path / "file" / "root").prepare()


def test_the_root_is_for_its_owner_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    Layout(root).prepare()
    for path in (root, root / "overlay", root / "blobs", root / "staging"):
        assert path.stat().st_mode & 0o777 == 0o700
