"""The additional image store as runtimes read it: files on a real disk, after real pulls."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cri_shim.errors import HandOffFailed, ShimError
from cri_shim.handoff import containers_storage, lockfile
from cri_shim.images.service import Images
from cri_shim.server.build import running_images
from cri_shim.store import store as store_module
from cri_shim.store.image import Image
from rootfs.digest import Digest, layer_ids
from rootfs.overlay import link_name
from tests.fakes.images import Dir, FakeImage, index, layer
from tests.fakes.registry import FakeRegistry
from tests.handoff.test_lockfile import HOLD
from tests.handoff.test_references import write
from tests.images.test_interrupted import until
from tests.images.test_pull import config_for, image, sample


class Reader:
    """What a runtime sees below *root*; every read checks that the store is whole."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def images(self) -> dict[str, dict]:
        """Read every image by its id, after going all the way that a runtime goes."""
        images = {one["id"]: one for one in self._read("images")}
        layers = {one["id"]: one for one in self._read("layers")}
        names = [name for one in images.values() for name in one.get("names", ())]
        assert len(set(names)) == len(names)
        for one in images.values():
            self._check(one, layers)
        return images

    def names(self) -> dict[str, list[str]]:
        return {key: one.get("names", []) for key, one in self.images().items()}

    def layers(self) -> dict[str, dict]:
        self.images()
        return {one["id"]: one for one in self._read("layers")}

    def diff(self, layer: str) -> Path:
        return self.root / "overlay/l" / (self.root / "overlay" / layer / "link").read_text()

    def _read(self, kind: str) -> list[dict]:
        path = self.root / f"overlay-{kind}/{kind}.json"
        return json.loads(path.read_text()) if path.exists() else []

    def _check(self, one: dict, layers: dict[str, dict]) -> None:
        for key in one["big-data-names"]:
            base = key if key.isalnum() else "=" + base64.b64encode(key.encode()).decode()
            data = (self.root / "overlay-images" / one["id"] / base).read_bytes()
            assert len(data) == one["big-data-sizes"][key]
            assert str(Digest.of(data)) == one["big-data-digests"][key]
        below, chain = one["layer"], []
        while below:
            chain.append(below)
            below = layers[below].get("parent", "")
        for place, name in enumerate(chain):
            assert self.diff(name).is_dir()
            assert os.path.samefile(self.diff(name), self.root / "overlay" / name / "diff")
            lower = self.root / "overlay" / name / "lower"
            expected = ":".join(f"l/{link_name(other)}" for other in chain[place + 1 :])
            assert (lower.read_text() if lower.exists() else "") == expected


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        fake.add("app", sample(), tag="1")
        yield fake


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path / "root")


@asynccontextmanager
async def running(tmp_path: Path, registry: FakeRegistry, **changes: object) -> AsyncIterator[Images]:
    config = dataclasses.replace(
        config_for(tmp_path, registry),
        publish=("containers-storage",),
        containers_storage_roots=(str(tmp_path / "graph"),),
        **changes,
    )
    async with running_images(config) as images:
        images._store._grace.clear()
        yield images


@pytest.fixture
async def images(tmp_path: Path, registry: FakeRegistry) -> AsyncIterator[Images]:
    async with running(tmp_path, registry) as started:
        yield started


async def pulled(images: Images, registry: FakeRegistry, name: str = "app:1") -> Image:
    found = await images.pull(f"{registry.host}/{name}", None)
    images._store._grace.clear()
    return found


def directories(tmp_path: Path) -> set[str]:
    return set(os.listdir(tmp_path / "root/overlay")) - {"l"}


async def test_an_image_is_published_whole(
    images: Images, registry: FakeRegistry, reader: Reader, tmp_path: Path
) -> None:
    one = await pulled(images, registry)
    diff_ids = [layer.diff_id for layer in one.layers]
    assert reader.names() == {one.id.hex: list(one.names)}
    assert reader.images()[one.id.hex]["layer"] == layer_ids(diff_ids)[-1]
    layers = reader.layers()
    assert [layers[name]["diff-digest"] for name in layer_ids(diff_ids)] == list(map(str, diff_ids))
    assert [layers[name]["compression"] for name in layer_ids(diff_ids)] == [2, 4]
    assert all(layer["diff-size"] > 0 and layer["compressed-size"] > 0 for layer in layers.values())
    assert images.status()["published"]["containers-storage"]["images"] == 1


async def test_an_index_is_kept_beside_the_manifest(images: Images, registry: FakeRegistry, reader: Reader) -> None:
    registry.add("multi", index(sample()), tag="1")
    one = await pulled(images, registry, "multi:1")
    assert one.target != one.manifest
    keys = reader.images()[one.id.hex]["big-data-names"]
    assert {f"manifest-{one.target}", f"manifest-{one.manifest}", "manifest", str(one.id)} == set(keys)


async def test_forms_stand_where_the_chain_says(images: Images, registry: FakeRegistry, reader: Reader) -> None:
    base = layer({"tmp/": Dir(0o1777), "etc/": Dir()})
    ghosts = layer({"etc/": Dir(), "etc/.wh.never": b""})
    implied = layer({"tmp/x": b"x"})
    twice = layer({"twice": b"twice"})
    registry.add("forms", image(ghosts, base, implied, twice, ghosts, twice), tag="1")
    registry.add("plain", image(base, ghosts), tag="1")
    one = await pulled(images, registry, "forms:1")
    two = await pulled(images, registry, "plain:1")
    assert set(reader.images()) == {one.id.hex, two.id.hex}
    name, seen = reader.images()[one.id.hex]["layer"], []
    while name:
        seen.append(os.path.basename(os.path.dirname(os.path.realpath(reader.diff(name)))))
        name = reader.layers()[name].get("parent", "")
    assert tuple(reversed(seen)) == one.layer_names
    assert len(set(seen)) == 6


async def test_a_tag_that_moves_is_never_on_two_images(images: Images, registry: FakeRegistry, reader: Reader) -> None:
    old = await pulled(images, registry)
    registry.add("app", sample(b"other"), tag="1")
    new = await pulled(images, registry)
    assert reader.names() == {one.id.hex: list(one.names) for one in images.images()}
    assert f"{registry.host}/app:1" in reader.names()[new.id.hex]
    assert old.id.hex in reader.names()


async def test_removal_leaves_nothing_and_shared_layers_stay(
    images: Images, registry: FakeRegistry, reader: Reader, tmp_path: Path
) -> None:
    registry.add("app", sample(b"other"), tag="2")
    one, two = await pulled(images, registry), await pulled(images, registry, "app:2")
    await images.remove(str(one.id))
    assert set(reader.images()) == {two.id.hex}
    assert set(reader.layers()) == set(layer_ids([layer.diff_id for layer in two.layers]))
    await images.remove(str(two.id))
    assert (reader.images(), reader.layers(), directories(tmp_path)) == ({}, {}, set())
    assert os.listdir(tmp_path / "root/overlay/l") == []
    assert sorted(os.listdir(tmp_path / "root/overlay-images")) == ["images.json", "images.lock"]


@pytest.mark.parametrize("by", ["layer", "image"])
async def test_an_image_that_a_runtime_names_stays_without_names(
    images: Images, registry: FakeRegistry, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr(store_module, "USED_SECONDS", 0.01)
    one = await pulled(images, registry)
    top = reader.images()[one.id.hex]["layer"]
    graph = tmp_path / "graph"
    if by == "layer":
        write(graph, volatile_layers=[{"id": "rw", "parent": top}])
    else:
        write(graph, containers=[{"id": "c", "image": one.id.hex}])
    await images.remove(str(one.id))
    assert images.images() == ()
    assert reader.names() == {one.id.hex: []}
    assert len(directories(tmp_path)) == 3  # two layers and the upper one's place in the chain
    write(graph, volatile_layers=[], containers=[])
    await until(lambda: not directories(tmp_path))
    assert reader.images() == {}


async def test_a_container_that_is_made_while_its_image_is_removed_keeps_its_layers(
    images: Images, registry: FakeRegistry, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "USED_SECONDS", 0.01)
    one = await pulled(images, registry)
    top, graph = reader.images()[one.id.hex]["layer"], tmp_path / "graph"
    forget = images._store.forget_image

    async def late(image: Digest) -> None:
        write(graph, volatile_layers=[{"id": "rw", "parent": top}])
        await forget(image)

    monkeypatch.setattr(images._store, "forget_image", late)
    await images.remove(str(one.id))
    assert reader.names() == {one.id.hex: []}  # else the runtime would find a layer whose parent is missing
    assert directories(tmp_path) == {*one.layer_names, top}
    write(graph, volatile_layers=[])
    await until(lambda: not directories(tmp_path))
    assert (reader.images(), reader.layers()) == ({}, {})


async def test_an_image_that_a_runtime_names_can_be_pulled_again(
    images: Images, registry: FakeRegistry, reader: Reader, tmp_path: Path
) -> None:
    one = await pulled(images, registry)
    write(tmp_path / "graph", containers=[{"id": "c", "image": one.id.hex}])
    await images.remove(str(one.id))
    again = await pulled(images, registry)
    assert reader.names() == {one.id.hex: list(again.names)}
    assert images.status()["published"]["containers-storage"]["held by runtimes"] == 0


async def test_records_that_cannot_be_read_keep_everything(
    images: Images, registry: FakeRegistry, reader: Reader, tmp_path: Path
) -> None:
    one = await pulled(images, registry)
    write(tmp_path / "graph", layers=[])
    (tmp_path / "graph/overlay-layers/layers.json").write_text("[{")
    await images.remove(str(one.id))
    assert reader.names() == {one.id.hex: []}


async def test_a_restart_publishes_what_is_missing(registry: FakeRegistry, reader: Reader, tmp_path: Path) -> None:
    async with running(tmp_path, registry) as images:
        one = await pulled(images, registry)
    link = tmp_path / "root/overlay/l" / link_name(top_of(reader, one))
    link.unlink()
    async with running(tmp_path, registry):
        await until(link.exists)
        await until(lambda: reader.names() == {one.id.hex: list(one.names)})


@asynccontextmanager
async def held(lock: Path) -> AsyncIterator[None]:
    """Another program keeps *lock*."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert await asyncio.to_thread(process.stdout.readline) == b"held\n"
    try:
        yield
    finally:
        await asyncio.to_thread(process.communicate, b"")


@pytest.mark.parametrize("by", ["a sweep", "a pull"])
async def test_what_could_not_be_put_right_at_start_is_tried_again(
    registry: FakeRegistry, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    async with running(tmp_path, registry) as images:
        one = await pulled(images, registry)
        await images._store.forget_image(one.id)  # a life that ended before it could tell
    (tmp_path / "root/overlay-images/0000").mkdir()  # what a kill leaves
    registry.add("other", sample(b"other"), tag="1")
    monkeypatch.setattr(lockfile, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr(containers_storage, "SWEEP_SECONDS", 0.01 if by == "a sweep" else 1000.0)

    def owed() -> str:
        return images.status()["published"]["containers-storage"]["owed"]

    async with contextlib.AsyncExitStack() as stack:
        async with held(tmp_path / "root/overlay-layers/layers.lock"):
            images = await stack.enter_async_context(running(tmp_path, registry))
            assert "could not be put right, and is tried again: " in owed()
            assert reader.names() == {one.id.hex: list(one.names)}
        if by == "a pull":
            two = await pulled(images, registry, "other:1")
            assert reader.names() == {two.id.hex: list(two.names)}
        await until(lambda: not owed() and one.id.hex not in reader.images())
        assert "0000" not in os.listdir(tmp_path / "root/overlay-images")


async def test_files_that_cannot_be_taken_away_are_tried_again(
    images: Images, registry: FakeRegistry, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "USED_SECONDS", 0.01)
    one = await pulled(images, registry)
    top = reader.images()[one.id.hex]["layer"]
    with monkeypatch.context() as broken:
        broken.setattr(containers_storage, "take_files", _refused)
        await images.remove(str(one.id))
        assert "could not be taken away" in images.status()["published"]["containers-storage"]["failure"]
        assert reader.images() == {}
        assert directories(tmp_path) == {*one.layer_names, top}
    await until(lambda: not directories(tmp_path))


def _refused(*_: object) -> None:
    raise OSError(5, "it was told to fail")


async def test_what_was_published_is_withdrawn_when_it_is_turned_off(
    registry: FakeRegistry, reader: Reader, tmp_path: Path
) -> None:
    registry.add("other", image(layer({"other": b"x"})), tag="1")
    async with running(tmp_path, registry) as images:
        one, two = await pulled(images, registry), await pulled(images, registry, "other:1")
    write(tmp_path / "graph", containers=[{"id": "c", "image": one.id.hex}])
    config = dataclasses.replace(config_for(tmp_path, registry), containers_storage_roots=(str(tmp_path / "graph"),))
    async with running_images(config) as images:
        assert reader.names() == {one.id.hex: []}
        await images.remove(str(one.id))
        await images.pull(f"{registry.host}/other:1", None)
        assert await images.usable(str(two.id)) is not None
        assert images.status()["published"]["containers-storage"]["state"] == "withdrawn"
        assert reader.names() == {one.id.hex: []}
    write(tmp_path / "graph", containers=[])
    async with running_images(config):
        assert reader.images() == {}
    async with running(tmp_path, registry):
        await until(lambda: set(reader.images()) == {two.id.hex})


def top_of(reader: Reader, one: Image) -> str:
    return next(found["layer"] for found in reader._read("images") if found["id"] == one.id.hex)


@pytest.mark.parametrize("damage", [b"{", b"[]", None])
async def test_records_that_were_lost_or_damaged_are_written_anew(
    registry: FakeRegistry, reader: Reader, tmp_path: Path, damage: bytes | None
) -> None:
    path = tmp_path / "root/overlay-images/images.json"
    async with running(tmp_path, registry) as images:
        one = await pulled(images, registry)
        before = reader.names()
        path.unlink() if damage is None else path.write_bytes(damage)
        assert await images.usable(str(one.id)) is one
        assert reader.names() == before
    path.unlink() if damage is None else path.write_bytes(damage)
    async with running(tmp_path, registry):
        await until(lambda: path.exists() and path.read_bytes() not in (damage, b"[]"))
        assert reader.names() == before


async def test_a_status_of_what_is_published_writes_nothing(
    images: Images, registry: FakeRegistry, tmp_path: Path
) -> None:
    one = await pulled(images, registry)
    lock = tmp_path / "root/overlay-images/images.lock"
    before = lock.read_bytes()
    assert await images.usable(str(one.id)) is one
    await pulled(images, registry)
    assert lock.read_bytes() == before


async def test_a_reader_that_hangs_fails_the_pull_with_a_reason(
    images: Images, registry: FakeRegistry, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockfile, "LOCK_SECONDS", 0.05)
    lock = tmp_path / "root/overlay-images/images.lock"
    async with held(lock):
        with pytest.raises(HandOffFailed, match=r"^pull .*: hand-off: .*images\.lock is held"):
            await pulled(images, registry)
        assert reader.images() == {}
        (one,) = images.images()
        assert await images.usable(str(one.id)) is None
    assert await images.usable(str(one.id)) is one
    assert set(reader.images()) == {one.id.hex}


async def test_a_layer_that_is_gone_fails_the_hand_off(images: Images, registry: FakeRegistry, tmp_path: Path) -> None:
    one = await pulled(images, registry)
    seal = tmp_path / "root/overlay" / one.layers[0].diff_id.hex / "layer.json"
    seal.rename(seal.with_name("away"))
    images._publishing._handoffs[0]._shown.clear()
    assert await images.usable(str(one.id)) is None
    with pytest.raises(ShimError, match="pull it again"):
        await images._publishing.publish(one)
    seal.with_name("away").rename(seal)
    assert await images.usable(str(one.id)) is one


async def test_pulls_and_removals_side_by_side_leave_a_whole_store_at_every_moment(
    images: Images, registry: FakeRegistry, reader: Reader
) -> None:
    for number in range(6):
        registry.add("many", sample(str(number).encode()), tag=str(number % 3))

    async def churn(number: int) -> None:
        for _ in range(4):
            registry.add("many", sample(str(number).encode()), tag=str(number % 3))
            one = await images.pull(f"{registry.host}/many:{number % 3}", None)
            if number % 2:
                await images.remove(str(one.id))

    async def watch(done: asyncio.Event) -> int:
        looks = 0
        while not done.is_set():
            await asyncio.sleep(0)
            looks += 1
            # Between the read of one file and of the other a runtime reads again, when the stamp of a lock has changed.
            path = reader.root / "overlay-images/images.json"
            for one in json.loads(path.read_text()):
                assert one["id"]
        return looks

    done = asyncio.Event()
    watching = asyncio.create_task(watch(done))
    await asyncio.gather(*map(churn, range(6)))
    done.set()
    assert await watching > 0
    assert reader.names() == {one.id.hex: list(one.names) for one in images.images()}


async def test_an_image_without_layers(images: Images, registry: FakeRegistry, reader: Reader) -> None:
    registry.add("empty", image(), tag="1")
    one = await pulled(images, registry, "empty:1")
    assert reader.images()[one.id.hex]["layer"] == ""


def deep(count: int) -> FakeImage:
    """An image that shows the difference between its layers: each hides the file of the one before."""
    hidden = [layer({f"{number}": b"x", f".wh.{number - 1}": b"", "top": b"%d" % number}) for number in range(1, count)]
    return image(layer({"0": b"x", "base": b"base"}), *hidden)


async def test_an_image_too_deep_for_one_mount_is_one_layer(
    registry: FakeRegistry, reader: Reader, tmp_path: Path
) -> None:
    registry.add("deep", deep(80), tag="1")
    registry.add("shallow", deep(5), tag="1")
    async with running(tmp_path, registry) as images:
        one, two = await pulled(images, registry, "deep:1"), await pulled(images, registry, "shallow:1")
        flat = reader.images()[one.id.hex]["layer"]
        assert "parent" not in reader.layers()[flat]
        assert sorted(os.listdir(reader.diff(flat))) == ["79", "base", "top"]
        assert len(reader.layers()) == 1 + len(two.layers)
        assert await images._store.collect() == ()
    async with running(tmp_path, registry) as images:
        assert await images._store.collect() == ()
        assert await images.usable(str(one.id)) is not None
        assert reader.images()[one.id.hex]["layer"] == flat
        await images.remove(str(two.id))
        await images.remove(str(one.id))
        await images._store.emptied()
        assert (directories(tmp_path), images.usage().inodes) == (set(), 0)


async def test_a_merged_layer_whose_image_is_not_published_is_let_go(
    registry: FakeRegistry, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add("deep", deep(80), tag="1")
    async with running(tmp_path, registry) as images:
        with monkeypatch.context() as broken:
            broken.setattr(containers_storage, "put_files", _refused)
            with pytest.raises(ShimError, match="it was told to fail"):
                await pulled(images, registry, "deep:1")
        (one,) = images.images()
        flat = [layer.name for layer in images._store.catalog.layers.values() if layer.form == "flat"]
        images._store._grace.clear()
        assert list(await images._store.collect()) == flat
        assert len(flat) == 1
        await pulled(images, registry, "deep:1")
        assert reader.images()[one.id.hex]["layer"] == flat[0]
        images._store._grace.clear()
        assert await images._store.collect() == ()


async def test_where_only_cri_o_reads_no_image_is_too_deep(
    registry: FakeRegistry, reader: Reader, tmp_path: Path
) -> None:
    registry.add("deep", deep(80), tag="1")
    config = config_for(tmp_path, registry)
    async with running_images(dataclasses.replace(config, runtime="cri-o", containers_storage_roots=())) as images:
        await pulled(images, registry, "deep:1")
        assert len(reader.layers()) == 80


@pytest.mark.parametrize("which", ["short name", "lower", "link", "document", "document cut"])
async def test_files_that_somebody_took_away_are_made_anew(
    tmp_path: Path, registry: FakeRegistry, reader: Reader, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    monkeypatch.setattr(containers_storage, "SWEEP_SECONDS", 0.01)
    async with running(tmp_path, registry) as images:
        found = await pulled(images, registry)
        before = reader.images()
        overlay, top = tmp_path / "root/overlay", before[found.id.hex]["layer"]
        lost = {
            "short name": overlay / "l" / link_name(top),
            "lower": overlay / top / "lower",
            "link": overlay / top / "link",
        }.get(which, tmp_path / "root/overlay-images" / found.id.hex / "manifest")
        lost.unlink()
        if which == "document cut":
            lost.write_bytes(b"{")
        await until(lambda: os.path.lexists(lost) and lost.stat().st_size > 1)
        await until(lambda: images._publishing._handoffs[0]._shown.get(found.id.hex) is not None)
        assert reader.images() == before


async def test_nothing_is_made_anew_while_everything_is_there(
    tmp_path: Path, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, registry) as images:
        await pulled(images, registry)
        handoff = images._publishing._handoffs[0]
        renewed: list[None] = []
        monkeypatch.setattr(handoff, "_renew", lambda: renewed.append(None))
        await handoff._look()
        assert renewed == []
