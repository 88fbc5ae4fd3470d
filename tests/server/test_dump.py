"""SIGUSR1: what is written down, also when the event loop hangs; and the signs of life for the service manager."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
import time

import grpc

from cri_shim.images.progress import LayerProgress, PullProgress, Transfer
from cri_shim.pb import api_pb2, api_pb2_grpc
from cri_shim.server import dump as dump_module
from cri_shim.server.dump import KEPT, Dump, look, told
from tests.server.process import ROOT, running

PULL = api_pb2.PullImageRequest(
    image=api_pb2.ImageSpec(image="reg.io/app:1"), auth=api_pb2.AuthConfig(username="u", password="hunter2hunter2")
)
HUNG = """
import asyncio, pathlib, sys, time
from cri_shim.server.dump import Dump

def stand_still():
    print("standing", flush=True)
    time.sleep(3600)

async def main():
    async with Dump(pathlib.Path(sys.argv[1])).armed(lambda: ()):
        stand_still()

asyncio.run(main())
"""


def dumps(directory):
    return sorted(directory.glob("dump-*.txt"))


def test_the_daemon_writes_down_what_it_does(tmp_path):
    with running(tmp_path) as (daemon, _), grpc.insecure_channel(f"unix:{tmp_path}/cri.sock") as channel:
        pull = api_pb2_grpc.ImageServiceStub(channel).PullImage.future(PULL)
        while "PullImage" not in (line := daemon.stderr.readline()):
            assert line, "it has ended"
        daemon.send_signal(signal.SIGUSR1)
        while "is written down" not in (line := daemon.stderr.readline()) and line:
            pass  # gRPC may have something to say, too
        (path,) = dumps(tmp_path / "state")
        assert f"file={path}" in line
        text = path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (tmp_path / "state/loop.txt").read_bytes() == b""
        assert "\nthread MainThread\n" in text
        assert "in PullImage" in text  # the task, and where it waits
        assert "await outcome.wait()" in text
        assert "\ntask Rounds.forever\n" in text
        assert "hunter2" not in text
        pull.cancel()


def test_a_loop_that_hangs_leaves_its_stack(tmp_path):
    command = [sys.executable, "-c", HUNG, os.fspath(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as hung:
        assert hung.stdout.readline() == "standing\n"
        hung.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 60
        while "in stand_still" not in (text := (tmp_path / "loop.txt").read_text()):
            assert time.monotonic() < deadline, text
            time.sleep(0.01)
        hung.kill()


async def test_a_dump_tells_threads_tasks_and_pulls_and_no_values(tmp_path):
    async def innermost(secret):
        await gate.wait()
        return secret

    async def outer(secret):
        await innermost(secret)

    gate = asyncio.Event()
    ends = threading.Event()
    thread = threading.Thread(target=ends.wait, name="a thread\n")
    thread.start()
    task = asyncio.create_task(outer("hunter2"), name="a pull of \x1b[31m")
    await asyncio.sleep(0)
    pull = PullProgress("reg.io/app:1")
    pull.layers.append(LayerProgress("sha256:a", 10, "fetched", Transfer("sha256:a", 10)))
    text = "\n".join(told(look([pull])))
    ends.set()
    thread.join()
    gate.set()
    await task
    assert "thread a thread\\n\n" in text
    (told_task,) = [part for part in text.split("\n\n") if part.startswith("task a pull of \\x1b[31m\n")]
    assert told_task.index("in outer") < told_task.index("in innermost") < told_task.index("in wait")
    assert '"name": "reg.io/app:1"' in text
    assert "hunter2" not in text


async def test_a_dump_is_bounded(monkeypatch):
    monkeypatch.setattr(dump_module, "MOST_TASKS", 3)
    monkeypatch.setattr(dump_module, "MOST_PULLS", 2)
    tasks = [asyncio.create_task(asyncio.sleep(3600)) for _ in range(5)]
    seen = look([PullProgress("a")] * 5)
    for task in tasks:
        task.cancel()
    assert (len(seen.tasks), seen.more_tasks, len(seen.pulls)) == (3, 3, 2)
    assert "and 3 more tasks" in "\n".join(told(seen))


async def deep(levels):
    await (deep(levels - 1) if levels else asyncio.sleep(3600))


async def test_a_stack_is_bounded():
    task = asyncio.create_task(deep(500), name="deep")
    await asyncio.sleep(0)
    (stack,) = [stack for name, stack in look(()).tasks if name == "deep"]
    task.cancel()
    assert len(stack) == 100


def test_the_newest_dumps_stay(tmp_path):
    (tmp_path / "loop.txt").write_text("from the signal")
    dump = Dump(tmp_path)
    seen = dump_module.Seen([], [], 0, [])
    written = [dump._write(seen) for _ in range(KEPT + 3)]
    assert [os.fspath(path) for path in dumps(tmp_path)] == written[-KEPT:]
    assert (tmp_path / "loop.txt").read_text() == ""


async def test_a_directory_that_is_gone_is_told_and_the_next_dump_comes(tmp_path, caplog):
    place = tmp_path / "state"
    place.mkdir()
    async with Dump(place).armed(lambda: ()):
        place.rename(tmp_path / "away")
        os.kill(os.getpid(), signal.SIGUSR1)
        while "could not be written" not in caplog.text:
            await asyncio.sleep(0.001)
        (tmp_path / "away").rename(place)
        os.kill(os.getpid(), signal.SIGUSR1)
        while not dumps(place):
            await asyncio.sleep(0.001)
        while "is written down" not in caplog.text:
            await asyncio.sleep(0.001)


def test_signs_of_life_come_while_the_service_manager_waits_for_them(tmp_path, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    with running(tmp_path) as (_, manager):
        signs = 0
        while signs < 3:
            signs += manager.recv(100) == b"WATCHDOG=1"
