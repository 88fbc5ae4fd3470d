"""Places for downloads: who gets the next one."""

from __future__ import annotations

import asyncio

import pytest

from cri_shim.images.turns import Turns
from cri_shim.registry.flow import Flow, Payers


class Crowd:
    """Those who come for a place; `order` has the names of those that got one."""

    def __init__(self, most: int) -> None:
        self.turns = Turns(most)
        self.order: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.doors: dict[str, asyncio.Event] = {}

    async def come(self, name: str, flow: Flow | Payers) -> None:
        """Come, and have a place or wait when this returns."""
        payers = flow if isinstance(flow, Payers) else Payers(flow)
        self.doors[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._stay(name, payers))
        await settled()

    async def leave(self, name: str) -> None:
        self.doors[name].set()
        await self.tasks[name]
        await settled()

    async def give_up(self, name: str) -> None:
        self.tasks[name].cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.tasks[name]
        await settled()

    async def _stay(self, name: str, payers: Payers) -> None:
        async with self.turns.turn(payers):
            self.order.append(name)
            await self.doors[name].wait()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_free_place_goes_to_the_image_that_has_the_fewest_and_the_last_to_one_that_has_none():
    crowd, many, one, other = Crowd(3), Flow("many"), Flow("one"), Flow("other")
    for number in range(6):
        await crowd.come(f"many{number}", many)
    assert crowd.order == ["many0", "many1"]
    await crowd.come("one", one)
    assert crowd.order == ["many0", "many1", "one"]
    await crowd.come("other0", other)
    await crowd.come("other1", other)
    assert crowd.order == ["many0", "many1", "one"]
    await crowd.leave("many0")
    assert crowd.order[3:] == ["other0"]
    await crowd.leave("many1")  # the first image has none any more
    assert crowd.order[4:] == ["many2"]
    await crowd.leave("one")
    assert crowd.order[5:] == []  # both that wait have one
    await crowd.leave("many2")
    assert crowd.order[5:] == ["many3"]


async def test_heavier_images_have_more_and_the_light_one_has_one_all_the_same():
    crowd, before = Crowd(6), Flow("before", 1000)
    system, ordinary = Flow("system", 400), Flow("ordinary", 100)
    for number in range(5):
        await crowd.come(f"before{number}", before)
    for number in range(6):
        await crowd.come(f"o{number}", ordinary)
        await crowd.come(f"s{number}", system)
    got = crowd.order[5:]
    assert got == ["o0"]  # it came first, and the last place was for one that had none
    for number in range(5):
        await crowd.leave(f"before{number}")
    assert crowd.order[6:] == ["s0", "s1", "s2", "s3"]  # and the last is kept again


async def test_without_another_place_the_only_one_is_everybodys():
    crowd, one = Crowd(1), Flow("one")
    await crowd.come("a", one)
    await crowd.come("b", one)
    assert crowd.order == ["a"]
    await crowd.leave("a")
    assert crowd.order == ["a", "b"]


async def test_who_gives_up_takes_no_place():
    crowd, flow = Crowd(1), Flow("a")
    for name in "xyz":
        await crowd.come(name, flow)
    await crowd.give_up("y")
    await crowd.leave("x")
    assert crowd.order == ["x", "z"]
    await crowd.give_up("z")
    await crowd.come("after", flow)
    assert crowd.order == ["x", "z", "after"]


async def test_who_is_given_a_place_in_the_moment_it_gives_up_gives_it_back():
    crowd, flow = Crowd(1), Flow("a")
    await crowd.come("x", flow)
    await crowd.come("y", flow)
    await crowd.come("z", flow)
    crowd.doors["x"].set()
    while crowd.turns.waiting == 2:
        await asyncio.sleep(0)
    crowd.tasks["y"].cancel()  # it has its place, and has not run yet
    await settled()
    assert crowd.order[-1] == "z"
    assert crowd.turns.waiting == 0


async def test_a_layer_that_becomes_more_urgent_while_it_waits_counts_as_that():
    crowd = Crowd(1)
    light, ordinary, heavy = Flow("light", 50), Flow("ordinary"), Flow("heavy", 400)
    payers = Payers(light)
    await crowd.come("first", ordinary)
    await crowd.come("ordinary", ordinary)
    await crowd.come("shared", payers)
    with payers.shared_by(heavy):
        await crowd.leave("first")
    assert crowd.order == ["first", "shared"]
