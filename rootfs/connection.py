"""One life of a helper: its process, the socket to it, the jobs it was given, the thread that reads its answers.

Rule: every job that was sent has one outcome, also when the helper dies or says something else than was agreed; then
all that it still had fail, and it is ended. Sending never blocks: a helper that takes no messages is a failed one.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from rootfs import child, values, wire
from rootfs.errors import HelperFailed, JobCancelled, LimitExceeded, NoSpace, RootfsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rootfs.zygote import Zygote

T = TypeVar("T")

CLOSE_SECONDS: Final = 5.0
_SEND_BUFFER_BYTES: Final = 1 << 20
_HOSTILE: Final = frozenset({"unpack", "scrub"})
"""Jobs whose child reads what a stranger made."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What the children of a job took."""

    cpu_seconds: float
    peak_rss_bytes: int


class Job(Generic[T]):
    """Something the helper was asked for.

    Attributes:
        future: its result; fails with an error of `rootfs.errors`. It cannot be cancelled: `cancel` the job.
        pid: process id of its child, 0 before there is one.
        cost: what it took, None until it has ended.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.future: Future[T] = Future()
        self.future.set_running_or_notify_cancel()
        self.pid = 0
        self.cost: Cost | None = None
        self._tell = tell

    def pause(self) -> None:
        """Stop the child until `resume`; what has ended stays so."""
        self._tell("pause")

    def resume(self) -> None:
        """Let a paused child go on."""
        self._tell("resume")

    def cancel(self) -> None:
        """Kill the child; the future then fails with `JobCancelled`, and nothing of the job is left.

        A job that ended first keeps its outcome.
        """
        self._tell("cancel")


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A job that was sent, the name under staging that it is about, and how to read its result.

    `small` is for those of `_HOSTILE` jobs: little JSON, and paths.
    """

    job: Job[Any]
    staging: str
    read: Callable[[object], object]
    small: bool = False


class _NoHelper(HelperFailed):
    """There is no process to talk to."""


class Connection:
    """A running helper.

    Attributes:
        hello: what it found out about this host, or why it cannot start.
        dead: it takes no more jobs.
    """

    def __init__(self, zygote: Zygote) -> None:
        self.hello: Future[dict[str, object]] = Future()
        self.dead = False
        self._lock = threading.Lock()
        self._waiting: dict[int, _Waiting] = {}
        self._last = 0
        self._zygote = zygote
        self._process = -1  # a pidfd, once there is a process
        self._killed = False
        self._reason = ""  # why there is no helper any more
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._reader = threading.Thread(target=self._read, args=(theirs,), name="rootfs-helper-reader", daemon=True)
        self._reader.start()

    def ask(
        self,
        what: tuple[str, str],
        arguments: wire.Json,
        read: Callable[[object], T],
        descriptors: tuple[int, ...] = (),
    ) -> Job[T]:
        """Send one job; it fails at once where the helper is gone or takes no more.

        Args:
            what: kind of the job and the name under staging that it is about, "" for none.
            arguments: of the job.
            read: turns the JSON of the result into its value.
            descriptors: of the job.
        """
        with self._lock:
            self._last += 1
            number = self._last
            job: Job[T] = Job(lambda order: self._order(number, order))
            self._waiting[number] = _Waiting(job, what[1], read, small=what[0] in _HOSTILE)
        try:
            body = wire.made_body(arguments)
        except (OSError, RootfsError, MemoryError) as error:
            self._fail(number, child.sorted_error(error))
            return job
        try:
            self._send({"id": number, "do": what[0], "staging": what[1]}, (body, *descriptors))
        except OSError as error:
            self._fail(number, self._buried() or _lost(error))  # The socket is closed once it is known why.
        finally:
            os.close(body)
        if self.dead:  # It died between the look and the sending; its reader failed only the jobs it knew of.
            self._fail(number, self._buried() or HelperFailed("the helper died"))
        return job

    def _buried(self) -> HelperFailed | None:
        return HelperFailed(self._reason) if self._reason else None

    def _order(self, number: int, order: str) -> None:
        with self._lock:
            if number not in self._waiting:
                return
        try:
            self._send({"id": number, "do": order})
        except OSError:
            # It is gone, or so far behind that it can only be ended; either way its jobs fail.
            self._kill()

    def _send(self, message: wire.Json, descriptors: tuple[int, ...] = ()) -> None:
        with self._lock:  # So that the socket is not closed, and its number given to another, on the way.
            wire.send(self._channel, message, descriptors, socket.MSG_DONTWAIT)

    def _kill(self) -> None:
        with self._lock:
            self._killed = True
            if self._process >= 0:
                with contextlib.suppress(ProcessLookupError):  # its zygote may have taken its end in already
                    signal.pidfd_send_signal(self._process, signal.SIGKILL)

    def _fail(self, number: int, error: RootfsError) -> None:
        with self._lock:
            waiting = self._waiting.pop(number, None)
        if waiting is not None:
            waiting.job.future.set_exception(error)

    def close(self) -> None:
        """Close the socket, which ends the helper, and wait for it."""
        with self._lock, contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        self._reader.join(CLOSE_SECONDS)
        if self._reader.is_alive():
            self._kill()
            self._reader.join(CLOSE_SECONDS)

    # The reader's thread

    def _read(self, theirs: socket.socket) -> None:
        reason = HelperFailed("the helper died")
        try:
            self._launch(theirs)
            while (message := wire.receive(self._channel)) is not None:
                try:
                    self._take(message)
                finally:
                    for descriptor in message.descriptors:
                        os.close(descriptor)
        except OSError as error:
            reason = _lost(error)
        except _NoHelper as error:
            reason = error
        except RootfsError as error:
            reason = HelperFailed(f"the helper spoke out of turn: {error}")
        except Exception as error:  # A reader that ended without a word would leave its jobs waiting forever.
            reason = HelperFailed(f"the helper spoke out of turn ({type(error).__name__})")
        self._bury(reason)

    def _launch(self, theirs: socket.socket) -> None:
        """Have the process forked; what was sent meanwhile waits in the socket."""
        try:
            process = self._zygote.launch(theirs)
        except HelperFailed as error:
            raise _NoHelper(error.sentence) from None
        finally:
            theirs.close()
        with self._lock:
            self._process = process
        if self._killed:
            self._kill()

    def _ended(self, seconds: float | None) -> bool:
        """Wait for the end of the process."""
        poll = select.poll()
        poll.register(self._process, select.POLLIN)
        return bool(poll.poll(None if seconds is None else seconds * 1000))

    def _bury(self, reason: HelperFailed) -> None:
        """End a helper that is gone, or not to be trusted any more, and fail what waits for it."""
        with self._lock:
            self._reason = reason.sentence
            self._channel.close()
        if self._process >= 0:
            if not self._ended(CLOSE_SECONDS):
                self._kill()
                self._ended(None)
            with self._lock:
                os.close(self._process)
                self._process = -1
        self.dead = True
        if not self.hello.done():
            self.hello.set_exception(reason)
        with self._lock:
            lost, self._waiting = self._waiting, {}
        for waiting in lost.values():
            waiting.job.future.set_exception(HelperFailed(reason.sentence))

    def _take(self, message: wire.Message) -> None:
        content = message.content
        event = content.get("event")
        if event == "hello":
            self._greeted(content)
        elif event == "failed":
            self.hello.set_exception(wire.to_error(content.get("error")).within("start the helper"))
        else:
            self._answered(values.count(content.get("id")), str(event), message)

    def _greeted(self, content: wire.Json) -> None:
        pairs = [values.array(pair) for pair in values.array(content.get("missing"))]
        missing = {values.text(name): values.text(why) for name, why in pairs}
        if missing and self._zygote.options.require_sandbox:
            lacking = "; ".join(f"{part} ({why})" for part, why in missing.items())
            self.hello.set_exception(HelperFailed(f"the sandbox is required and lacks {lacking}"))
            return
        facts = {name: value for name, value in content.items() if name != "event"}
        self.hello.set_result({**facts, "missing": missing})

    def _answered(self, number: int, event: str, message: wire.Message) -> None:
        with self._lock:
            waiting = self._waiting.get(number) if event == "started" else self._waiting.pop(number, None)
        if waiting is None:
            return
        job = waiting.job
        try:
            if event == "started":
                job.pid = values.count(message.content.get("pid"))
                return
            result = _outcome(message, waiting)
        except Exception as error:  # Whatever it is, the job has an outcome: nobody else is going to tell.
            with self._lock:
                self._waiting.pop(number, None)
            try:
                if message.content.get("code") == child.DONE and waiting.staging:
                    # The child said that it was done and its result is not one: what it made is not wanted either.
                    self.ask(("discard", waiting.staging), {}, lambda _: None)
            finally:
                job.future.set_exception(child.sorted_error(error))
        else:
            job.future.set_result(result)


def _lost(error: OSError) -> HelperFailed:
    if isinstance(error, BlockingIOError):
        return HelperFailed("the helper does not take its messages")
    return HelperFailed(f"the helper cannot be reached: {error.strerror}")


def _cost(content: wire.Json) -> Cost:
    seconds, peak = content.get("cpu_seconds"), content.get("peak_rss_bytes")
    if not isinstance(seconds, float) or not isinstance(peak, int):
        raise HelperFailed("a job ended without its cost")
    return Cost(seconds, peak)


def _outcome(message: wire.Message, waiting: _Waiting) -> object:
    """Return the result of a job that ended, or raise what it failed with."""
    content = message.content
    if content.get("event") == "refused":
        raise wire.to_error(content.get("error"))
    waiting.job.cost = _cost(content)
    code = content.get("code")
    if content.get("cancelled"):
        raise JobCancelled("the job was cancelled")
    if not isinstance(code, int) or code < 0:
        raise _killed(code)
    if not message.whole:
        raise NoSpace("a result arrived without its descriptor: this process has none left")
    if not message.descriptors:
        return waiting.read(None)
    body = (wire.read_result if waiting.small else wire.read_body)(message.descriptors[0])
    if code in (child.DONE, child.MARKS, child.NOTHING) and "value" in body:
        return waiting.read(body["value"])
    raise wire.to_error(body.get("error"))


def _killed(code: object) -> RootfsError:
    """Say what the signal means that ended a child."""
    number = -code if isinstance(code, int) else 0
    if number == signal.SIGXCPU:
        return LimitExceeded("it takes more processor time than it may", "cpu_seconds")
    if number == signal.SIGSYS:
        return HelperFailed("the unpacker made a system call that it may not make, and was ended")
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    hint = "; the node may be out of memory" if number == signal.SIGKILL else ""
    return HelperFailed(f"the child was ended by {name}{hint}")
