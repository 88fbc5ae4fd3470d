"""Pulls that go on after their last caller has left: for a while, for whoever may have them, and not beyond the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from cri_shim.auth.credential import from_auth_config
from cri_shim.errors import Unauthenticated
from cri_shim.images.service import Images
from cri_shim.server.build import running_images
from tests.fakes.misbehaviour import Gate
from tests.fakes.registry import Basic, FakeRegistry
from tests.images.test_interrupted import until
from tests.images.test_pull import config_for, left_over, sample


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        fake.add("app", sample(), tag="1")
        yield fake


async def left(images: Images, registry: FakeRegistry, given=None) -> Gate:
    """Pull, leave when a blob was asked for, and return the gate that holds the blobs."""
    gate = registry.hold("/blobs/")
    pull = asyncio.create_task(images.pull(f"{registry.host}/app:1", given))
    await until(lambda: registry.count("GET", "/blobs/"))
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    return gate


async def test_the_next_caller_finds_the_pull_under_way(tmp_path: Path, registry: FakeRegistry) -> None:
    async with running_images(config_for(tmp_path, registry, pull_grace_seconds=3600)) as images:
        gate = await left(images, registry)
        (running,) = images.pulls()
        again = asyncio.create_task(images.pull(f"{registry.host}/app:1", None))
        gate.release()
        assert (await again).tags
        assert running.phase == "done"
    assert registry.count("GET", "/manifests/") == 1


async def test_it_comes_to_its_end_with_nobody(tmp_path: Path, registry: FakeRegistry) -> None:
    async with running_images(config_for(tmp_path, registry, pull_grace_seconds=3600)) as images:
        gate = await left(images, registry)
        gate.release()
        await until(images.images)
        assert images.find(f"{registry.host}/app:1")


async def test_who_may_not_have_it_gets_nothing_of_it(tmp_path: Path, registry: FakeRegistry) -> None:
    registry.auth = Basic({"ada": "word-of-ada", "bob": "word-of-bob"})
    ada, bob = (from_auth_config(name, f"word-of-{name}", "", "", "", "") for name in ("ada", "bob"))
    async with running_images(config_for(tmp_path, registry, pull_grace_seconds=3600)) as images:
        gate = await left(images, registry, ada)
        for nobody in (None, from_auth_config("ada", "x", "", "", "", "")):
            with pytest.raises(Unauthenticated):
                await images.pull(f"{registry.host}/app:1", nobody)
        blobs = registry.count("GET", "/blobs/")
        joining = asyncio.create_task(images.pull(f"{registry.host}/app:1", bob))
        await until(lambda: len(images.pulls()) == 2)
        gate.release()
        assert (await joining).tags
        layers = [seen.path for seen in registry.requests("GET", "/blobs/") if sample().id not in seen.path]
        assert len(layers) == len(set(layers)) == 2
        assert blobs >= 1


async def test_it_ends_with_the_daemon_and_leaves_nothing(tmp_path: Path, registry: FakeRegistry) -> None:
    async with running_images(config_for(tmp_path, registry, pull_grace_seconds=3600)) as images:
        await left(images, registry)
        await images.close()
        assert (images.pulls(), images.images(), await left_over(tmp_path, images)) == ((), (), [])


async def test_it_ends_when_the_grace_is_over(tmp_path: Path, registry: FakeRegistry) -> None:
    async with running_images(config_for(tmp_path, registry, pull_grace_seconds=1)) as images:
        await left(images, registry)
        await until(lambda: not images.pulls())
        assert (images.images(), await left_over(tmp_path, images)) == ((), [])
