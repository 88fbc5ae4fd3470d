"""Asking a helper for jobs in tests, and looking at its processes."""

from __future__ import annotations

import contextlib
import os
import threading
import time

from rootfs.client import Options
from rootfs.digest import Digest
from rootfs.limits import Limits
from rootfs.watermarks import WatermarkWriter

FAKE = Options(module="tests.fakes.rootfs_helper")
SECONDS = 60  # no machine is this slow


def until(condition, what="it"):
    """Wait for another process to get there."""
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen"
        threading.Event().wait(0.001)
    return found


class Blob:
    """A blob on its way: all of it in a file, as much of it final as the test says."""

    def __init__(self, data):
        self.data = data
        self.file = os.memfd_create("layer")
        os.write(self.file, data)
        self.read_end, self.write_end = os.pipe()
        self.writer = WatermarkWriter(self.write_end)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for descriptor in (self.file, self.read_end, self.write_end):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def unpack(self, helper, staging, **changes):
        settings = {"blob": Digest.of(self.data), "blob_size_bytes": len(self.data), "limits": Limits(), **changes}
        return helper.unpack(staging, self.file, self.read_end, **settings)

    def end(self):
        self.writer.end(len(self.data))


def unpack(helper, staging, data, **changes):
    """Unpack a complete blob."""
    with Blob(data) as blob:
        blob.end()
        return blob.unpack(helper, staging, **changes)


def waiting(helper, staging, blob):
    """Start to unpack a blob of which nothing is there yet; return the job once its child is confined and waits."""
    job = blob.unpack(helper, staging)
    until(lambda: job.pid, "the start of a child")
    until(lambda: status(job.pid).get("Seccomp") == "2", "the confinement")
    until(
        lambda: wait_channel(job.pid).startswith(("pipe_read", "anon_pipe_read", "pipe_wait")) or state(job.pid) == "S"
    )
    return job


def status(pid):
    try:
        with open(f"/proc/{pid}/status") as file:
            return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    except OSError:
        return {}


def state(pid):
    """Return the letter of a process, "" when there is none."""
    return status(pid).get("State", "")[:1]


def gone(pid):
    return state(pid) in ("", "Z", "X")


def wait_channel(pid):
    try:
        with open(f"/proc/{pid}/wchan") as file:
            return file.read()
    except OSError:
        return ""


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def descriptors(pid):
    """Return what each descriptor of a process is; the one that lists them is not one of them."""
    found = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[int(number)] = os.readlink(f"/proc/{pid}/fd/{number}")
    return found


def process(helper):
    """Return the process id of a helper."""
    return helper.facts()["pid"]


def after_pivot(log, pid):
    """Return what the process *pid* called after it changed its root, out of a log of strace.

    A call that another process's interrupted stands in the log twice; its beginning is what counts.
    """
    lines = [line.split(maxsplit=1)[1] for line in log.splitlines() if line.split()[0] == str(pid)]
    at = next(number for number, line in enumerate(lines) if line.startswith("pivot_root("))
    return [line for line in lines[at + 1 :] if not line.startswith(("+++", "---", "<..."))]
