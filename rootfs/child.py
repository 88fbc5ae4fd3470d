"""What runs in a process of its own, forked from the helper for one job: the way in, and the way out.

Rule: a child keeps the descriptors that its job was given and no others, does one thing, writes its result or its
error into one body, and ends with a code that says which. It never returns into the helper's code.

The unpacking child reads hostile bytes: it is confined (`rootfs.sandbox`) before the first one, and after that can
import, open or start nothing.
"""

from __future__ import annotations

import fcntl
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from rootfs import sandbox, syscalls, values, wire
from rootfs.errors import (
    ContentMismatch,
    HelperFailed,
    LayerRejected,
    NoSpace,
    RootfsError,
    from_os_error,
)
from rootfs.scrub import scrub
from rootfs.watermarks import FollowingReader

if TYPE_CHECKING:
    from collections.abc import Collection

    from rootfs.apply import Applied
    from rootfs.compression import Reader
    from rootfs.digest import Digest
    from rootfs.limits import Limits
    from rootfs.scrub import Order

DONE: Final = 0
"""The result lies in the body."""
MARKS: Final = 3
"""As `DONE`, and directories of the new tree are to be marked opaque."""
FAILED: Final = 4
"""The error lies in the body."""
NOTHING: Final = 5
"""The result lies in the body, and nothing of what is under staging is wanted."""

BLOB: Final = 3
WATERMARKS: Final = 4
RESULT: Final = 5
RECORD: Final = 7
"""Where the record of the tar goes; next to `sandbox.ROOT`, and only where one is wanted."""

_DESCRIPTORS: Final = 256
_MEMORY_BYTES: Final = 1 << 30


def settle_descriptors(wanted: dict[int, int]) -> None:
    """Move descriptors to the numbers they are wanted under, 0 to 2 to /dev/null, and close every other one.

    Args:
        wanted: number to be (3 or more, without a gap) → descriptor now.
    """
    nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    moves = {0: nothing, 1: nothing, 2: nothing, **wanted}
    # By way of higher numbers, so that no move overwrites what a later one needs.
    above = max(moves) + 1
    high = {to: fcntl.fcntl(now, fcntl.F_DUPFD_CLOEXEC, above) for to, now in moves.items()}
    for to, now in high.items():
        os.dup2(now, to, inheritable=False)
    _close_from(above)


def _close_from(first: int) -> None:
    try:
        syscalls.close_range(first, 0x7FFFFFFF)
    except OSError:
        os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def run(result: int, job: Callable[[], tuple[int, wire.Json]]) -> NoReturn:
    """Do *job*, which returns a code and the result, write the body *result*, and end this process."""
    code = FAILED
    try:
        try:
            code, value = job()
            wire.write_body(result, value)
        except Exception as error:  # Whatever it is, the daemon is told; there is nobody else to tell.
            code = FAILED
            wire.write_body(result, {"error": wire.from_error(sorted_error(error))})
    finally:
        os._exit(code)


def sorted_error(error: Exception) -> RootfsError:
    """Make one of our errors of anything that a job raised."""
    if isinstance(error, RootfsError):
        return error
    if isinstance(error, MemoryError):
        return NoSpace("out of memory")
    if isinstance(error, OSError):
        found = from_os_error(error)
        named = f"{found.sentence} ({os.fsdecode(error.filename)})" if error.filename else found.sentence
        return found if not isinstance(found, LayerRejected) else RootfsError(named)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return HelperFailed(f"unexpected {type(error).__name__} at {os.path.basename(place.filename)}:{place.lineno}")


@dataclass(frozen=True, slots=True)
class Unpacking:
    """One layer to unpack.

    Attributes:
        blob: the digest that the bytes must have.
        size_bytes: how many there must be.
        limits: bounds of the layer.
        plain: its media type says that it is not compressed.
        diff_algorithm: of the digest of the tar.
        cpu_seconds: processor time that it may take.
        privileged: owners and device nodes can be made.
        parts: of the sandbox, those that can be had.
        helper: process id of the parent.
        record: descriptor for the record of the tar (`rootfs.tarsplit`), -1 for none.
    """

    blob: Digest
    size_bytes: int
    limits: Limits
    plain: bool
    diff_algorithm: str
    cpu_seconds: int
    privileged: bool
    parts: Collection[str]
    helper: int
    record: int = -1

    def bounds(self) -> sandbox.Bounds:
        """Return what the kernel is to hold the child to."""
        return sandbox.Bounds(
            file_bytes=max(self.limits.unpacked_bytes, 2 * wire.BODY_BYTES),
            memory_bytes=_MEMORY_BYTES + 2 * self.limits.window_bytes,
            cpu_seconds=self.cpu_seconds,
            descriptors=_DESCRIPTORS,
            parent=self.helper,
        )


Apply = Callable[["Reader", int, Unpacking], "Applied"]
"""Turns a stream into the tree at a descriptor."""


def leave_helper(descriptors: dict[int, int]) -> None:
    """Become a process of its own: no signal plumbing, no session, no descriptors of the helper's.

    Args:
        descriptors: as for `settle_descriptors`.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    sandbox.offer_to_oom_killer()
    settle_descriptors(descriptors)


def unpack(apply: Apply, order: Unpacking) -> tuple[int, wire.Json]:
    """Unpack one layer in this process; `BLOB`, `WATERMARKS`, `RESULT` and `sandbox.ROOT` are in place.

    Args:
        apply: turns the stream into the tree.
        order: what to unpack.
    """
    missing = sandbox.confine(order.parts, order.bounds())
    if missing:
        raise HelperFailed("; ".join(f"the sandbox's {part} could not be had: {why}" for part, why in missing.items()))
    source = FollowingReader(BLOB, WATERMARKS, size_bytes=order.size_bytes)
    try:
        applied = apply(source, sandbox.ROOT, order)
    except OSError as error:
        raise from_os_error(error) from None
    _check(applied, order)
    wire.write_paths(RESULT, (*applied.opaque, *applied.implied))
    return (MARKS if applied.opaque else DONE), {"value": values.from_applied(applied)}


def _check(applied: Applied, order: Unpacking) -> None:
    """Compare what arrived with what was promised."""
    if applied.blob_size_bytes != order.size_bytes:
        raise ContentMismatch(f"the blob should have {order.size_bytes} bytes, it has {applied.blob_size_bytes}")
    if applied.blob != order.blob:
        raise ContentMismatch(f"the blob should have the digest {order.blob}, it has {applied.blob}")


@dataclass(frozen=True, slots=True)
class Scrubbing:
    """One layer to look at: what it should be, its bounds, and as `Unpacking` what the child is held to.

    `idle` leaves processor and disk to everybody else.
    """

    order: Order
    limits: Limits
    idle: bool
    record: int
    cpu_seconds: int
    parts: Collection[str]
    helper: int


def scrub_layer(scrubbing: Scrubbing) -> tuple[int, wire.Json]:
    """Look at one layer in this process, confined; `RESULT` and `sandbox.ROOT`, its tree, are in place."""
    if scrubbing.idle:
        sandbox.stand_back()
    bounds = sandbox.Bounds(
        file_bytes=2 * wire.BODY_BYTES,
        memory_bytes=_MEMORY_BYTES + 2 * scrubbing.limits.window_bytes,
        cpu_seconds=scrubbing.cpu_seconds,
        descriptors=_DESCRIPTORS,
        parent=scrubbing.helper,
        read_only=True,
    )
    missing = sandbox.confine(scrubbing.parts, bounds)
    if missing:
        raise HelperFailed("; ".join(f"the sandbox's {part} could not be had: {why}" for part, why in missing.items()))
    found = scrub(scrubbing.record, sandbox.ROOT, scrubbing.order, scrubbing.limits)
    wire.write_paths(RESULT, values.paths_of(found))
    return DONE, {"value": values.from_scrubbed(found)}
