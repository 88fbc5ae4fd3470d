"""Downloads that were interrupted: the next pull fetches the rest, and nothing of it is believed before the whole is."""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cri_shim.errors import ContentRejected
from cri_shim.images import layers
from cri_shim.images.service import Images
from cri_shim.registry.reply import FULL_ENOUGH_BYTES
from cri_shim.server.build import running_images
from cri_shim.store.image import Usage
from rootfs.errors import LayerRejected, NoSpace
from rootfs.failpoints import arm
from tests.fakes.images import FakeImage, layer, layer_of_tar, to_json
from tests.fakes.images import image as image_for
from tests.fakes.misbehaviour import partly, status
from tests.fakes.registry import FakeRegistry
from tests.images.test_pull import MACHINE, config_for, wrong_bytes

image = functools.partial(image_for, architecture=MACHINE)
MIB = 1 << 20
CONTENT = os.urandom(6 * MIB)
SENT = 4 * MIB


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


def large(**more: bytes) -> FakeImage:
    return image(layer({"large": CONTENT, **more}, compression="none"))


async def arrived(images: Images, count: int) -> None:
    async with asyncio.timeout(30):
        while sum(one.arrived_bytes for one in images._layers.transfers) < count:
            await asyncio.sleep(0.002)


async def interrupted(images: Images, registry: FakeRegistry, wanted: FakeImage, repository: str = "app") -> int:
    """Pull, leave when SENT bytes have come, and return how many of them are kept."""
    gate = registry.gate()
    registry.on("GET", f"/blobs/{wanted.layers[0].digest}", partly(SENT, gate), times=1)
    pull = asyncio.create_task(images.pull(f"{registry.host}/{repository}:1", None))
    await arrived(images, SENT - FULL_ENOUGH_BYTES)
    before = sum(images._store.room(Usage(0, 0)).values(), Usage(0, 0))
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    gate.release()
    kept = images.usage().used_bytes - before.used_bytes
    assert images.usage() == before + Usage(kept, 2)
    assert SENT - FULL_ENOUGH_BYTES <= kept <= SENT
    return kept


def asked_for(registry: FakeRegistry, wanted: FakeImage) -> list[str | None]:
    return [seen.headers.get("range") for seen in registry.requests("GET", wanted.layers[0].digest)]


@pytest.mark.parametrize("restarted", [False, True])
async def test_the_next_pull_fetches_the_rest(tmp_path: Path, registry: FakeRegistry, restarted) -> None:
    wanted = large()
    registry.add("app", wanted, tag="1")
    config = config_for(tmp_path, registry)
    async with running_images(config) as images:
        kept = await interrupted(images, registry, wanted)
        if not restarted:
            found = await images.pull(f"{registry.host}/app:1", None)
    if restarted:
        async with running_images(config) as images:
            assert images.usage() == Usage(kept, 2)
            found = await images.pull(f"{registry.host}/app:1", None)
            (row,) = images.status()["recent"][-1]["layers"]
            assert row["resumed_bytes"] == kept
    assert asked_for(registry, wanted) == [None, f"bytes={kept}-"]
    content = tmp_path / "root/overlay" / found.layers[0].name / "diff/large"
    assert content.read_bytes() == CONTENT
    assert list((tmp_path / "root/ingest").iterdir()) == []


async def test_another_repository_gets_nothing_of_it(tmp_path: Path, registry: FakeRegistry) -> None:
    """Who may have the rest of a blob has not shown that it may have the whole."""
    wanted = large()
    registry.add("app", wanted, tag="1")
    registry.add("other", wanted, tag="1")
    async with running_images(config_for(tmp_path, registry)) as images:
        await interrupted(images, registry, wanted)
        await images.pull(f"{registry.host}/other:1", None)
    assert asked_for(registry, wanted) == [None, None]


@pytest.mark.parametrize("place", [100, SENT // 2])
async def test_a_start_that_rotted_is_fetched_again_once(tmp_path: Path, registry: FakeRegistry, place) -> None:
    wanted = large()
    registry.add("app", wanted, tag="1")
    async with running_images(config_for(tmp_path, registry)) as images:
        kept = await interrupted(images, registry, wanted)
        (blob,) = (path for path in (tmp_path / "root/ingest").iterdir() if path.suffix != ".map")
        with blob.open("r+b") as file:
            file.seek(place)
            file.write(b"rotten")
        found = await images.pull(f"{registry.host}/app:1", None)
    assert asked_for(registry, wanted) == [None, f"bytes={kept}-", None]
    assert (tmp_path / "root/overlay" / found.layers[0].name / "diff/large").read_bytes() == CONTENT


async def test_a_registry_that_is_wrong_is_blamed_after_the_second_time(tmp_path: Path, registry: FakeRegistry) -> None:
    wanted = large()
    registry.add("app", wanted, tag="1")
    async with running_images(config_for(tmp_path, registry)) as images:
        kept = await interrupted(images, registry, wanted)
        registry._blobs["app", wanted.layers[0].digest] = wrong_bytes(wanted.layers[0].blob)
        with pytest.raises(ContentRejected, match="whose digest is"):
            await images.pull(f"{registry.host}/app:1", None)
        assert asked_for(registry, wanted) == [None, f"bytes={kept}-", None]
        assert list((tmp_path / "root/ingest").iterdir()) == []
        assert images.usage().used_bytes == 0


async def test_an_empty_blob_that_is_wrong_is_refused_once(tmp_path: Path, registry: FakeRegistry) -> None:
    honest = large()
    manifest = json.loads(honest.manifest)
    manifest["layers"][0]["size"] = 0
    wrong = replace(honest, manifest=to_json(manifest))
    registry.add("app", wrong, tag="1")
    registry.on("GET", honest.layers[0].digest, status(200))
    async with asyncio.timeout(60), running_images(config_for(tmp_path, registry)) as images:
        with pytest.raises(ContentRejected, match="sent 0 bytes whose digest is"):
            await images.pull(f"{registry.host}/app:1", None)
    assert registry.count("GET", honest.layers[0].digest) == 1


@pytest.mark.parametrize("mirrored", [False, True])
async def test_the_rest_of_what_cannot_be_unpacked_is_not_fetched_when_it_is_large(
    tmp_path: Path, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch, *, mirrored: bool
) -> None:
    """SENT bytes of six MiB come, and then nothing; where there is another host it is asked for all of it."""
    monkeypatch.setattr(layers, "WEIGHED_BYTES", 6 * MIB - SENT - 1)
    wanted = large() if mirrored else image(layer_of_tar(b"x" * 6 * MIB, compression="none"))
    registry.add("app", wanted, tag="1")
    digest = wanted.layers[0].digest
    with FakeRegistry() as mirror:
        mirror.add("app", wanted, tag="1")
        mirror._blobs["app", digest] = b"x" * len(wanted.layers[0].blob)
        gate = mirror.gate()
        (mirror if mirrored else registry).on("GET", f"/blobs/{digest}", partly(SENT, gate))
        config = config_for(tmp_path, registry)
        if mirrored:
            hosts = f'server = "{registry.url}"\n[host."{mirror.url}"]\n'
            (tmp_path / "certs.d" / registry.host / "hosts.toml").write_text(hosts)
        async with asyncio.timeout(60), running_images(config) as images:
            if mirrored:
                assert (await images.pull(f"{registry.host}/app:1", None)).tags
            else:
                with pytest.raises(LayerRejected):
                    await images.pull(f"{registry.host}/app:1", None)
            gate.release()
        assert (mirror.count("GET", digest), registry.count("GET", digest)) == (int(mirrored), 1)
        assert not list((tmp_path / "root/ingest").iterdir())


async def test_a_layer_for_which_there_is_no_room_takes_along_what_the_others_have_of_theirs(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    small, big = layer({"small": b"1"}), layer({"large": CONTENT}, compression="none")
    registry.add("app", image(small, big), tag="1")
    first, second = registry.gate(), registry.gate()
    registry.on("GET", f"/blobs/{small.digest}", partly(1, first), times=1)
    registry.on("GET", f"/blobs/{big.digest}", partly(SENT, second), times=1)
    arm("layer.rename=errno:ENOSPC")
    try:
        async with running_images(config_for(tmp_path, registry)) as images:
            pull = asyncio.create_task(images.pull(f"{registry.host}/app:1", None))
            await arrived(images, SENT - FULL_ENOUGH_BYTES)
            first.release()
            with pytest.raises(NoSpace, match="No space left"):
                await pull
            second.release()
            assert images._store.room(Usage(0, 0))["ingest"] == Usage(0, 0)
            assert os.listdir(tmp_path / "root/ingest") == []
    finally:
        arm("")
