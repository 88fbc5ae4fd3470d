"""Threads that work for the event loop: they come with the work, and go with their executor."""

from __future__ import annotations

import gc
import threading

import pytest

from cri_shim.errors import NoSpace
from cri_shim.executor import DaemonExecutor, in_thread
from tests.fakes.rootfs_jobs import until


def threads_of(name: str) -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith(f"{name}-")]


def test_work_is_done_in_threads_of_its_name():
    executor = DaemonExecutor("worker", 2)
    assert executor.submit(lambda: threading.current_thread().name).result(60).startswith("worker-")
    with pytest.raises(ZeroDivisionError):
        executor.submit(lambda: 1 // 0).result(60)


@pytest.mark.parametrize("way", ["shut down", "forgotten"])
def test_its_threads_end_with_it_when_all_is_done(way):
    executor, go, done = DaemonExecutor(f"ends {way}", 2), threading.Event(), []
    running = [executor.submit(go.wait, 60) for _ in range(2)]
    queued = executor.submit(done.append, 1)
    assert len(threads_of(f"ends {way}")) == 2
    if way == "shut down":
        executor.shutdown()
        with pytest.raises(RuntimeError, match="are stopped"):
            executor.submit(print)
    del executor
    gc.collect()
    go.set()
    assert all(one.result(60) for one in running)
    queued.result(60)
    assert done == [1]
    until(lambda: not threads_of(f"ends {way}"), "the end of its threads")


async def test_what_has_no_executor_of_its_own_runs_in_a_thread_that_holds_up_nobody():
    one = await in_thread(threading.current_thread)
    assert one.name.startswith("others-")
    assert one.daemon
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)


def no_more_threads(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_node_that_lets_no_thread_be_made_is_asked_again_for_the_next_work(monkeypatch):
    executor = DaemonExecutor("first", 1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more_threads)
        with pytest.raises(NoSpace, match=r"no thread be made for first \(can't start new thread\); raise its limit"):
            executor.submit(print)
    assert executor.submit(lambda: 1).result(60) == 1


def test_what_no_new_thread_can_be_made_for_is_done_by_those_that_are_there(monkeypatch):
    executor, go = DaemonExecutor("second", 2), threading.Event()
    busy = executor.submit(go.wait, 60)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more_threads)
        waiting = executor.submit(lambda: 1)
    other = executor.submit(lambda: 2)  # for which there is a thread again
    assert (waiting.result(60), other.result(60)) == (1, 2)
    go.set()
    assert busy.result(60)
