"""What the kill matrix stands on: a filesystem that is really gone, a trace that forgets, a failure that stays alone."""

from __future__ import annotations

import asyncio
import subprocess
import threading

import pytest

from tests.fakes.registry import FakeRegistry
from tests.real.breaking import LOGFLUSH, MIB, NOLOGFLUSH, WAIT, Disk, Nodes, Trace, is_mounted, sample

pytestmark = pytest.mark.needs("root", "mounts", "mkfs.ext4", "mkfs.xfs")

KEPT, BROKEN = sample("kept", 1, large=MIB), sample("broken", 2, large=MIB)


@pytest.fixture
def disk(place, request):
    made = Disk(place, request.param)
    yield made
    made.close()


@pytest.mark.parametrize("disk", ["ext4", "xfs"], indirect=True)
def test_a_filesystem_without_power_is_not_mounted_again_while_somebody_else_has_it(disk):
    """As an unpacker has, which is killed but not gone, in its own mount namespace."""
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", "echo; exec sleep 1000"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        holder.stdout.readline()
        disk.cut(NOLOGFLUSH)
        unmounting = threading.Thread(target=disk.unmount)
        unmounting.start()
        while is_mounted(disk.at):
            unmounting.join(0.01)
        unmounting.join(0.3)
        assert unmounting.is_alive()
    finally:
        holder.kill()
        holder.communicate()
    unmounting.join(WAIT)
    disk.mount()
    (disk.at / "written").write_text("with power")


def test_a_trace_forgets_what_was_written_before_also_what_was_not_read_yet(place):
    trace = Trace(place / "trace")
    for _ in range(200):
        with open(place / "trace", "wb", buffering=0) as written:
            written.write(b"late 1\n" * 500)
        trace.forget()
        assert trace.since("late") == 0


def test_what_a_failed_test_leaves_is_gone_before_the_next(place):
    with FakeRegistry() as registry:
        for one in (KEPT, BROKEN):
            registry.add(one.name, one.image, tag="1")
        nodes = Nodes(place, registry, Trace(place / "trace"), ("ext4",), KEPT)
        with pytest.raises(AssertionError, match="broken was acknowledged=False"):
            _fails(nodes)
        for runtime in ("none", "cri-o"):
            with nodes.use("ext4", runtime) as node:
                asyncio.run(node.examine(KEPT, BROKEN, acknowledged=False))
        nodes.close()


def _fails(nodes: Nodes) -> None:
    with nodes.use("ext4") as node:
        asyncio.run(node.prepare(BROKEN))
        node.start()
        node.cut(LOGFLUSH)
        asyncio.run(node.examine(KEPT, BROKEN, acknowledged=False))
