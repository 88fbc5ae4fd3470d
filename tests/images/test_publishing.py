"""When a runtime is given an image, and when it is taken away: real pulls, a hand-off in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cri_shim.errors import HandOffFailed
from cri_shim.images import publishing
from cri_shim.images.service import Images
from cri_shim.server import build, give
from cri_shim.store import store as store_module
from cri_shim.store.image import Image
from tests.fakes.handoff import FakeHandOff
from tests.fakes.registry import FakeRegistry
from tests.images.test_interrupted import until
from tests.images.test_pull import config_for, sample


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        fake.add("app", sample(), tag="1")
        yield fake


@pytest.fixture
def handoff() -> FakeHandOff:
    return FakeHandOff()


@asynccontextmanager
async def running(
    tmp_path: Path, registry: FakeRegistry, handoff: FakeHandOff, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Images]:
    monkeypatch.setattr(build, "handoffs_of", lambda _config, _store: ((handoff,), ()))
    async with build.running_images(config_for(tmp_path, registry)) as images:
        yield images


@pytest.fixture
async def images(
    tmp_path: Path, registry: FakeRegistry, handoff: FakeHandOff, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Images]:
    async with running(tmp_path, registry, handoff, monkeypatch) as started:
        yield started


def layers_of(tmp_path: Path) -> int:
    return sum(len(path.name) == 64 for path in (tmp_path / "root/overlay").iterdir())


async def test_a_pull_replies_when_the_runtime_has_the_image(
    images: Images, registry: FakeRegistry, handoff: FakeHandOff
) -> None:
    image = await images.pull(f"{registry.host}/app:1", None)
    assert handoff.seen == {image.id: image.names}
    again = await images.pull(f"{registry.host}/app:1", None)
    assert again is image
    assert handoff.calls == ["start", ("publish", image.id), ("publish", image.id)]
    assert images.status()["published"] == {"fake": {"state": "up"}}


async def test_a_hand_off_that_fails_fails_the_pull_and_hides_the_image(
    images: Images, registry: FakeRegistry, handoff: FakeHandOff
) -> None:
    handoff.fails.add("publish")
    with pytest.raises(HandOffFailed, match=r"^pull .*app:1: hand-off: the fake runtime does not publish$"):
        await images.pull(f"{registry.host}/app:1", None)
    (image,) = images.images()
    assert await images.usable(str(image.id)) is None
    handoff.fails.clear()
    assert await images.pull(f"{registry.host}/app:1", None) is image
    assert await images.usable(str(image.id)) is image


async def test_an_image_that_loses_its_name_is_told_after_the_one_that_takes_it(
    images: Images, registry: FakeRegistry, handoff: FakeHandOff
) -> None:
    old = await images.pull(f"{registry.host}/app:1", None)
    registry.add("app", sample(b"other"), tag="1")
    new = await images.pull(f"{registry.host}/app:1", None)
    assert handoff.calls[-2:] == [("publish", new.id), ("rename", old.id)]
    assert {image.id: image.names for image in images.images()} == handoff.seen
    assert f"{registry.host}/app:1" in handoff.seen[new.id]


async def test_the_runtime_forgets_an_image_before_its_layers_go(
    tmp_path: Path, images: Images, registry: FakeRegistry, handoff: FakeHandOff
) -> None:
    image = await images.pull(f"{registry.host}/app:1", None)
    images._store._grace.clear()
    await images.remove(str(image.id))
    assert handoff.calls[-2:] == [("retract", image.id), ("in_use", frozenset(image.layer_names))]
    assert (handoff.seen, images.images(), layers_of(tmp_path)) == ({}, (), 0)


async def test_a_runtime_that_must_keep_an_image_stops_its_removal(
    images: Images, registry: FakeRegistry, handoff: FakeHandOff
) -> None:
    image = await images.pull(f"{registry.host}/app:1", None)
    handoff.fails.add("retract")
    with pytest.raises(HandOffFailed):
        await images.remove(str(image.id))
    assert images.images() == (image,)


async def test_an_image_that_is_replaced_is_there_for_whoever_asks_meanwhile(
    images: Images, registry: FakeRegistry, handoff: FakeHandOff
) -> None:
    image = await images.pull(f"{registry.host}/app:1", None)
    handoff.held = asyncio.Event()
    replacing = asyncio.create_task(images._publishing.replace(image))
    await until(lambda: handoff.at_once)
    assert await images.usable(str(image.id)) is image
    handoff.held.set()
    await replacing
    assert handoff.calls[-2:] == [("retract", image.id), ("publish", image.id)]
    assert handoff.seen == {image.id: image.names}


@pytest.mark.parametrize("failing", ["", "in_use"])
async def test_a_layer_in_use_stays_until_it_is_not(
    tmp_path: Path,
    images: Images,
    registry: FakeRegistry,
    handoff: FakeHandOff,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
) -> None:
    monkeypatch.setattr(store_module, "USED_SECONDS", 0.01)
    image = await images.pull(f"{registry.host}/app:1", None)
    images._store._grace.clear()
    handoff.used = frozenset(image.layer_names[:1])
    handoff.fails = {failing}
    await images.remove(str(image.id))
    assert images.images() == ()
    assert layers_of(tmp_path) == (2 if failing else 1)
    handoff.used, handoff.fails = frozenset(), set()
    await until(lambda: layers_of(tmp_path) == 0)


async def test_what_lies_here_is_published_at_the_start(
    tmp_path: Path, registry: FakeRegistry, handoff: FakeHandOff, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, registry, FakeHandOff(), monkeypatch) as images:
        image = await images.pull(f"{registry.host}/app:1", None)
    async with running(tmp_path, registry, handoff, monkeypatch):
        await until(lambda: handoff.seen)
        assert handoff.seen == {image.id: image.names}
        handoff.seen.clear()  # the runtime lost everything and came back
        handoff.renew()
        handoff.renew()
        await until(lambda: handoff.seen)
    assert handoff.calls[-1] == "stop"


async def test_one_that_cannot_be_published_at_the_start_stops_nothing(
    tmp_path: Path, registry: FakeRegistry, handoff: FakeHandOff, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, registry, FakeHandOff(), monkeypatch) as images:
        image = await images.pull(f"{registry.host}/app:1", None)
    handoff.fails.add("publish")
    async with running(tmp_path, registry, handoff, monkeypatch) as images:
        await until(lambda: ("publish", image.id) in handoff.calls)
        assert images.images() == (image,)


async def test_one_that_cannot_be_published_at_the_start_is_tried_again(
    tmp_path: Path, registry: FakeRegistry, handoff: FakeHandOff, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(publishing, "LONGEST_PAUSE_SECONDS", 0.02)
    async with running(tmp_path, registry, FakeHandOff(), monkeypatch) as images:
        image = await images.pull(f"{registry.host}/app:1", None)
    handoff.fails.add("publish")
    async with running(tmp_path, registry, handoff, monkeypatch):
        await until(lambda: handoff.calls.count(("publish", image.id)) > 1)
        handoff.fails.clear()
        await until(lambda: handoff.seen == {image.id: image.names})


async def test_a_renewal_that_hangs_holds_up_no_stop(
    tmp_path: Path, registry: FakeRegistry, handoff: FakeHandOff, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "STOP_SECONDS", 0.05)
    async with running(tmp_path, registry, FakeHandOff(), monkeypatch) as images:
        image = await images.pull(f"{registry.host}/app:1", None)
    handoff.held = asyncio.Event()
    async with asyncio.timeout(30), running(tmp_path, registry, handoff, monkeypatch):
        await until(lambda: ("publish", image.id) in handoff.calls)
    assert handoff.calls[-1] == "stop"
    handoff.held.set()


async def test_calls_about_one_image_never_overlap(
    images: Images, registry: FakeRegistry, handoff: FakeHandOff
) -> None:
    name = f"{registry.host}/app:1"
    await images.pull(name, None)
    works = [images.pull(name, None), images.remove(name), images.pull(name, None), images.usable(name)]
    await asyncio.gather(*works, *(images._publishing.publish(image) for image in images.images()))
    assert handoff.most_at_once == 1
    assert {image.id for image in images.images()} == set(handoff.seen)


async def test_an_image_that_is_removed_while_its_pull_waits_is_pulled_again(
    images: Images, registry: FakeRegistry, handoff: FakeHandOff
) -> None:
    name = f"{registry.host}/app:1"
    await images.pull(name, None)
    handoff.held = asyncio.Event()
    removal = asyncio.create_task(images.remove(name))
    await until(lambda: handoff.at_once)
    pull = asyncio.create_task(images.pull(name, None))
    await until(lambda: [progress.phase for progress in images._puller.running.values()] == ["publishing"])
    handoff.held.set()
    await removal
    image = await pull
    assert images.images() == (image,)
    assert handoff.seen == {image.id: image.names}


async def test_an_image_that_is_always_removed_fails_its_pull(images: Images, registry: FakeRegistry) -> None:
    given = []

    async def removed(image: Image) -> None:
        given.append(image.id)
        await images.remove(str(image.id))

    images._puller._publish = removed
    with pytest.raises(HandOffFailed, match="it was removed while it was pulled, 5 times"):
        await images.pull(f"{registry.host}/app:1", None)
    assert len(given) == 5


async def test_a_caller_that_leaves_cuts_no_hand_off_short(
    images: Images, registry: FakeRegistry, handoff: FakeHandOff
) -> None:
    handoff.held = asyncio.Event()
    pull = asyncio.create_task(images.pull(f"{registry.host}/app:1", None))
    await until(lambda: handoff.at_once)
    (image,) = images.images()
    assert await images.usable(str(image.id)) is None  # it is being given, and not there yet: no waiting
    pull.cancel()
    await asyncio.sleep(0)
    handoff.held.set()
    with pytest.raises(asyncio.CancelledError):
        await pull
    assert handoff.seen == {image.id: image.names}
    assert await images.usable(str(image.id)) is image


async def test_a_runtime_that_does_not_answer_holds_up_no_status(
    images: Images, registry: FakeRegistry, handoff: FakeHandOff, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "VERIFY_SECONDS", 0.01)
    image = await images.pull(f"{registry.host}/app:1", None)
    handoff.held = asyncio.Event()
    assert await images.usable(str(image.id)) is image
    handoff.held.set()


def test_the_runtime_implies_its_hand_off(tmp_path: Path, registry: FakeRegistry) -> None:
    config = config_for(tmp_path, registry)

    def names(**changes: object) -> frozenset[str]:
        return give.names_of(type(config)(**changes))  # type: ignore[arg-type]

    assert names() == frozenset()
    assert names(runtime="cri-o") == {"containers-storage"}
    assert names(runtime="containerd") == {"containerd"}
    assert names(runtime="containerd", publish=("containers-storage",)) == {"containerd", "containers-storage"}
