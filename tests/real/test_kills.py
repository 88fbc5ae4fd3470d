"""The daemon is killed, or the power is cut, at every step of a pull and of a removal (the kill matrix K01 to K21).

After each the root is opened again and must hold what it promised: I1 what is listed is whole, every byte of it; I2 what
was acknowledged is there; I3 the same pull brings what is not; I4 nothing is left over; I5 other images are as they
were; I6 it opens at once. Power is cut by shutting a filesystem down under the daemon, which stands still at that step.

A run in CI kills at every step and cuts the power at every step once, on ext4 and xfs and in both modes in turn;
CRI_SHIM_ALL_CUTS=1 (make durability) takes all four at every step, and btrfs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass

import pytest

from tests.fakes.misbehaviour import partly
from tests.fakes.registry import FakeRegistry
from tests.real.breaking import LOGFLUSH, MIB, NOLOGFLUSH, WAIT, Call, Node, Nodes, Trace, sample
from tests.test_architecture import failpoint_names

pytestmark = [pytest.mark.needs("root", "mounts", "mkfs.ext4", "mkfs.xfs")]

ALL = bool(os.environ.get("CRI_SHIM_ALL_CUTS"))
MODES = [("ext4", NOLOGFLUSH), ("xfs", NOLOGFLUSH), ("ext4", LOGFLUSH), ("xfs", LOGFLUSH)]
KINDS = ("ext4", "xfs", *(("btrfs",) if ALL else ()))
KEPT, BROKEN = sample("kept", 1, large=MIB), sample("broken", 2)


@dataclass(frozen=True)
class Case:
    """A step: a failpoint and at which hit, or with "manifest", "blob:90", "small:50" (per cent), "reply" a moment.

    *operation*: pull, remove, repair, stop. *there*: whether the image must be there afterwards, None for either.
    """

    name: str
    point: str
    count: int = 1
    operation: str = "pull"
    there: bool | None = None
    config: tuple[tuple[str, str], ...] = ()
    runtime: str = "none"


FSYNC = (("sync", "fsync"),)
CASES = [
    Case("K01 parsed", "manifest"),
    Case("K02 ingest made", "ingest.made"),
    Case("K03 blob at 10 %", "blob:10"),
    Case("K03 blob at 90 %", "blob:90"),
    Case("K04 blob, before its sync", "ingest.data.sync"),
    Case("K04 blob, before that of its map", "ingest.map.sync", 2),
    Case("K04 document, before its sync", "file.sync"),
    Case("K05 document, before the rename", "file.rename"),
    Case("K06 document, before the directory", "directory.sync"),
    Case("K07 layer, before its row", "index.commit.put_layer"),
    Case("K08 staging made", "staging.made", 2),
    Case("K09 unpacking", "small:50"),
    Case("K10 first layer, before its sync", "layer.syncfs"),
    Case("K10 last layer, before its sync", "layer.syncfs", 2),
    Case("K10 a file, before its sync", "layer.file.sync", 7, config=FSYNC),
    Case("K10 a directory, before its sync", "layer.tree.sync", 2, config=FSYNC),
    Case("K11 layer, before the rename", "layer.rename"),
    Case("K12 layer, before its short name", "layer.link.rename", 2),
    Case("K12 layer, before the directory", "layer.overlay.sync", 2),
    Case("K12 layer, before that of the names", "layer.links.sync"),
    Case("K12 layer committed", "layer.committed", 2),
    Case("K12 chain, before its sync", "chain.syncfs", runtime="cri-o"),
    Case("K12 chain, before the rename", "chain.rename", 2, runtime="cri-o"),
    Case("K13 image, before its row", "index.commit.put_image"),
    Case("K14 image recorded", "image.recorded", there=True),
    Case("K14 pull acknowledged", "reply", there=True),
    Case("K15 removal, before the row", "index.commit.drop_image", operation="remove", there=True),
    Case("K15 removal, before the rename", "layer.trash", operation="remove", there=False),
    Case("K15 removal, unlinking", "trash.rmdir", 30, operation="remove", there=False),
    Case("K15 removal acknowledged", "reply", operation="remove", there=False),
    Case("K16 layers, before their rows", "index.commit.drop_layers", operation="remove", there=False),
    Case("K17 closing", "index.close", operation="stop", there=True),
    Case("K21 repair, before the new layer leaves staging", "layer.aside.rename", operation="repair"),
    Case("K21 repair, before the exchange", "layer.exchange", operation="repair"),
    Case("K21 repair, after the exchange", "layer.overlay.sync", operation="repair"),
    Case("K21 repair, exchanged and synced", "layer.committed", operation="repair"),
    Case("K21 repair, a chain stands on it", "layer.overlay.sync", operation="repair", runtime="cri-o"),
    Case("K21 repaired", "reply", operation="repair", there=True),
]
IDS = [case.name.replace(" ", "-").replace(",", "") for case in CASES]


@pytest.fixture(scope="module")
def registry():
    with FakeRegistry() as fake:
        for one in (KEPT, BROKEN):
            fake.add(one.name, one.image, tag="1")
        yield fake


@pytest.fixture(scope="module")
def trace(work):
    return Trace(work / "trace")


@pytest.fixture(scope="module")
def nodes(work, registry, trace):
    made = Nodes(work, registry, trace, KINDS, KEPT)
    yield made
    print("\nslowest start after a kill or a cut:", f"{made.slowest_start:.2f} s")
    made.close()


def ways(place: int) -> list[tuple[str, int]]:
    return [*MODES, ("btrfs", NOLOGFLUSH)] if ALL else [MODES[place % len(MODES)]]


CUTS = [
    pytest.param(case, *way, id=f"{name}-{way[0]}-{'log' if way[1] == LOGFLUSH else 'nolog'}")
    for place, (case, name) in enumerate(zip(CASES, IDS, strict=True))
    for way in ways(place)
]


def broken_at(node: Node, case: Case, mode: int) -> None:
    """Bring the daemon to the step and kill it there, or cut its power where *mode* is not 0."""
    try:
        _broken_at(node, case, mode)
    finally:
        node.end()


def _broken_at(node: Node, case: Case, mode: int) -> None:
    moment, _, per_cent = case.point.partition(":")
    if case.operation in ("remove", "stop"):
        asyncio.run(pulled(node))
    elif case.operation == "repair":
        asyncio.run(node.spoil(BROKEN))
    gate = None
    if moment in ("manifest", "blob", "small"):
        gate = held(node, moment, int(per_cent or 0))
    action = "pause" if mode else "kill"
    outside = gate is not None or moment == "reply"
    shim = node.start("" if outside else f"{case.point}={action}@{case.count}", **dict(case.config))
    call = operate(node, case)
    if gate is not None:
        gate.wait_arrived()
        time.sleep(0.05)  # what was sent is received and, where there is something to unpack, unpacked
    elif moment == "reply":
        call.join(WAIT)
        assert call.done
    elif mode:
        node.trace.wait(case.point, case.count)
    if mode:
        node.cut(mode)
    elif outside:
        shim.kill()
    assert shim.process.wait(WAIT) == -signal.SIGKILL
    if gate is not None:
        gate.release()
    call.join(WAIT)


def operate(node: Node, case: Case) -> Call:
    if case.operation == "stop":
        node.shim.process.send_signal(signal.SIGTERM)
    return Call(node.shim, case.operation, node.name(BROKEN))  # a "stop" is no call, and returns at once


def held(node: Node, what: str, per_cent: int):
    registry = node.registry
    if what == "manifest":
        return registry.hold("/broken/manifests/", times=1)
    spec = BROKEN.image.layers[2 if what == "blob" else 1]
    gate = registry.gate()
    registry.on("GET", f"/blobs/{spec.digest}", partly(len(spec.blob) * per_cent // 100, gate), times=1)
    return gate


async def pulled(node: Node) -> None:
    async with node.looking() as images:
        await images.pull(node.name(BROKEN), None)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_killed_at(nodes, case):
    with nodes.use("plain", case.runtime) as node:
        broken_at(node, case, 0)
        asyncio.run(node.examine(KEPT, BROKEN, acknowledged=case.there))


@pytest.mark.parametrize(("case", "kind", "mode"), CUTS)
def test_power_cut_at(nodes, case, kind, mode):
    with nodes.use(kind, case.runtime) as node:
        broken_at(node, case, mode)
        asyncio.run(node.examine(KEPT, BROKEN, acknowledged=case.there))


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_kill_left_and_the_next_pull_took_up_survives_a_cut(nodes, kind):
    """Nothing of the layers is written by the second pull, which is acknowledged all the same."""
    with nodes.use(kind) as node:
        try:
            taken_up(node)
            node.cut(NOLOGFLUSH)
        finally:
            node.end()
        asyncio.run(node.examine(KEPT, BROKEN, acknowledged=True))


def taken_up(node: Node) -> None:
    """Have a pull killed behind the rename of its second layer, and another one acknowledged."""
    shim = node.start("layer.overlay.sync=kill@2")
    call = Call(shim, "pull", node.name(BROKEN))
    assert shim.process.wait(WAIT) == -signal.SIGKILL
    call.join(WAIT)
    call = Call(node.start(), "pull", node.name(BROKEN))
    call.join(WAIT)
    assert call.done


def test_killed_while_the_index_is_made(place, registry, trace):
    """K17: a schema is brought up to date as a whole or not at all."""
    node = Node(place, registry, trace)
    for _ in range(3):
        node.start("index.commit.migrate=kill", ready=False)
        assert node.shim.process.wait(WAIT) == -signal.SIGKILL
    asyncio.run(node.prepare(KEPT))
    asyncio.run(node.examine(KEPT, BROKEN, acknowledged=False))


# Those that a pull or a removal does not come by, with who does.
ELSEWHERE = {
    "writeback.syncfs": "layers that take half a second; it decides nothing, see tests/rootfs/test_writeback.py",
    "index.commit.fill": "check --repair, in tests/store/test_repair.py",
    "repair.keep": "check --repair, in tests/store/test_repair.py",
    "repair.replace": "check --repair, in tests/store/test_repair.py",
    "format.syncfs": "a root of an older format, in tests/store/test_format.py",
    "index.commit.recover": "start-up after a kill, in test_kills_at_random.py",
    "index.commit.put_opening": "stale_if_unreachable_seconds, off by default; holds no promise about images",
    "index.commit.drop_openings": "stale_if_unreachable_seconds, off by default; holds no promise about images",
    "layer.exchange.old": "the same without RENAME_EXCHANGE, in tests/rootfs/test_commit.py",
    "layer.exchange.new": "the same without RENAME_EXCHANGE, in tests/rootfs/test_commit.py",
    "layer.rename.plain": "filesystems without RENAME_NOREPLACE, in tests/rootfs/test_commit.py",
    "graft.syncfs": "a containerd beside the daemon, in the tests of that hand-off",
    "share.rename": "a layer taken over from another store, under staging still; see tests/rootfs/test_share.py",
    "chain.lower.rename": "a chain entry whose layers below changed, in tests/rootfs/test_chain.py",
    "published.file.rename": "an image with a file of another name published, in the tests of that hand-off",
}


def test_the_matrix_has_hit_every_failpoint(trace):
    """The last of the file: what the runs above have come by, and nothing that was forgotten."""
    trace.forget()  # what was written is read then
    names = set(failpoint_names())
    print("\nfailpoint hits:", ", ".join(f"{name} {trace.hits[name]}" for name in sorted(names & trace.hits.keys())))
    assert names - trace.hits.keys() - ELSEWHERE.keys() == set()
    assert ELSEWHERE.keys() <= names
