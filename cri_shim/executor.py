"""Threads that work for the event loop and never hold up the end of the process.

`concurrent.futures.ThreadPoolExecutor` joins its threads when the interpreter exits: one thread that hangs in a name
look-up would keep a stopped daemon alive. These threads are daemons. Each kind of blocking work has an executor of
its own (downloads, disk, index, resolution), so that a slow kind never starves another.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from cri_shim.errors import NoSpace

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")
_Task = tuple["Future[object]", "Callable[[], object]"]


class DaemonExecutor(Executor):
    """At most *threads* daemon threads named after *name*, started when there is work for them.

    They end when it was shut down, or nobody has it any more, and what is queued is done.
    """

    def __init__(self, name: str, threads: int) -> None:
        self._name = name
        self._limit = threads
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._started = 0
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run *fn* in one of the threads.

        Raises:
            RuntimeError: the executor was shut down.
            NoSpace: there is no thread yet, and the node lets none be made.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError(f"the {self._name} threads are stopped")
            self._grow()
            self._tasks.put((future, lambda: fn(*args, **kwargs)))  # type: ignore[arg-type]  # Future is invariant
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 (inherited)
        """Take no more work; threads end after what is queued. Neither waits nor cancels."""
        del wait, cancel_futures
        with self._lock:
            self._closed = True
            for _ in range(self._started):
                self._tasks.put(None)

    def _grow(self) -> None:
        if self._idle.acquire(blocking=False) or self._started >= self._limit:
            return
        name = f"{self._name}-{self._started + 1}"
        try:
            threading.Thread(target=_work, args=(self._tasks, self._idle), name=name, daemon=True).start()
        except RuntimeError as error:  # the limit of the control group, or of the machine; those that are there do it
            if not self._started:
                raise NoSpace(
                    f"the node lets no thread be made for {self._name} ({error}); raise its limit of tasks (TasksMax, "
                    "pids.max) or stop what uses them up"
                ) from error
        else:
            self._started += 1

    def __del__(self) -> None:
        self.shutdown()


def _work(tasks: queue.SimpleQueue[_Task | None], idle: threading.Semaphore) -> None:
    """Do what is asked for; a thread that waits must not keep its executor alive."""
    while (task := tasks.get()) is not None:
        future, call = task
        if future.set_running_or_notify_cancel():
            _settle(future, call)
        del task, future, call  # an idle thread must not keep the last result alive
        idle.release()


def _settle(future: Future[object], call: Callable[[], object]) -> None:
    try:
        result = call()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


_OTHERS = DaemonExecutor("others", 8)


async def in_thread(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run *fn* in a thread for what has no executor of its own: short and seldom.

    `asyncio.to_thread` is not for a daemon: its threads hold up the end of the process, and the first call loads them
    from the disk on the event loop.
    """
    return await asyncio.get_running_loop().run_in_executor(_OTHERS, lambda: fn(*args, **kwargs))
