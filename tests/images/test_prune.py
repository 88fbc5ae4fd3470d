"""Throwing away what is not needed: what must stay, and that the numbers told beforehand are right to the byte."""

from __future__ import annotations

import random

import pytest

from cri_shim.errors import HandOffFailed, InvalidRequest
from cri_shim.images.prune import freed_bytes
from cri_shim.server.build import running_images
from cri_shim.server.convert import Spelling
from cri_shim.server.dfpage import df_page, leftovers
from cri_shim.server.prunepage import prune_page
from tests.fakes.images import layer
from tests.fakes.registry import FakeRegistry
from tests.images.test_resume import interrupted, large
from tests.server.pulling import config_for, image


@pytest.fixture
def registry():
    with FakeRegistry() as fake:
        yield fake


def listed(images) -> int:
    """What the images take, counted from what is here, as the kubelet is told it."""
    return images.figures().room_bytes["images"]


async def test_the_numbers_are_right_for_any_set_of_images(tmp_path, registry):
    """Images that share layers in every way, a layer twice in one image, and layers that need a form of their own."""
    dice = random.Random(7)
    layers = [layer({f"f{number}": b"x" * dice.randrange(9000), "d/g": b"y"}) for number in range(5)]
    layers.append(layer({"d/.wh.g": b""}))  # as the lowest it must not have its whiteout: a form
    wanted = [image(*dice.choices(layers, k=dice.randrange(1, 5)), env=f"N={number}") for number in range(8)]
    for number, one in enumerate(wanted):
        registry.add("app", one, tag=str(number))
    async with running_images(config_for(tmp_path, registry)) as images:
        held = {(await images.pull(f"{registry.host}/app:{number}", None)).id for number in range(len(wanted))}
        images._store.end_grace()
        await images._store.collect()
        totals = (await df_page(images))["totals_bytes"]
        assert totals["layers of images"] + totals["manifests and configs"] == listed(images)
        while held:
            chosen = set(dice.sample(sorted(held, key=str), min(len(held), dice.randrange(1, 4))))
            plan = await images.prune.plan(lambda one, chosen=chosen: one.id in chosen)
            before = listed(images)
            pruned = await images.prune.run(plan)
            assert (pruned.left, before - listed(images)) == ({}, plan.images_bytes)
            held -= chosen
        assert images.usage().used_bytes == 0


async def test_what_no_image_needs_goes_and_df_has_its_numbers(tmp_path, registry):
    wanted = large()
    registry.add("app", wanted, tag="1")
    registry.add("bad", image(layer({"a": b"1" * 999}), layer({"b": b"2"})), tag="1")
    async with running_images(config_for(tmp_path, registry)) as images:
        kept = await interrupted(images, registry, wanted)
        await images.pull(f"{registry.host}/bad:1", None)
        image_here = images.images()[0]
        async with images._store.lease() as lease:  # as of a pull that fails after its first layer
            lease.hold(image_here.layers[0].name)
            await images.remove(str(image_here.id))
            assert leftovers(images.prune.planned()) == {"interrupted pulls": kept, "layers without an image": 0}
        page = await df_page(images)
        left = leftovers(images.prune.planned())
        assert left == {"interrupted pulls": kept, "layers without an image": image_here.layers[0].unpacked_bytes}
        assert {kind: page["totals_bytes"][kind] for kind in left} == left
        await images.prune.run(images.prune.planned())
        assert images.usage().used_bytes == 0


async def test_what_is_mounted_stays(tmp_path, registry):
    base = layer({"base": b"1"})
    registry.add("app", image(base, layer({"a": b"1"})), tag="1")
    registry.add("app", image(base, layer({"b": b"1"})), tag="2")
    async with running_images(config_for(tmp_path, registry)) as images:
        one, two = [await images.pull(f"{registry.host}/app:{tag}", None) for tag in "12"]

        async def mounted(names):
            return names & frozenset(one.layer_names)

        images.prune._publishing.mounted = mounted
        plan = await images.prune.plan(lambda _: True)
        assert plan.images == (two,)
        assert plan.images_bytes == freed_bytes(images._store.catalog, (two,))


async def test_an_image_that_a_runtime_keeps_is_told(tmp_path, registry):
    registry.add("app", image(layer({"a": b"1"})), tag="1")
    async with running_images(config_for(tmp_path, registry)) as images:
        await images.pull(f"{registry.host}/app:1", None)

        async def retract(_image, _then):
            raise HandOffFailed("it is in use")

        images.prune._publishing.retract = retract
        page = await prune_page(images, Spelling("none"), {"what": "all"})
        assert page["left"] == {f"{registry.host}/app:1": "it is in use"}
        assert len(images.images()) == 1
        for query in ({"what": "everything"}, {}):  # who asks for every page there is must throw nothing away
            with pytest.raises(InvalidRequest, match="what is one of none, untagged, all"):
                await prune_page(images, Spelling("none"), query)
