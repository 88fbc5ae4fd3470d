"""Who pays for a layer's bytes while it is fetched: the heaviest image that waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from cri_shim.images.service import Images
from cri_shim.server.build import running_images
from tests.fakes.images import layer
from tests.fakes.registry import FakeRegistry
from tests.images.test_pull import config_for, image


@pytest.fixture
def registry() -> AsyncIterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
async def images(tmp_path: Path, registry: FakeRegistry) -> AsyncIterator[Images]:
    async with running_images(config_for(tmp_path, registry)) as running:
        yield running


def payers(images: Images) -> dict[str, tuple[str, int]]:
    """What pays for each blob that is on its way: the name and the weight of an image."""
    found = {transfer.blob: transfer.payers.heaviest for transfer in images._layers.transfers}
    return {blob: (flow.name.rpartition("/")[2], flow.weight) for blob, flow in found.items()}


async def test_a_heavier_caller_makes_the_pull_heavier_for_as_long_as_it_waits(
    registry: FakeRegistry, images: Images
) -> None:
    registry.add("app", image(layer({"a": b"a"})), tag="1")
    name, gate = f"{registry.host}/app:1", registry.hold("/blobs/")
    light = asyncio.create_task(images.pull(name, None, 50))
    while not images.pulls():
        await asyncio.sleep(0)
    assert [pull.as_json()["weight"] for pull in images.pulls()] == [50]
    heavy = asyncio.create_task(images.pull(name, None, 400))
    while images.pulls()[0].flow.weight == 50:
        await asyncio.sleep(0)
    assert [pull.as_json()["weight"] for pull in images.pulls()] == [400]
    heavy.cancel()
    with suppress(asyncio.CancelledError):
        await heavy
    assert [pull.as_json()["weight"] for pull in images.pulls()] == [50]
    gate.release()
    assert (await light).tags == (name,)


async def test_a_layer_of_two_images_is_paid_by_the_heavier_and_their_own_layers_by_each(
    registry: FakeRegistry, images: Images
) -> None:
    base, one, two = layer({"base": b"b"}), layer({"one": b"1"}), layer({"two": b"2"})
    registry.add("team/app", image(base, one), tag="light")
    registry.add("team/app", image(base, two), tag="heavy")
    gates = [registry.hold(f"/blobs/{each.digest}") for each in (base, one, two)]
    light = asyncio.create_task(images.pull(f"{registry.host}/team/app:light", None, 50))
    while len(payers(images)) < 2:
        await asyncio.sleep(0)
    assert payers(images) == {str(base.digest): ("app:light", 50), str(one.digest): ("app:light", 50)}
    heavy = asyncio.create_task(images.pull(f"{registry.host}/team/app:heavy", None, 400))
    while len(payers(images)) < 3 or payers(images)[str(base.digest)][1] == 50:
        await asyncio.sleep(0)
    assert payers(images) == {
        str(base.digest): ("app:heavy", 400),
        str(one.digest): ("app:light", 50),
        str(two.digest): ("app:heavy", 400),
    }
    heavy.cancel()
    with suppress(asyncio.CancelledError):
        await heavy
    assert payers(images)[str(base.digest)] == ("app:light", 50)
    for gate in gates:
        gate.release()
    await light
