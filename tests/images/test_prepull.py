"""Images that a node is to have before anybody asks: their order, their failures, what is told about them."""

from __future__ import annotations

import asyncio

import pytest

from cri_shim.config.schema import Config, PrepullConfig
from cri_shim.errors import ConfigError, RegistryUnavailable
from cri_shim.images import prepull as prepull_module
from cri_shim.images.prepull import Prepull
from cri_shim.server.keep import pinned_of, prepull_of
from cri_shim.server.reach import problems_of
from tests.server.conftest import make_image


class Node:
    """Images that come when they are pulled, after as many failures as `fails` says."""

    def __init__(self, **fails):
        self.here, self.fails, self.asked = {}, fails, []
        self.at_once = self.most_at_once = 0

    async def usable(self, name):
        return self.here.get(name)

    async def pull(self, name, given):
        assert given is None
        self.asked.append(name)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if self.fails.get(name, 0):
            self.fails[name] -= 1
            raise RegistryUnavailable(f"no way to {name}")
        return self.here.setdefault(name, make_image())


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(prepull_module, "FIRST_PAUSE_SECONDS", 0.0)


def wanting(*names, first_alone=True):
    return Prepull(names, first_alone=first_alone, longest_pause_seconds=300)


async def test_the_sandbox_comes_first_and_alone():
    node, prepull = Node(), wanting("pause", "a", "b", "c", "d", "e")
    await prepull.run(node)
    assert node.asked[0] == "pause"
    assert set(node.here) == {"pause", "a", "b", "c", "d", "e"}
    assert node.most_at_once == prepull_module.AT_ONCE
    assert {row["state"] for row in prepull.status()} == {"here"}


async def test_what_fails_is_tried_until_it_is_here_and_holds_up_nobody():
    node, prepull = Node(pause=3, a=1), wanting("pause", "a", "b")
    await prepull.run(node)
    assert node.asked[:2] == ["pause", "a"]
    assert set(node.here) == {"pause", "a", "b"}
    assert [row["tries"] for row in prepull.status()] == [4, 2, 1]
    assert not any("failure" in row for row in prepull.status())


async def test_what_is_here_asks_no_registry():
    node = Node()
    node.here["pause"] = make_image()
    await wanting("pause", "pause").run(node)
    assert node.asked == []


async def test_a_failure_is_told_with_its_next_try(monkeypatch):
    monkeypatch.setattr(prepull_module, "FIRST_PAUSE_SECONDS", 1000.0)
    node, prepull = Node(pause=1, a=1), wanting("pause", "a")
    running = asyncio.create_task(prepull.run(node))
    while [row["state"] for row in prepull.status()] != ["failed", "failed"]:
        await asyncio.sleep(0)
    running.cancel()
    told = prepull.status()[0]
    assert (told["state"], told["tries"], told["failure"]) == ("failed", 1, "no way to pause")
    assert 200 < told["next_try_seconds"] <= 375  # 300 are the most, a quarter more or less


def test_the_configuration_names_them_in_order_and_pins_them():
    config = Config(pinned=("x*",), prepull=PrepullConfig(sandbox="reg.io/pause:3", images=("reg.io/a:1", "b")))
    assert [row["name"] for row in prepull_of(config).status()] == ["reg.io/pause:3", "reg.io/a:1", "b"]
    assert pinned_of(config) == ("x*", "reg.io/pause:3", "reg.io/a:1", "b")


def test_a_name_that_is_none_is_told_before_the_start():
    config = Config(prepull=PrepullConfig(images=("Not A Name",)))
    with pytest.raises(ConfigError, match=r"^\[prepull\]: "):
        prepull_of(config)
    assert [problem for problem in problems_of(config, {}) if problem.startswith("[prepull]")]
