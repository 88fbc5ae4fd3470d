"""Kills at no step in particular: over parallel pulls and removals (K20), in the middle of start-up (K19), and over one
large blob, of which hardly more than its size may come over the wire.

CI makes a few dozen; CRI_SHIM_KILLS=500 and CRI_SHIM_BLOB_MIB=1024 (make durability) take minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import threading
import time

import pytest

from cri_shim.demo.client import Client
from cri_shim.errors import ShimError
from cri_shim.store.ingest import CHUNK_BYTES
from tests.fakes.misbehaviour import Exchange
from tests.fakes.registry import FakeRegistry
from tests.fakes.rootfs_jobs import until
from tests.real.breaking import MIB, WAIT, Call, Node, Sample, Trace, must_be_there, sample

pytestmark = [pytest.mark.needs("root")]

KILLS = int(os.environ.get("CRI_SHIM_KILLS", "10"))
BLOB_MIB = int(os.environ.get("CRI_SHIM_BLOB_MIB", "160"))
BLOB_KILLS = 20 if BLOB_MIB >= 1024 else 5
STARTS_KILLED = 20 if KILLS >= 100 else 7
SEED = int(os.environ.get("CRI_SHIM_SEED", "20260"))


@pytest.fixture
def node(place):
    with FakeRegistry() as registry:
        made = Node(place, registry, Trace(place / "trace"))
        yield made
        made.end()


def offered(node: Node, *samples: Sample) -> None:
    for one in samples:
        node.registry.add(one.name, one.image, tag="1")


class Worker(threading.Thread):
    """Pulls and removes one image, over and over, and remembers what was acknowledged last."""

    def __init__(self, node: Node, one: Sample, rng: random.Random, there) -> None:
        super().__init__(daemon=True)
        self.one, self.there, self.acknowledged = one, there, 0
        self._node, self._rng, self._ended = node, rng, threading.Event()
        self.start()

    def run(self) -> None:
        name = self._node.name(self.one)
        with Client(self._node.shim.socket) as client:
            while not self._ended.is_set():
                pull = self._rng.random() < 0.6
                before, self.there = self.there, None  # until it is acknowledged either may be
                try:
                    client.pull(name) if pull else client.remove(name)
                except ShimError:
                    if not pull and before is False:
                        self.there = False
                    return
                self.there, self.acknowledged = pull, self.acknowledged + 1

    def end(self) -> None:
        self._ended.set()


def killed_while_at_work(node: Node, samples: list[Sample], there: dict[str, bool | None], rng: random.Random) -> int:
    """Let a worker for each image loose, kill everything after a while, and return how much was acknowledged."""
    node.start()
    workers = [Worker(node, one, random.Random(rng.random()), there[one.name]) for one in samples]
    time.sleep(rng.random() ** 2 * 1.5)
    for worker in workers:
        worker.end()
    helper = node.shim.status()["helper"]["pid"] if rng.random() < 0.3 else None
    node.shim.kill()
    if helper is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(helper, signal.SIGKILL)
    for worker in workers:
        worker.join(WAIT)
        there[worker.one.name] = worker.there
    return sum(worker.acknowledged for worker in workers)


async def must_hold(node: Node, samples: list[Sample], there: dict[str, bool | None]) -> None:
    begun = time.monotonic()
    async with asyncio.timeout(WAIT), node.looking() as images:
        node.slowest_start = max(node.slowest_start, time.monotonic() - begun)
        for one in samples:
            found = images.find(node.name(one))
            if there[one.name] is not None:
                assert (found is not None) is there[one.name], f"{one.name}: {there[one.name]} was acknowledged"
            if found is not None:
                node.must_be_whole(found, one)
            there[one.name] = found is not None
        await images._store.emptied()
        await node.swept()
        layers = {name for name in os.listdir(node.root / "overlay") if name != "l"}
        assert layers == set(images._store.catalog.layers)
        documents = {digest for one in images.images() for digest in (doc.digest for doc in one.documents)}
        assert set(images._store.blobs.present()) == documents


async def nothing_stays(node: Node, samples: list[Sample]) -> None:
    async with node.looking() as images:
        for one in samples:
            node.must_be_whole(await images.pull(node.name(one), None), one)
            await images.remove(node.name(one), 10.0)
        images._store._grace.clear()
        await images._store.collect()
        await images._store.partials.prune(images._store, everything=True)
        await images._store.emptied()
        await node.swept()
    assert node.files() == {"overlay/l"}


def test_killed_over_and_over_while_pulling_and_removing(node):
    rng = random.Random(SEED)
    samples = [sample(f"app{number}", number, large=rng.randrange(MIB // 2, 9 * MIB)) for number in range(8)]
    offered(node, *samples)
    there: dict[str, bool | None] = dict.fromkeys((one.name for one in samples), False)
    acknowledged = 0
    for _ in range(KILLS):
        acknowledged += killed_while_at_work(node, samples, there, rng)
        asyncio.run(must_hold(node, samples, there))
    asyncio.run(nothing_stays(node, samples))
    assert acknowledged
    print(f"\n{KILLS} kills over {len(samples)} parallel workers, {acknowledged} calls acknowledged between them, all")
    print(f"invariants held after each (seed {SEED}); slowest start {node.slowest_start:.2f} s")


def test_killed_while_it_recovers_again_and_again(node):
    kept, broken = sample("kept", 1, large=MIB), sample("broken", 2, large=MIB)
    offered(node, kept, broken)
    asyncio.run(node.prepare(kept))
    node.start("index.commit.put_layer=kill@2")
    Call(node.shim, "pull", node.name(broken)).join(WAIT)
    node.shim.process.wait(WAIT)
    always = ["recover.mended", "trash.rename", "trash.rmdir", "staging.made"]
    for point in ["index.commit.recover", *(always * STARTS_KILLED)[: STARTS_KILLED - 1]]:
        node.start(f"{point}=kill", ready=False)
        assert node.shim.process.wait(WAIT) == -signal.SIGKILL, point
    asyncio.run(node.examine(kept, broken))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP], ids=lambda how: how.name)
def test_only_the_unpacker_is_hit(node, how):
    """K18: the pull fails or waits, the daemon and every other call go on."""
    kept, broken = sample("kept", 1, large=MIB), sample("broken", 2)
    offered(node, kept, broken)
    asyncio.run(node.prepare(kept))
    spec = broken.image.layers[2]
    gate = node.registry.gate()
    node.registry.on("GET", f"/blobs/{spec.digest}", partly_of(spec.blob, gate), times=1)
    shim = node.start()
    call = Call(shim, "pull", node.name(broken))
    gate.wait_arrived()
    helper = shim.status()["helper"]["pid"]
    unpackers: list[int] = []
    until(lambda: unpackers.extend(children_of(helper)) or unpackers, "an unpacker")
    for pid in unpackers:
        with contextlib.suppress(ProcessLookupError):  # of a layer that is whole by now
            os.kill(pid, how)
    with Client(shim.socket) as client:
        assert len(client.images()) == 1
    if how == signal.SIGSTOP:
        for pid in unpackers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    gate.release()
    call.join(WAIT)
    assert call.done is (how == signal.SIGSTOP)
    assert shim.stop() == 0
    asyncio.run(node.examine(kept, broken, acknowledged=call.done))


def partly_of(blob: bytes, gate):
    def behave(exchange: Exchange) -> None:
        answer = exchange.default()
        exchange.head(answer.status, (*answer.headers, ("Content-Length", str(len(answer.body)))))
        exchange.send(answer.body[: len(blob) // 2])
        time.sleep(0.3)  # the unpacker is at work on it
        gate.pass_through()
        exchange.send(answer.body[len(blob) // 2 :])

    return behave


def children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


class Counted:
    """Sends blobs slowly enough to be interrupted, and counts what went out of them."""

    def __init__(self) -> None:
        self.sent = 0
        self.reached = threading.Condition()

    def __call__(self, exchange: Exchange) -> None:
        answer = exchange.default()
        exchange.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 << 10)  # what is on its way counts as sent
        exchange.head(answer.status, (*answer.headers, ("Content-Length", str(len(answer.body)))))
        view = memoryview(answer.body)
        for at in range(0, len(view), MIB):
            exchange.send(view[at : at + MIB])
            with self.reached:
                self.sent += len(view[at : at + MIB])
                self.reached.notify_all()

    def wait(self, sent: int) -> None:
        with self.reached:
            assert self.reached.wait_for(lambda: self.sent >= sent, WAIT)


def test_a_large_blob_comes_over_the_wire_hardly_more_than_once(node):
    one = sample("large", 7, large=BLOB_MIB * MIB)
    offered(node, one)
    spec = one.image.layers[2]
    counted, rng = Counted(), random.Random(SEED)
    node.registry.on("GET", f"/blobs/{spec.digest}", counted)
    for _ in range(BLOB_KILLS):
        before = counted.sent
        node.start()
        call = Call(node.shim, "pull", node.name(one))
        counted.wait(before + rng.randrange(MIB, len(spec.blob) // BLOB_KILLS))
        node.shim.kill()
        call.join(WAIT)
    asyncio.run(has(node, one))
    over = counted.sent - len(spec.blob)
    print(
        f"\n{BLOB_MIB} MiB, {BLOB_KILLS} kills: {over / MIB:.0f} MiB came twice, {CHUNK_BYTES // MIB} MiB are a chunk"
    )
    assert over < BLOB_KILLS * CHUNK_BYTES


async def has(node: Node, one: Sample) -> None:
    async with node.looking() as images:
        await images.pull(node.name(one), None)
        node.must_be_whole(must_be_there(images, node.name(one)), one)
