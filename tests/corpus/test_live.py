"""A layer on its way into the daemon: what its unpacker has given up, and what comes of it when it is cut short."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from rootfs import sandbox
from tests.corpus import archives
from tests.corpus.ground import GOOD, MORE_MEMORY_BYTES, SECONDS, Daemon, children
from tests.corpus.look import layer
from tests.fakes.misbehaviour import partly
from tests.fakes.registry import FakeRegistry
from tests.fakes.rootfs_jobs import descriptors, gone, status, until
from tests.fakes.tars import F
from tests.server.pulling import image, pull_of

pytestmark = pytest.mark.needs("root", "mounts")
SLOW = image(layer(F("first", b"1" * 4_000_000)))
BOMBS = 64
UNPACKERS_BYTES = 4 * (32 << 20)  # four at once; what they share with the helper counts four times


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    config = {f"limits.{key}": value for key, value in archives.LIMITS.items()} | {"pull_grace_seconds": 0}
    with FakeRegistry(("slow:1", SLOW)) as registry:
        running = Daemon(tmp_path_factory.mktemp("c"), registry, **config)
        yield running
        assert running.close() == 0


class Unpacking:
    """A pull that has half of its layer: `pid` is the confined child that has read it and waits for the rest."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.gate = daemon.registry.gate()
        daemon.registry.on("GET", SLOW.layers[0].digest, partly(2_000_000, self.gate), times=1)
        self.call = daemon.stub.PullImage.future(pull_of(daemon.name("slow")), timeout=SECONDS)
        self.pid = until(self._child, "an unpacker that has written something")
        self.helper = int(status(self.pid)["PPid"])

    def _child(self) -> int:
        for pid in children(self.daemon.pid):
            first = Path(f"/proc/{pid}/root/first")
            if status(pid).get("Seccomp") == "2" and first.exists():
                return pid
        return 0


@pytest.fixture
def unpacking(daemon):
    one = Unpacking(daemon)
    yield one
    one.gate.release()
    if not one.call.cancelled() and one.call.exception() is None:
        daemon.remove(daemon.name("slow"))
    daemon.pull_good()
    daemon.check_nothing_happened()
    assert daemon.memory_growth_bytes() < MORE_MEMORY_BYTES


def namespaces(pid: int) -> dict[str, str]:
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("net", "ipc", "uts", "mnt")}


def test_the_unpacker_has_given_up_everything(unpacking):
    told = status(unpacking.pid)
    capabilities = {name: int(told[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    kept = sandbox.KEPT
    assert capabilities == {"CapInh": 0, "CapPrm": kept, "CapEff": kept, "CapBnd": 0, "CapAmb": 0}
    assert (told["NoNewPrivs"], told["Seccomp"]) == ("1", "2")
    mine, helpers, daemons = map(namespaces, (unpacking.pid, unpacking.helper, unpacking.daemon.pid))
    assert all(mine[kind] == helpers[kind] != daemons[kind] for kind in ("net", "ipc", "uts"))
    assert mine["mnt"] not in (helpers["mnt"], daemons["mnt"])
    assert os.listdir(f"/proc/{unpacking.pid}/root") == ["first"]


def test_the_unpacker_has_its_own_descriptors_only(unpacking):
    found = {number: re.sub(r"\d+", "N", link) for number, link in descriptors(unpacking.pid).items()}
    assert "/ingest/" in found.pop(3)
    assert re.search(r"/staging/\w+/tar-split\.gz$", found.pop(7))
    written = {number for number, link in found.items() if link == "/first"}
    assert {number: link for number, link in found.items() if number not in written} == {
        **dict.fromkeys((0, 1, 2), "/dev/null"),
        4: "pipe:[N]",
        5: "/memfd:rootfs (deleted)",
        6: "/",
    }


def test_the_rest_arrives_and_all_is_well(unpacking):
    unpacking.gate.release()
    assert unpacking.call.result().image_ref == SLOW.id


def test_whoever_gives_up_has_the_unpacker_ended_within_a_second(unpacking):
    begun = time.monotonic()
    unpacking.call.cancel()
    until(lambda: gone(unpacking.pid), "the end of the unpacker")
    assert time.monotonic() - begun < 1 + SECONDS / 10  # one second, and what a busy machine adds
    unpacking.gate.release()
    assert unpacking.daemon.pull(unpacking.daemon.name("slow")) == (None, SLOW.id)  # with what was here already
    unpacking.daemon.remove(unpacking.daemon.name("slow"))


def test_an_unpacker_that_is_killed_fails_its_own_pull_only(unpacking):
    daemon = unpacking.daemon
    os.kill(unpacking.pid, signal.SIGKILL)
    assert unpacking.call.code() is grpc.StatusCode.INTERNAL
    assert "SIGKILL" in unpacking.call.details()
    assert not gone(unpacking.helper)
    assert daemon.pull(daemon.name("slow")) == (None, SLOW.id)
    daemon.remove(daemon.name("slow"))


def test_many_bombs_at_once_hold_up_nobody(daemon):
    bombs = [case for name, case in archives.bombs().items() if name.startswith("Z0")]
    for number in range(BOMBS):
        daemon.registry.add(f"bomb{number}", image(*bombs[number % len(bombs)].layers, user=str(number)), tag="1")
    most, over = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.02):
            most = max(most, daemon.memory_growth_bytes())

    with ThreadPoolExecutor(BOMBS + 2) as pool:
        pool.submit(watch)
        pulls = [pool.submit(daemon.pull, daemon.name(f"bomb{number}")) for number in range(BOMBS)]
        assert pool.submit(daemon.pull, daemon.name("good")).result() == (None, GOOD.id)
        answers = {pull.result()[0] for pull in pulls}
        over.set()
    assert answers == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert most < UNPACKERS_BYTES + MORE_MEMORY_BYTES
    daemon.remove(daemon.name("good"))
    daemon.check_nothing_happened()
