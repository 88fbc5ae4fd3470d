"""The disk, the kernel and the clock fail (the errno matrix E01 to E15): the pull fails with a sentence, the daemon stays.

After each fault the same pull works without a restart, no other image is harmed, and room that was used is given back.
E02 stands on btrfs, whose quotas need nothing else of the kernel. E06 (an unpacker without memory) is in
tests/rootfs/test_client.py, E08 (clocks) in tests/store/test_partials.py and tests/images/test_openings.py, E09 and E10
(a damaged index, lost layers and documents) are in tests/store and tests/images, E14 (a renamer) is in tests/rootfs, and
the other connections that are cut (E15) in tests/registry.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from cri_shim.demo.client import Client
from cri_shim.errors import ShimError
from tests.fakes.misbehaviour import partly
from tests.fakes.registry import FakeRegistry
from tests.real.breaking import MIB, NOLOGFLUSH, WAIT, Call, Disk, Node, Trace, must_be_there, sample
from tests.real.programs import run

pytestmark = [pytest.mark.needs("root", "mounts", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "btrfs", "strace", "chattr")]

KEPT, WANTED = sample("kept", 1, large=MIB), sample("wanted", 2)


@pytest.fixture(scope="module")
def registry():
    with FakeRegistry() as fake:
        for one in (KEPT, WANTED):
            fake.add(one.name, one.image, tag="1")
        yield fake


@pytest.fixture
def stack():
    with ExitStack() as opened:
        yield opened


def node_on(
    stack: ExitStack,
    place,
    registry,
    *,
    size_mib: int = 0,
    kind: str = "ext4",
    options: tuple[str, ...] = (),
    **config,
) -> Node:
    disk = None
    if size_mib:
        disk = Disk(place, kind, size_mib * MIB, options)
        stack.callback(disk.close)
    node = Node(place, registry, Trace(place / "trace"), disk, **config)
    stack.callback(node.end)
    asyncio.run(node.prepare(KEPT))
    return node


def refused(node: Node, method: str = "pull") -> str:
    """Ask for WANTED and return what the daemon says."""
    with Client(node.shim.socket) as client, pytest.raises(ShimError) as caught:
        getattr(client, method)(node.name(WANTED))
    return str(caught.value)


def works(node: Node) -> None:
    """The same pull, and a removal, without a restart; and everything is as it should be after one."""
    with Client(node.shim.socket) as client:
        client.pull(node.name(WANTED))
        assert len(client.images()) == 2
        client.remove(node.name(WANTED))
    assert node.shim.stop() == 0
    asyncio.run(node.examine(KEPT, WANTED, acknowledged=False))


def free_bytes(node: Node) -> int:
    status = os.statvfs(node.disk.at)
    return status.f_bavail * status.f_frsize


def fill(path) -> None:
    """Write until not a block is free."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass


@pytest.mark.parametrize("left_mib", [1, 6, 14, 22, 30])
def test_e01_the_disk_is_full_at_any_point_of_a_pull(stack, place, registry, left_mib):
    node = node_on(stack, place, registry, size_mib=160, options=("-m", "0"))
    node.start()
    ballast = node.disk.at / "ballast"
    run("fallocate", "-l", str(free_bytes(node) - left_mib * MIB), ballast)
    said = refused(node)
    assert "RESOURCE_EXHAUSTED" in said or "No space" in said, said
    deadline = time.monotonic() + WAIT
    while free_bytes(node) < (left_mib - 1) * MIB - 4 * MIB:  # what stays is a layer that had been committed
        assert time.monotonic() < deadline, free_bytes(node)
        time.sleep(0.05)
    ballast.unlink()
    works(node)


def test_e01_an_image_is_removed_from_a_disk_without_a_free_block(stack, place, registry):
    node = node_on(stack, place, registry, size_mib=120, options=("-m", "0"))
    node.start()
    with Client(node.shim.socket) as client:
        client.pull(node.name(WANTED))
        fill(node.disk.at / "fill")
        client.remove(node.name(WANTED))
        assert len(client.images()) == 1
    assert free_bytes(node) > 15 * MIB
    (node.disk.at / "fill").unlink()
    works(node)


def test_e01_the_inodes_are_used_up(stack, place, registry):
    node = node_on(stack, place, registry, size_mib=160, options=("-N", "1024"))
    node.start()
    others = node.disk.at / "others"
    others.mkdir()
    for number in range(os.statvfs(node.disk.at).f_ffree - 40):
        (others / str(number)).touch()
    assert "No space" in refused(node)
    shutil.rmtree(others)
    works(node)


def node_with_quota(stack: ExitStack, place, registry) -> Node:
    """A root that is a subvolume of btrfs, whose quotas need nothing else of the kernel, without a limit yet."""
    disk = Disk(place, "btrfs", 400 * MIB)
    stack.callback(disk.close)
    node = Node(place, registry, Trace(place / "trace"), disk)
    stack.callback(node.end)
    run("btrfs", "subvolume", "create", node.root)
    run("btrfs", "quota", "enable", disk.at)
    run("btrfs", "quota", "rescan", "-w", disk.at)
    asyncio.run(node.prepare(KEPT))
    return node


def limit(node: Node, more_mib: int | None) -> None:
    """Let the root take *more_mib* more than it does, None for as much as there is."""
    run("sync", "--file-system", node.disk.at)
    shown = run("btrfs", "qgroup", "show", "--raw", "-f", node.root).stdout.splitlines()[-1]
    most = "none" if more_mib is None else str(int(shown.split()[1]) + more_mib * MIB)
    run("btrfs", "qgroup", "limit", most, node.root)


@pytest.mark.parametrize("left_mib", [2, 14, 24])
def test_e02_the_quota_is_used_up_at_any_point_of_a_pull(stack, place, registry, left_mib):
    node = node_with_quota(stack, place, registry)
    node.start()
    limit(node, left_mib)
    said = refused(node)
    assert "RESOURCE_EXHAUSTED" in said, said
    assert "quota" in said, said
    with Client(node.shim.socket) as client:
        assert len(client.images()) == 1
    limit(node, None)
    works(node)


def test_e02_an_image_is_removed_with_no_quota_left(stack, place, registry):
    node = node_with_quota(stack, place, registry)
    node.start()
    with Client(node.shim.socket) as client:
        client.pull(node.name(WANTED))
        limit(node, 1)
        fill(node.root / "fill")
        client.remove(node.name(WANTED))
        assert len(client.images()) == 1
    (node.root / "fill").unlink()
    limit(node, None)
    works(node)


def test_e03_no_descriptors_are_left(stack, place, registry):
    node = node_on(stack, place, registry)
    shim = node.start()
    with Client(shim.socket) as client:
        assert len(client.images()) == 1  # the connection is made
        run("prlimit", "--pid", str(shim.process.pid), f"--nofile={open_files(shim.process.pid) + 1}:4096")
        with pytest.raises(ShimError) as caught:
            client.pull(node.name(WANTED))
        assert len(client.images()) == 1
    assert "Too many open files" in str(caught.value) or "descriptor" in str(caught.value), caught.value
    run("prlimit", "--pid", str(shim.process.pid), "--nofile=4096:4096")
    works(node)


def open_files(pid: int) -> int:
    return max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))


POINTS = ["ingest.data.sync", "ingest.map.sync", "file.sync", "directory.sync", "layer.syncfs", "layer.overlay.sync"]
POINTS += ["layer.rename", "file.rename", "layer.trash"]
FAILURES = [*((point, "EIO") for point in POINTS), *((point, "ENOSPC") for point in ("file.sync", "layer.rename"))]


@pytest.mark.parametrize(("point", "error"), FAILURES)
def test_e04_a_sync_or_a_rename_fails(stack, place, registry, point, error):
    """The fault stays until the restart; what was said to be there is, and nothing else."""
    node = node_on(stack, place, registry)
    node.start(f"{point}=errno:{error}")
    if point == "layer.trash":
        with Client(node.shim.socket) as client:
            client.pull(node.name(WANTED))
            client.remove(node.name(WANTED))  # the record is gone; the layers go when the disk lets them
            assert len(client.images()) == 1
    else:
        assert os.strerror(getattr(errno, error)) in refused(node)
    assert node.shim.stop() == 0
    asyncio.run(node.examine(KEPT, WANTED, acknowledged=False))


def test_e04_the_index_cannot_be_committed_and_takes_no_more(stack, place, registry):
    node = node_on(stack, place, registry)
    node.start("index.commit.put_layer=errno:EIO@1")
    assert "Input/output error" in refused(node)
    assert "restart" in refused(node)
    with Client(node.shim.socket) as client:
        assert len(client.images()) == 1
    node.shim.stop()
    asyncio.run(node.examine(KEPT, WANTED, acknowledged=False))


@pytest.mark.parametrize("call", ["fdatasync", "fsync", "syncfs", "pwrite64"])
def test_e04_the_kernel_fails_a_call(stack, place, registry, call):
    """Injected by strace, below every failpoint, into the daemon, the helper and its children."""
    node = node_on(stack, place, registry)
    shim = node.start()
    targets = [shim.process.pid, shim.status()["helper"]["pid"]]
    inject = f"inject={call}:error=EIO:when=1+"
    words = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}", "-e", inject]
    tracer = subprocess.Popen([*words, *(word for pid in targets for word in ("-p", str(pid)))], stderr=subprocess.PIPE)
    try:
        wait_traced(targets)
        said = refused(node)
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=WAIT)
    assert "Input/output error" in said or "disk I/O error" in said, said
    node.shim.stop()
    asyncio.run(node.examine(KEPT, WANTED, acknowledged=False))


def wait_traced(pids: list[int]) -> None:
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        if all(traced(pid) for pid in pids):
            return
        time.sleep(0.02)
    raise AssertionError("strace does not attach")


def traced(pid: int) -> bool:
    """Whether every thread of *pid* has a tracer."""
    for task in os.listdir(f"/proc/{pid}/task"):
        with (
            contextlib.suppress(FileNotFoundError, ProcessLookupError),  # it ended meanwhile
            open(f"/proc/{pid}/task/{task}/status", encoding="ascii") as status,
        ):
            if "TracerPid:\t0\n" in status.read():
                return False
    return True


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_e05_the_filesystem_is_shut_down(stack, place, registry, kind):
    """As xfs does by itself when its journal cannot be written; who writes to a file of it that is mapped is killed."""
    node = node_on(stack, place, registry, size_mib=400, kind=kind)
    node.start()
    with Client(node.shim.socket) as client:
        client.pull(node.name(WANTED))
    run("sync", "--file-system", node.disk.at)  # what is mapped has to be asked for again, before it is written to
    node.disk.cut(NOLOGFLUSH)
    said = refused(node, "remove")
    assert any(words in said for words in ("Input/output", "Read-only", "disk I/O")), said
    with Client(node.shim.socket) as client:
        assert len(client.images()) == 2
        assert client.room().used_bytes > 0
    assert node.shim.process.poll() is None
    node.shim.kill()
    node.disk.unmount()
    node.disk.mount()
    asyncio.run(node.examine(KEPT, WANTED, acknowledged=True))


def test_e05_an_error_on_the_disk_makes_the_filesystem_read_only(stack, place, registry):
    """As ext4 does by itself; a remount is refused by the kernel while the index is open."""
    node = node_on(stack, place, registry, size_mib=160, options=("-e", "remount-ro"))
    node.start()
    device = os.path.basename(run("findmnt", "-n", "-o", "SOURCE", node.disk.at).stdout.strip())
    with open(f"/sys/fs/ext4/{device}/trigger_fs_error", "w", encoding="ascii") as trigger:
        trigger.write("a test")
    said = refused(node)
    assert "Read-only" in said or "disk I/O" in said, said  # the latter is SQLite's, where it comes first
    with Client(node.shim.socket) as client:
        assert len(client.images()) == 1
        assert client.room().used_bytes > 0
    node.shim.kill()
    node.disk.unmount()
    node.disk.mount()
    asyncio.run(node.examine(KEPT, WANTED, acknowledged=False))


IN_SQLITE = [("pull", "index.db-wal", "pwrite64", hit) for hit in (1, 2, 7)]
IN_SQLITE += [("pull", "index.db-wal", "fdatasync", 1), ("stop", "index.db", "pwrite64", 1)]
IN_SQLITE += [("stop", "index.db", "pwrite64", 2), ("stop", "index.db", "fdatasync", 1)]


@pytest.mark.parametrize(("operation", "file", "call", "hit"), IN_SQLITE)
def test_k13_killed_inside_a_commit_or_a_checkpoint_of_sqlite(stack, place, registry, operation, file, call, hit):
    """Below every failpoint: before the write or the sync of that number, which does not happen."""
    node = node_on(stack, place, registry)
    shim = node.start()
    pid = shim.process.pid
    with Client(shim.socket) as client:
        if operation == "stop":
            client.pull(node.name(WANTED))  # that the log holds something to bring into the index
    inject = f"inject={call}:signal=SIGKILL:when={hit}"
    words = ["strace", "-f", "-qq", "-o", os.devnull, "-P", str(node.root / file), "-e", f"trace={call}", "-e", inject]
    tracer = subprocess.Popen([*words, "-p", str(pid)], stderr=subprocess.PIPE)
    try:
        wait_traced([pid])
        if operation == "stop":
            shim.process.send_signal(signal.SIGTERM)
        asked = Call(shim, operation, node.name(WANTED))
        assert shim.process.wait(WAIT) == -signal.SIGKILL
        asked.join(WAIT)
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=WAIT)
    asyncio.run(node.examine(KEPT, WANTED, acknowledged=True if operation == "stop" else None))


def test_e07_a_sync_that_takes_long_holds_up_nothing_else(stack, place, registry):
    node = node_on(stack, place, registry)
    shim = node.start("ingest.data.sync=pause;layer.syncfs=pause")
    call = Call(shim, "pull", node.name(WANTED))
    node.trace.wait("layer.syncfs", 1)
    node.trace.wait("ingest.data.sync", 1)
    slowest = 0.0
    with Client(shim.socket) as client:
        for _ in range(50):
            begun = time.monotonic()
            client.images()
            client.room()
            slowest = max(slowest, time.monotonic() - begun)
    assert slowest < WAIT  # milliseconds on a quiet machine; the pause lasts for ever
    shim.kill()
    call.join(WAIT)
    asyncio.run(node.examine(KEPT, WANTED, acknowledged=False))


def test_e11_a_part_of_the_root_lies_on_another_filesystem(stack, place, registry):
    node = node_on(stack, place, registry)
    run("mount", "-t", "tmpfs", "tmpfs", node.root / "staging")
    try:
        node.start(ready=False)
        assert node.shim.process.wait(WAIT) == 1
    finally:
        node.end()
        deadline = time.monotonic() + WAIT
        while run("umount", node.root / "staging", check=False).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert f"{node.root}/staging is a mount of its own" in node.shim.log.read_text()
    asyncio.run(node.examine(KEPT, WANTED, acknowledged=False))


def test_e12_an_immutable_file_stays_and_goes_later(stack, place, registry):
    node = node_on(stack, place, registry, size_mib=160)

    async def immutable() -> str:
        async with node.looking() as images:
            await images.pull(node.name(WANTED), None)
            return str(node.directory(must_be_there(images, node.name(WANTED)), 2) / "opt/large")

    run("chattr", "+i", asyncio.run(immutable()))
    node.start()
    with Client(node.shim.socket) as client:
        client.remove(node.name(WANTED))
        assert len(client.images()) == 1
        client.pull(node.name(WANTED))
        client.remove(node.name(WANTED))
    assert node.shim.stop() == 0
    for top, _, names in os.walk(node.root / "trash"):
        for name in names:
            run("chattr", "-i", os.path.join(top, name))
    asyncio.run(node.examine(KEPT, WANTED, acknowledged=False))


@contextlib.contextmanager
def few_tasks(*pids: int):
    """Put processes into a control group that may have not one thread or process more, which holds for root as well."""
    top = Path("/sys/fs/cgroup/pids")
    if not top.is_dir():
        top = Path("/sys/fs/cgroup")
        (top / "cgroup.subtree_control").write_text("+pids")
    group = top / f"cri-shim-test-{os.getpid()}"
    group.mkdir()
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                (group / "cgroup.procs").write_text(str(pid))
        (group / "pids.max").write_text((group / "pids.current").read_text())
        yield
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (top / "cgroup.procs").write_text(pid)
        group.rmdir()


def test_e13_no_thread_and_no_process_can_be_made(stack, place, registry):
    node = node_on(stack, place, registry)
    shim = node.start()
    with Client(shim.socket) as client:
        assert len(client.images()) == 1
        with few_tasks(*family(shim.process.pid)):
            said = refused(node)
            assert "RESOURCE_EXHAUSTED" in said, said + shim.log.read_text()
            assert len(client.images()) == 1
            assert client.room().used_bytes > 0
    works(node)


def family(pid: int) -> list[int]:
    """A process and what came from it, as far as it has not ended."""
    found = [pid]
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                    found += family(int(child))
    return found


def test_e15_the_kernel_kills_a_connection_in_the_middle_of_a_blob(stack, place, registry):
    """As a suspend, or a firewall, does: the rest is asked for on another one."""
    node = node_on(stack, place, registry)
    large = WANTED.image.layers[2]
    gate = registry.gate()
    registry.on("GET", f"/blobs/{large.digest}", partly(len(large.blob) // 2, gate), times=1)
    call = Call(node.start(), "pull", node.name(WANTED))
    gate.wait_arrived()
    port = node.registry.host.rpartition(":")[2]
    killed = run("ss", "--kill", "--numeric", "--tcp", "state", "established", "dport", "=", f":{port}").stdout
    assert f":{port}" in killed, killed
    gate.release()
    call.join(WAIT)
    assert call.done
    ranges = [seen.headers.get("range") for seen in registry.requests("GET", large.digest)]
    assert ranges[-2] is None
    assert int(ranges[-1].removeprefix("bytes=").partition("-")[0]) > 0
    with Client(node.shim.socket) as client:
        client.remove(node.name(WANTED))
    works(node)
