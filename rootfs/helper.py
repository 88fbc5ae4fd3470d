"""The helper: the one process that touches layer directories, and the parent of a child for every job.

It is forked by the zygote for a socket of the daemon, and ends when that socket closes, taking its children with it.
One thread, one poll loop; nothing here waits for a disk or parses what a layer made: children do. What it does itself
is quick: fork, reap, kill, and rename a failed layer into the trash.

Rule: a job has one outcome, told once, after its child is reaped. A layer under staging belongs to the helper that
made it: it becomes committed or trash, and what an earlier helper left is trash from the start, for only a descriptor
that was opened before the first write learns of a write-back error (`rootfs.commit`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from rootfs import child, jobs, sandbox, values, wire, zygote
from rootfs.apply import apply_layer
from rootfs.errors import HelperFailed, NoSpace, RootfsError
from rootfs.failpoints import arm
from rootfs.layout import (
    Layout,
    checked_name,
    make_record,
    make_staged_diff,
    move_to_trash,
    must_be_one_mount,
    open_layer,
    open_layout,
)
from rootfs.overlay import OPAQUE_USER
from rootfs.probe import Facts, find_facts
from rootfs.writeback import Writeback

if TYPE_CHECKING:
    from collections.abc import Callable

    from rootfs.apply import Applied
    from rootfs.compression import Reader

MAX_JOBS: Final = 1024
MAX_STAGED: Final = 4096
_MAKING: Final = ("unpack", "form")
_KEEPING: Final = (*_MAKING, "share")
_LITTERING: Final = ("recover", "chain", "unchain")
_DESCRIPTORS: Final = {"unpack": 3, "share": 2, "assemble": 4}
_ORDERS: Final = {"cancel": signal.SIGKILL, "pause": signal.SIGSTOP, "resume": signal.SIGCONT}
_GOOD: Final = (child.DONE, child.NOTHING)
_LAST_WAIT_SECONDS: Final = 1.0
_MAX_DESCRIPTORS: Final = 65_536


class _Gone(Exception):
    """The daemon closed its end."""


@dataclass(slots=True)
class _Job:
    """A job with its child of the moment; `number` 0 is the helper's own sweeping."""

    number: int
    kind: str
    staging: str
    pid: int = 0
    result: int = -1
    unpacked: int = -1
    cancelled: bool = False
    cpu_seconds: float = 0.0
    peak_rss_bytes: int = 0

    def close(self) -> None:
        for descriptor in (self.result, self.unpacked):
            if descriptor >= 0:
                os.close(descriptor)
        self.result = self.unpacked = -1


@dataclass(slots=True)
class _Staged:
    """A layer under staging: whether a job works on it, and the descriptor that sees its write-back errors."""

    filesystem: int
    busy: bool


@dataclass(frozen=True, slots=True)
class _Options:
    """What the helper was started with: processor time for a layer, root of the runtime, whether tars are recorded.

    `writeback` tells whether the filesystem is synced while layers are unpacked.
    """

    cpu_seconds: int
    runtime: str
    tar_split: bool
    writeback: bool


class _Server:
    """The state of a helper and what it does about messages and ended children."""

    def __init__(
        self, channel: socket.socket, store: tuple[Layout, Facts], apply: child.Apply, options: _Options
    ) -> None:
        self._channel = channel
        self._apply = apply
        self._layout, self._facts = store
        self._options = options
        self._pid = os.getpid()
        self._jobs: dict[int, _Job] = {}
        self._staged: dict[str, _Staged] = {}
        self._sweep_wanted = False
        self._sweeping = False
        self._writeback = Writeback(self._layout.root) if options.writeback else None

    def run(self, wake: int) -> None:
        """Serve until the daemon closes its end."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        poll.register(wake, select.POLLIN)
        try:
            while True:
                ready = {descriptor for descriptor, _ in poll.poll()}
                if wake in ready:
                    os.read(wake, 4096)
                    self._reap()
                if self._channel.fileno() in ready:
                    self._take()
                self._sweep()
        except (_Gone, ConnectionError):
            self._kill_all()

    # Messages

    def _take(self) -> None:
        message = wire.receive(self._channel)
        if message is None:
            raise _Gone
        number, kind = values.count(message.content.get("id")), values.text(message.content.get("do"))
        if kind in _ORDERS:
            self._order_child(number, kind)
            return
        job = _Job(number, kind, values.text(message.content.get("staging")))
        try:
            self._begin(job, message)
        except (OSError, RootfsError) as error:
            job.close()
            self._tell(job, {"event": "refused", "error": wire.from_error(child.sorted_error(error))})
        finally:
            for descriptor in message.descriptors:
                os.close(descriptor)

    def _begin(self, job: _Job, message: wire.Message) -> None:
        if not message.whole or len(message.descriptors) != _DESCRIPTORS.get(job.kind, 1):
            raise NoSpace("a job arrived without its descriptors: the helper has none left")
        if len(self._jobs) >= MAX_JOBS:
            raise NoSpace(f"the helper runs {MAX_JOBS} jobs already")
        if job.kind in _MAKING:
            self._open_staged(job.staging)
        elif job.staging:
            self._check_idle(job.staging)
        try:
            self._start(job, message.descriptors)
        except BaseException:
            if job.kind in _MAKING:
                self._drop(job.staging)
            raise

    def _start(self, job: _Job, descriptors: tuple[int, ...]) -> None:
        if job.kind == "discard":
            self._drop(job.staging)
            self._tell(job, {"event": "ended", "code": child.DONE, "cpu_seconds": 0.0, "peak_rss_bytes": 0})
        elif job.kind == "unpack":
            self._fork(job, lambda: self._unpack(job, descriptors))
            if self._writeback is not None:
                self._writeback.begun()
        elif job.kind == "scrub":
            self._fork(job, lambda: self._scrub(job, descriptors[0]))
        elif job.kind in jobs.JOBS and job.kind != "mark":
            self._check_recover(job)
            self._fork(job, lambda: self._do(job, job.kind, *descriptors))
        else:
            raise HelperFailed(f"unknown job {job.kind[:40]!r}")
        if job.staging in self._staged:
            self._staged[job.staging].busy = True

    def _check_recover(self, job: _Job) -> None:
        if job.kind == "recover" and self._staged:
            raise HelperFailed("recovering is for the start: layers are being made")

    def _open_staged(self, staging: str) -> None:
        if checked_name(staging) in self._staged:
            raise HelperFailed(f"a layer is being made under {staging!r} already")
        if len(self._staged) >= MAX_STAGED:
            raise NoSpace(f"{MAX_STAGED} layers are being made already")
        filesystem = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._layout.root)
        self._staged[staging] = _Staged(filesystem, busy=False)

    def _check_idle(self, staging: str) -> None:
        entry = self._staged.get(checked_name(staging))
        if entry is not None and entry.busy:
            raise HelperFailed(f"a job still works on {staging!r}")

    def _order_child(self, number: int, order: str) -> None:
        job = self._jobs.get(number)
        if job is not None:
            job.cancelled = job.cancelled or order == "cancel"
            os.kill(job.pid, _ORDERS[order])

    def _tell(self, job: _Job, message: wire.Json, descriptors: tuple[int, ...] = ()) -> None:
        if job.number:
            wire.send(self._channel, {"id": job.number, **message}, descriptors)

    # Children

    def _fork(self, job: _Job, work: Callable[[], NoReturn]) -> None:
        """Start the child of *job*, which does *work*; a second one takes the place of the first."""
        result = wire.new_body()
        job.unpacked, job.result = job.result, result
        pid = os.fork()
        if pid == 0:
            try:
                work()
            finally:
                os._exit(child.FAILED)
        job.pid = pid
        self._jobs[job.number] = job
        self._tell(job, {"event": "started", "pid": pid})

    def _unpack(self, job: _Job, descriptors: tuple[int, ...]) -> NoReturn:
        """In the child: read the order, make the tree, and unpack into it."""
        body, blob, watermarks = descriptors

        def work() -> tuple[int, wire.Json]:
            return child.unpack(self._apply, order)

        try:
            order = self._order(wire.read_body(body))
            tree = make_staged_diff(self._layout, job.staging)
            wanted = {child.BLOB: blob, child.WATERMARKS: watermarks, child.RESULT: job.result, sandbox.ROOT: tree}
            if self._options.tar_split:
                wanted[child.RECORD] = make_record(self._layout, job.staging)
        except (OSError, RootfsError, KeyError) as error:
            child.run(job.result, _raising(error))
        child.leave_helper(wanted)
        child.run(child.RESULT, work)

    def _order(self, arguments: wire.Json) -> child.Unpacking:
        return child.Unpacking(
            blob=values.digest(arguments["blob"]),
            size_bytes=values.count(arguments["blob_size_bytes"]),
            limits=values.to_limits(arguments["limits"]),
            plain=bool(arguments["plain"]),
            diff_algorithm=values.text(arguments["diff_algorithm"]),
            cpu_seconds=self._options.cpu_seconds,
            privileged=self._facts.privileged,
            parts=self._facts.parts,
            helper=self._pid,
            record=child.RECORD if self._options.tar_split else -1,
        )

    def _scrub(self, job: _Job, body: int) -> NoReturn:
        """In the child: read the order, open the layer, and look at it."""

        def work() -> tuple[int, wire.Json]:
            return child.scrub_layer(scrubbing)

        try:
            arguments = wire.read_body(body)
            tree, record = open_layer(self._layout, values.text(arguments["name"]))
            wanted = {3: record if record >= 0 else body, 4: body, child.RESULT: job.result, sandbox.ROOT: tree}
            scrubbing = self._scrubbing(arguments, 3 if record >= 0 else -1)
        except (OSError, RootfsError, KeyError) as error:
            child.run(job.result, _raising(error))
        child.leave_helper(wanted)
        child.run(child.RESULT, work)

    def _scrubbing(self, arguments: wire.Json, record: int) -> child.Scrubbing:
        order = values.to_order(arguments["order"])
        return child.Scrubbing(
            order=dataclasses.replace(order, privileged=self._facts.privileged),
            limits=values.to_limits(arguments["limits"]),
            idle=bool(arguments["idle"]),
            record=record,
            cpu_seconds=self._options.cpu_seconds,
            parts=self._facts.parts,
            helper=self._pid,
        )

    def _do(self, job: _Job, kind: str, body: int, *given: int) -> NoReturn:
        """In the child: do a job that reads no hostile stream."""
        staged = self._staged.get(job.staging)
        work = jobs.Work(
            layout=self._layout,
            arguments={},
            staging=job.staging,
            filesystem=staged.filesystem if staged is not None else -1,
            opaque=self._facts.opaque,
            cpu_seconds=self._options.cpu_seconds,
            runtime=self._options.runtime,
            given=given,
        )
        jobs.run_trusted(work, kind, body, job.result, self._pid)

    def _reap(self) -> None:
        """Take in every child that ended."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            job = next((job for job in self._jobs.values() if job.pid == pid), None)
            if job is not None:
                job.cpu_seconds += usage.ru_utime + usage.ru_stime
                job.peak_rss_bytes = max(job.peak_rss_bytes, usage.ru_maxrss * 1024)
                self._ended(job, os.waitstatus_to_exitcode(status))

    def _ended(self, job: _Job, code: int) -> None:
        if code == child.MARKS and not self._facts.privileged and self._facts.opaque == OPAQUE_USER.decode("ascii"):
            code = child.DONE  # `rootfs.tree` has marked them, before their modes forbade it
        if code == child.MARKS and job.kind == "unpack" and job.unpacked < 0 and not job.cancelled:
            try:
                self._fork(job, lambda: self._do(job, "mark", job.unpacked))
            except (OSError, RootfsError) as error:
                code = child.FAILED
                with contextlib.suppress(OSError):
                    wire.write_body(job.result, {"error": wire.from_error(child.sorted_error(error))})
            else:
                return
        del self._jobs[job.number]
        if self._writeback is not None and job.kind == "unpack":
            self._writeback.ended()
        if not job.number:
            self._sweeping = False
        self._settle(job, code)
        self._tell_end(job, code)
        job.close()

    def _settle(self, job: _Job, code: int) -> None:
        """Decide what becomes of the layer under staging that the job was about."""
        self._sweep_wanted = self._sweep_wanted or job.kind in _LITTERING
        if job.staging not in self._staged:
            return
        if job.kind in _KEEPING and code == child.DONE and not job.cancelled:
            self._staged[job.staging].busy = False
        else:
            with contextlib.suppress(OSError):
                self._drop(job.staging)

    def _tell_end(self, job: _Job, code: int) -> None:
        told = {
            "event": "ended",
            "code": code,
            "cancelled": job.cancelled,
            "cpu_seconds": job.cpu_seconds,
            "peak_rss_bytes": job.peak_rss_bytes,
        }
        marked = job.unpacked >= 0 and code in _GOOD
        self._tell(job, told, (job.unpacked if marked else job.result,))

    # Staging and trash

    def _drop(self, staging: str) -> None:
        """Forget the layer under *staging* and put what there is of it into the trash."""
        entry = self._staged.pop(staging, None)
        if entry is not None:
            os.close(entry.filesystem)
        if move_to_trash(self._layout, self._layout.staging, checked_name(staging)):
            self._sweep_wanted = True

    def _sweep(self) -> None:
        """Empty the trash in a child of the helper's own, one at a time."""
        if not self._sweep_wanted or self._sweeping:
            return
        self._sweep_wanted = False
        sweep = _Job(0, "empty_trash", "")
        with contextlib.suppress(OSError):
            body = wire.made_body({})
            try:
                self._fork(sweep, lambda: self._do(sweep, "empty_trash", body))
                self._sweeping = True
            finally:
                os.close(body)

    def _kill_all(self) -> None:
        if self._writeback is not None:
            self._writeback.close()
        for job in self._jobs.values():
            os.kill(job.pid, signal.SIGKILL)
        deadline = time.monotonic() + _LAST_WAIT_SECONDS
        while time.monotonic() < deadline:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    select.select([], [], [], 0.005)
            except ChildProcessError:
                return


def _raising(error: Exception) -> Callable[[], tuple[int, wire.Json]]:
    def job() -> tuple[int, wire.Json]:
        raise error

    return job


def _prepare(root: str, apply: child.Apply) -> tuple[Layout, Facts]:
    """Open the store, put aside what an earlier helper left, and find out what children can have."""
    os.umask(0o077)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    layout = open_layout(root)
    must_be_one_mount(layout)
    for name in os.listdir(layout.staging):
        move_to_trash(layout, layout.staging, name)
    facts = find_facts(layout, apply)
    gc.collect()
    gc.freeze()
    gc.disable()
    return layout, facts


def serve(apply: child.Apply, arguments: list[str]) -> None:
    """Be the zygote of helpers (`rootfs.zygote`).

    Args:
        apply: turns the stream of a layer into a tree.
        arguments: number of the socket's descriptor, and the options as JSON: `root`, `cpu_seconds`,
            `require_sandbox`, `runtime`, `tar_split`, `writeback`, `failpoints`.
    """
    options = json.loads(arguments[1])
    zygote.serve(socket.socket(fileno=int(arguments[0])), lambda channel: _serve(apply, channel, options))


def _serve(apply: child.Apply, channel: socket.socket, options: dict[str, Any]) -> None:
    """Be a helper."""
    wake = zygote.wake_up()
    try:
        arm(*options.get("failpoints", ("", ())))
        layout, facts = _prepare(options["root"], apply)
    except Exception as error:  # The daemon is told why its helper cannot start, whatever it is.
        wire.send(channel, {"event": "failed", "error": wire.from_error(child.sorted_error(error))})
        return
    hello = {"event": "hello", "pid": os.getpid(), **dataclasses.asdict(facts)}
    with contextlib.suppress(ConnectionError):
        wire.send(channel, hello)
        if facts.missing and options["require_sandbox"]:
            return
        own = _Options(options["cpu_seconds"], options["runtime"], options["tar_split"], options["writeback"])
        _Server(channel, (layout, facts), apply, own).run(wake)


def apply_stream(source: Reader, root: int, order: child.Unpacking) -> Applied:
    """Unpack with `rootfs.apply`."""
    return apply_layer(
        source,
        root,
        limits=order.limits,
        privileged=order.privileged,
        plain=order.plain,
        algorithm=order.blob.algorithm,
        diff_algorithm=order.diff_algorithm,
        record_fd=order.record,
    )


if __name__ == "__main__":
    serve(apply_stream, sys.argv[1:])
