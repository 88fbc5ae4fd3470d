"""SIGUSR1: what the daemon is doing, written down: threads, tasks with their stacks, pulls that run.

Lines of code and names only, no value of any variable: no secret can be among them. The loop writes the whole into
`dump-<time>.txt` in the state directory, of which the newest KEPT stay. A loop that hangs cannot do that: so first, in
the signal itself, the stack of the thread that has the signal, which is the loop's, goes into `loop.txt` beside them; a
whole dump empties that again. Not those of the others, which run on meanwhile: to follow them could end the process.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import inspect
import json
import logging
import os
import signal
import sys
import threading
import traceback
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TextIO

from cri_shim.executor import in_thread
from cri_shim.log import fields, printable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator
    from pathlib import Path
    from types import FrameType

    from cri_shim.images.progress import PullProgress

KEPT: Final = 5
LOOP: Final = "loop.txt"
MOST_TASKS: Final = 2000
MOST_PULLS: Final = 200
_DEEPEST: Final = 100

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seen:
    """What there was at one moment: stacks by name, and the records of pulls."""

    threads: list[tuple[str, traceback.StackSummary]]
    tasks: list[tuple[str, traceback.StackSummary]]
    more_tasks: int
    pulls: list[dict[str, object]]


class Dump:
    """Writes dumps into *directory*."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._asked = asyncio.Event()

    @asynccontextmanager
    async def armed(self, pulls: Callable[[], Iterable[PullProgress]]) -> AsyncIterator[None]:
        """Hear SIGUSR1 while the block runs; *pulls* tells which pulls there are."""
        loop = asyncio.get_running_loop()
        with await in_thread(_opened, self._directory / LOOP, os.O_TRUNC) as stack:
            loop.add_signal_handler(signal.SIGUSR1, self._asked.set)
            # After the loop's own, which it calls: this one works also when nobody comes back to the loop.
            faulthandler.register(signal.SIGUSR1, file=stack, all_threads=False, chain=True)
            writing = asyncio.create_task(self._forever(pulls), name="write dumps")
            try:
                yield
            finally:
                writing.cancel()
                faulthandler.unregister(signal.SIGUSR1)
                loop.remove_signal_handler(signal.SIGUSR1)

    async def _forever(self, pulls: Callable[[], Iterable[PullProgress]]) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            seen = look(pulls())
            try:
                path = await in_thread(self._write, seen)
            except OSError as error:
                log.error(f"what the daemon does could not be written into {self._directory}: {error.strerror}")
            else:
                log.warning("what the daemon does is written down", extra=fields(file=path))

    def _write(self, seen: Seen) -> str:
        path = self._directory / f"dump-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.txt"
        with _opened(path, os.O_EXCL) as file:
            file.writelines(f"{line}\n" for line in told(seen))
        with suppress(FileNotFoundError):
            os.truncate(self._directory / LOOP, 0)
        for old in sorted(self._directory.glob("dump-*.txt"))[:-KEPT]:
            old.unlink(missing_ok=True)
        return str(path)


def look(pulls: Iterable[PullProgress]) -> Seen:
    """Return what there is now. No file is read: that is left to `told`."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()  # noqa: SLF001 (documented, and there is no other way)
    tasks = sorted(asyncio.all_tasks(), key=lambda task: task.get_name())
    return Seen(
        threads=[(str(names.get(ident, ident)), _stack(_callers(frame))) for ident, frame in frames.items()],
        tasks=[(task.get_name(), _stack(_awaited(task.get_coro()))) for task in tasks[:MOST_TASKS]],
        more_tasks=max(0, len(tasks) - MOST_TASKS),
        pulls=[pull.as_json() for pull, _ in zip(pulls, range(MOST_PULLS), strict=False)],
    )


def told(seen: Seen) -> Iterator[str]:
    """Give the lines of a dump."""
    yield f"cri-shim, process {os.getpid()}, {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    for kind, stacks in (("thread", seen.threads), ("task", seen.tasks)):
        for name, stack in stacks:
            yield f"\n{kind} {printable(name)}"
            yield from (line for piece in stack.format() for line in piece.splitlines())
    if seen.more_tasks:
        yield f"\nand {seen.more_tasks} more tasks"
    yield "\npulls"
    yield from (f"  {json.dumps(pull)}" for pull in seen.pulls)


def _stack(frames: Iterable[tuple[FrameType, int]]) -> traceback.StackSummary:
    return traceback.StackSummary.extract(islice(frames, _DEEPEST), lookup_lines=False)


def _callers(frame: FrameType | None) -> Iterator[tuple[FrameType, int]]:
    """Give the innermost frames of a thread, the innermost last."""
    found = list(islice(traceback.walk_stack(frame), _DEEPEST))
    yield from reversed(found)


def _awaited(coroutine: Any) -> Iterator[tuple[FrameType, int]]:
    """Give the line on which each coroutine waits for the one below it."""
    while (frame := getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)) is not None:
        yield frame, frame.f_lineno
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)
        if getattr(coroutine, "cr_frame", None) is None:
            # Where compiled code (gRPC) awaits a coroutine, a wrapper stands between, which has no name for it.
            held = gc.get_referents(coroutine) if coroutine is not None else []
            coroutine = next((one for one in held if inspect.iscoroutine(one)), coroutine)


def _opened(path: Path, how: int) -> TextIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | how
    return open(os.open(path, flags, 0o600), "w", encoding="utf-8")
