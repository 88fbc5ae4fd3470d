"""What a start costs, counted and not timed: for an image, and for a layer, always the same, however many there are."""

from __future__ import annotations

import gc
import sqlite3
import sys
from collections import Counter
from concurrent.futures import Executor, Future
from types import BuiltinFunctionType, FrameType
from typing import TYPE_CHECKING, Any, Self

import pytest

from cri_shim.store.layout import Layout
from cri_shim.store.store import Store, Threads
from rootfs import commit
from rootfs.connection import Job
from rootfs.layout import open_layout
from tests.load.seeding import seed_apart

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LAYERS = 2


class AtOnce(Executor):
    """Everything in the thread that asks, where it can be counted."""

    def submit(self, fn: Callable[..., Any], /, *args: object, **more: object) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **more))
        return done


class HelperHere:
    """What the helper does at a start, in this process."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)

    def recover(self) -> Job[tuple[commit.Found, ...]]:
        return self._done(commit.recover(open_layout(self._root)))

    def empty_trash(self) -> Job[tuple[()]]:
        return self._done(())

    @staticmethod
    def _done(result: Any) -> Job[Any]:
        job: Job[Any] = Job(lambda _: None)
        job.future.set_result(result)
        return job


class Costs:
    """Calls of any kind, and among them what the kernel and SQLite were asked for."""

    def __init__(self) -> None:
        self.calls = 0
        self.asked: Counter[str] = Counter()

    def __enter__(self) -> Self:
        gc.collect()
        gc.disable()  # what others have left is not our cost
        sys.setprofile(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        gc.enable()

    def _called(self, _frame: FrameType, event: str, what: object) -> None:
        self.calls += event in ("call", "c_call")
        if event == "c_call" and isinstance(what, BuiltinFunctionType):
            if what.__module__ in ("posix", "_io") and what.__name__ != "fspath":
                self.asked[what.__name__] += 1
            elif isinstance(what.__self__, sqlite3.Connection):
                self.asked["SQL"] += what.__name__.startswith("execute")


async def start(root: Path) -> Costs:
    threads = Threads(AtOnce(), AtOnce(), AtOnce())
    layout = Layout(root)
    with Costs() as costs:
        layout.prepare()
        store = await Store.open(layout, HelperHere(root), threads)  # type: ignore[arg-type]
    try:
        await store.emptied()
        costs.asked["images"] = len(store.catalog.images)
    finally:
        await store.close()
    return costs


@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
async def test_an_image_costs_a_start_the_same_however_many_there_are(tmp_path: Path, *, again: bool) -> None:
    """The first start makes the short names too, as one does whose links a power cut took away."""
    few, more, most = [await cost_of(tmp_path / str(count), count, again=again) for count in (20, 40, 80)]
    assert [costs.asked.pop("images") for costs in (few, more, most)] == [20, 40, 80]
    for name in most.asked:
        assert most.asked[name] - more.asked[name] == 2 * (more.asked[name] - few.asked[name]), name
    assert most.calls - more.calls < 3 * (more.calls - few.calls)  # twice, and some sorting; four times were a square
    for_one = {name: (count - more.asked[name]) / 40 for name, count in most.asked.items()}
    assert (for_one["SQL"], for_one["fsync"], for_one["listdir"]) == (0, 0, 0)
    assert max(most.asked[name] for name in ("SQL", "fsync", "listdir")) <= 20
    assert sum(for_one.values()) <= LAYERS * (16 if again else 20), for_one
    assert (most.calls - more.calls) / 40 <= 1000


async def test_no_file_of_a_layer_costs_a_start_anything(tmp_path: Path) -> None:
    root = tmp_path / "root"
    before = await cost_of(root, 3, again=True)
    for layer in (root / "overlay").glob("*/diff"):
        for number in range(100):
            (layer / str(number)).write_text("a file")
    assert (await start(root)).asked == before.asked


async def cost_of(root: Path, images: int, *, again: bool) -> Costs:
    seed_apart(root, images, layers=LAYERS)
    if again:
        await start(root)
    return await start(root)
