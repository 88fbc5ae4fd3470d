"""Pulls whose caller leaves at the worst moment: nothing half is left, nothing goes on behind the next one's back."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from cri_shim.errors import StoreDamaged
from cri_shim.images.service import Images
from cri_shim.oci.reference import parse_reference
from cri_shim.server.build import running_images
from cri_shim.store.blobs import Blobs
from cri_shim.store.index import Index
from cri_shim.store.ingest import Ingest
from rootfs.client import Helper
from rootfs.errors import HelperFailed
from tests.fakes.images import image as image_for
from tests.fakes.images import index, layer
from tests.fakes.misbehaviour import cut, status
from tests.fakes.registry import FakeRegistry
from tests.images.test_pull import MACHINE, config_for, left_over, sample, wrong_bytes

image = functools.partial(image_for, architecture=MACHINE)


class Brake:
    """Holds the first call of a function, in its thread, until it is released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, *, after: bool = False) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        real = getattr(owner, name)

        def held(*arguments: object, **options: object) -> object:
            first = not self.reached.is_set()
            result = real(*arguments, **options) if after else None
            if first:
                self.reached.set()
                assert self.go.wait(20)
            return result if after else real(*arguments, **options)

        monkeypatch.setattr(owner, name, held)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
async def images(tmp_path: Path, registry: FakeRegistry) -> AsyncIterator[Images]:
    registry.add("app", sample(), tag="1")
    async with running_images(config_for(tmp_path, registry)) as running:
        yield running


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def left_at(brake: Brake, images: Images, name: str) -> None:
    """Pull *name*, leave when *brake* holds, let it go on, and wait for the end of the pull."""
    pull = asyncio.create_task(images.pull(name, None))
    await until(brake.reached.is_set)
    pull.cancel()
    await asyncio.sleep(0)
    brake.go.set()
    with pytest.raises(asyncio.CancelledError):
        await pull


def open_ingests() -> list[str]:
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:
            continue
    return [path for path in found if "/ingest/" in path]


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [
        (Index, "put_image", False),
        (Index, "put_image", True),
        (Index, "put_layer", False),
        (Blobs, "put", False),
        (Blobs, "put_record", False),
        (Ingest, "__init__", True),
        (Ingest, "follow", True),
        (Ingest, "finish", False),
        (Ingest, "close", False),
    ],
)
async def test_whoever_leaves_leaves_nothing_half(
    tmp_path: Path, registry: FakeRegistry, images: Images, monkeypatch: pytest.MonkeyPatch, owner, name, after
) -> None:
    brake = Brake(monkeypatch, owner, name, after=after)
    reference = f"{registry.host}/app:1"
    await left_at(brake, images, reference)
    store = images._store
    await left_over(tmp_path, images)
    await until(lambda: (store._leases, images.pulls(), open_ingests()) == (set(), (), []))
    kept = {document.digest for one in images.images() for document in one.documents}
    assert set(store.blobs.present()) == kept
    for one in images.images():
        assert await images.config_bytes(one)
    found = await images.pull(reference, None)
    assert await images.config_bytes(found)
    assert registry.count("GET", found.layers[0].blob.hex) <= 2


async def test_the_end_of_one_download_does_not_touch_the_next(
    registry: FakeRegistry, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = sample().layers[0].digest
    registry.on("GET", f"/blobs/{blob}", status(404), times=1)
    brake = Brake(monkeypatch, Ingest, "close")
    first = asyncio.create_task(images.pull(f"{registry.host}/app:1", None))
    await until(brake.reached.is_set)
    first.cancel()
    second = asyncio.create_task(images.pull(f"{registry.host}/app:1", None))
    await asyncio.sleep(0)
    brake.go.set()
    await asyncio.gather(first, return_exceptions=True)
    assert (await second).tags


async def test_a_removal_that_fails_half_way_is_finished_by_the_next(
    tmp_path: Path, registry: FakeRegistry, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(_: Helper, names: tuple[str, ...]) -> None:
        raise HelperFailed(f"no helper for {len(names)} layers")

    await images.pull(f"{registry.host}/app:1", None)
    with monkeypatch.context() as broken:
        broken.setattr(Helper, "trash", dead)
        await images.remove(f"{registry.host}/app:1")
    assert images.images() == ()
    registry.add("other", image(layer({"z": b"1"})), tag="1")
    await images.pull(f"{registry.host}/other:1", None)
    await images.remove(f"{registry.host}/other:1", 5.0)
    assert await left_over(tmp_path, images) == []
    assert (await images.pull(f"{registry.host}/app:1", None)).tags


async def test_a_removal_that_the_index_refuses_changes_nothing(
    registry: FakeRegistry, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise StoreDamaged("the disk fails")

    await images.pull(f"{registry.host}/app:1", None)
    catalog = images._store.catalog
    before = (dict(catalog.layers), set(catalog.proofs))
    with monkeypatch.context() as broken:
        broken.setattr(Index, "drop_layers", refused)
        with pytest.raises(StoreDamaged):
            await images.remove(f"{registry.host}/app:1")
    assert (catalog.layers, catalog.proofs) == before


async def test_a_directory_of_somebody_else_is_left_alone(tmp_path: Path, registry: FakeRegistry) -> None:
    config = config_for(tmp_path, registry)
    async with running_images(config):
        (tmp_path / "root/overlay/lost+found").mkdir()
        (tmp_path / "root/ingest/directory").mkdir()
    async with running_images(config) as images:
        await images._store.emptied()
        assert (tmp_path / "root/overlay/lost+found").is_dir()


async def test_the_host_that_sent_the_rest_is_not_blamed_for_the_start(tmp_path: Path, registry: FakeRegistry) -> None:
    wanted = image(layer({"a": os.urandom(50_000)}, compression="none"))
    registry.add("app", wanted, tag="1")
    digest = wanted.layers[0].digest
    with FakeRegistry() as mirror:
        mirror.add("app", wanted, tag="1")
        mirror._blobs["app", digest] = bytes(20_000) + wrong_bytes(wanted.layers[0].blob)[20_000:]
        mirror.on("GET", f"/blobs/{digest}", cut(30_000))
        config = config_for(tmp_path, registry)
        hosts = f'server = "{registry.url}"\n[host."{mirror.url}"]\n'
        (tmp_path / "certs.d" / registry.host / "hosts.toml").write_text(hosts)
        async with running_images(config) as images:
            assert (await images.pull(f"{registry.host}/app:1", None)).tags


async def test_two_indexes_over_one_image_cost_one_head_each(registry: FakeRegistry, images: Images) -> None:
    one = image(layer({"a": b"1"}))
    far = image_for(layer({"b": b"2"}), architecture="s390x")
    registry.add("multi", index(one), tag="1")
    registry.add("multi", index(one, far), tag="2")
    for tag in ("1", "2"):
        await images.pull(f"{registry.host}/multi:{tag}", None)
    registry.forget()
    for tag in ("1", "2", "1"):
        await images.pull(f"{registry.host}/multi:{tag}", None)
    assert [seen.method for seen in registry.requests()] == ["HEAD"] * 3


async def test_a_document_that_went_is_fetched_again_by_the_next_pull(registry: FakeRegistry, images: Images) -> None:
    found = await images.pull(f"{registry.host}/app:1", None)
    images._store.blobs.path(found.id).write_bytes(b"rot")
    with pytest.raises(StoreDamaged, match="pull the image again"):
        await images.config_bytes(found)
    again = await images.pull(f"{registry.host}/app:1", None)
    assert await images.config_bytes(again)


async def test_a_record_beside_the_config_knows_the_names(
    tmp_path: Path, registry: FakeRegistry, images: Images
) -> None:
    found = await images.pull(f"{registry.host}/app:1", None)
    record = (tmp_path / "root/blobs/sha256" / f"{found.id.hex}.image.json").read_text()
    assert all(name in record for name in found.names)
    assert parse_reference(found.tags[0]).tag == "1"
