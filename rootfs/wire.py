"""What the daemon, the helper and its children say to each other.

Daemon and helper share a SOCK_SEQPACKET socket: one message is one small JSON object, with descriptors beside it.
Whatever may be long (arguments, results) lies in a memory file whose size is fixed and sealed before it is handed out,
so that neither side can be made to hold more than `BODY_BYTES` for one job. A body is eight bytes of length and JSON.

Rule: everything is bounded and checked by who reads it. An unpacking child read hostile bytes; its body is as hostile.
Paths of layers are bytes and travel as the Unicode code points of the same numbers (ISO 8859-1).
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

from rootfs import errors
from rootfs.errors import HelperFailed, LimitExceeded, RootfsError

MESSAGE_BYTES: Final = 4096
"""The longest message; a longer one is refused by both sides."""
DESCRIPTORS: Final = 4
"""The most descriptors that come with one message."""
BODY_BYTES: Final = 64 << 20
"""The longest body."""

_LENGTH: Final = struct.Struct("<Q")
_SEALS: Final = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_ERROR_SENTENCE: Final = 2000
_ERROR_STEPS: Final = 16
_ERRORS: Final[dict[str, type[RootfsError]]] = {
    kind.__name__: kind
    for kind in (
        RootfsError,
        errors.LayerRejected,
        errors.ContentMismatch,
        errors.InvalidDigest,
        errors.UnsupportedDigest,
        errors.LimitExceeded,
        errors.NoSpace,
        errors.JobCancelled,
        errors.HelperFailed,
    )
}

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Message:
    """A message and its descriptors, which are the receiver's to close.

    `whole` is False when descriptors were lost because this process has none left; then there are none at all.
    """

    content: Json
    descriptors: tuple[int, ...]
    whole: bool


def send(channel: socket.socket, message: Json, descriptors: tuple[int, ...] = (), flags: int = 0) -> None:
    """Send one message.

    Raises:
        HelperFailed: the message is too long.
        OSError: the other side is gone, or cannot take more now (with MSG_DONTWAIT).
    """
    data = json.dumps(message, separators=(",", ":")).encode("ascii")
    if len(data) > MESSAGE_BYTES or len(descriptors) > DESCRIPTORS:
        raise HelperFailed(f"a message of {len(data)} bytes is longer than the helper takes")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    channel.sendmsg([data], rights, flags | socket.MSG_NOSIGNAL)


def receive(channel: socket.socket) -> Message | None:
    """Wait for one message; None when the other side is gone. Its descriptors are close-on-exec.

    Raises:
        HelperFailed: what came is no message.
    """
    room = socket.CMSG_SPACE(DESCRIPTORS * array.array("i").itemsize)
    data, ancillary, flags, _ = channel.recvmsg(MESSAGE_BYTES + 1, room, socket.MSG_CMSG_CLOEXEC)
    descriptors = _descriptors(ancillary)
    if not data:
        _close(descriptors)
        return None
    whole = not flags & socket.MSG_CTRUNC
    try:
        content = _object(data, MESSAGE_BYTES)
    except HelperFailed:
        _close(descriptors)
        raise
    if not whole:
        _close(descriptors)
    return Message(content, descriptors if whole else (), whole)


def _close(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return tuple(found)


def _object(data: bytes, limit_bytes: int = BODY_BYTES) -> Json:
    if len(data) > limit_bytes:
        raise HelperFailed("what arrived is longer than it may be")
    try:
        value = json.loads(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        raise HelperFailed("what arrived is not JSON") from None
    if not isinstance(value, dict):
        raise HelperFailed("what arrived is not a JSON object")
    return value


def new_body(size_bytes: int = BODY_BYTES) -> int:
    """Make an empty memory file for a body of at most *size_bytes*; it can neither grow nor shrink."""
    descriptor = os.memfd_create("rootfs", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, _LENGTH.size + size_bytes)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor


def write_body(descriptor: int, value: Json) -> None:
    """Put *value* into a body.

    Raises:
        LimitExceeded: it does not fit.
    """
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    if len(data) > os.fstat(descriptor).st_size - _LENGTH.size:
        raise LimitExceeded(f"a result of {len(data)} bytes is longer than a helper may hand back", "directories")
    parts = memoryview(_LENGTH.pack(len(data)) + data)
    position = 0
    while position < len(parts):
        position += os.pwrite(descriptor, parts[position:], position)


def read_body(descriptor: int) -> Json:
    """Return what lies in a body.

    Raises:
        HelperFailed: nothing, or something else than a JSON object of the length it states.
    """
    prefix = os.pread(descriptor, _LENGTH.size, 0)
    length = _LENGTH.unpack(prefix)[0] if len(prefix) == _LENGTH.size else 0
    if not 0 < length <= BODY_BYTES:
        raise HelperFailed("no result was handed back")
    data = os.pread(descriptor, length, _LENGTH.size)
    if len(data) != length:
        raise HelperFailed("the result is shorter than it says")
    return _object(data)


def made_body(value: Json) -> int:
    """Make a body that holds *value*.

    Raises:
        LimitExceeded: *value* is too long.
        OSError: no memory file can be made.
    """
    descriptor = new_body()
    try:
        write_body(descriptor, value)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def from_error(error: RootfsError) -> Json:
    """Write an error down."""
    return {
        "kind": type(error).__name__,
        "sentence": error.sentence[:_ERROR_SENTENCE],
        "steps": list(error.steps[:_ERROR_STEPS]),
        "bound": error.bound if isinstance(error, LimitExceeded) else "",
    }


def to_error(value: object) -> RootfsError:
    """Read an error; the text may come from a hostile child, so it is cut and made printable."""
    if not isinstance(value, dict):
        return HelperFailed("a failure was told without its reason")
    kind = _ERRORS.get(str(value.get("kind")), HelperFailed)
    sentence = _printable(value.get("sentence"))
    error = LimitExceeded(sentence, _printable(value.get("bound"))[:64]) if kind is LimitExceeded else kind(sentence)
    steps = value.get("steps")
    error.steps = tuple(_printable(step) for step in steps[:_ERROR_STEPS]) if isinstance(steps, list) else ()
    return error


def _printable(value: object) -> str:
    text = value[:_ERROR_SENTENCE] if isinstance(value, str) else "no reason was given"
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def path_text(path: bytes) -> str:
    """Write a path of a layer as a JSON string."""
    return path.decode("latin-1")


def path_bytes(value: object) -> bytes:
    """Read a path of a layer.

    Raises:
        HelperFailed: it is not one.
    """
    try:
        if isinstance(value, str):
            return value.encode("latin-1")
    except UnicodeEncodeError:
        pass
    raise HelperFailed("a path was handed back that is not one")
