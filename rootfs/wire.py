"""What the daemon, the helper and its children say to each other.

Daemon and helper share a SOCK_SEQPACKET socket: one message is one small JSON object, with descriptors beside it.
Whatever may be long (arguments, results) lies in a memory file whose size is fixed and sealed before it is handed out,
so that neither side can be made to hold more than `BODY_BYTES` for one job. A body is eight bytes of length and JSON;
the unpacker's result is little JSON, and from `_PATHS_AT` on its paths: their number, the length of what follows, and
the paths, a NUL after each.

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

RESULT_BYTES: Final = 64 << 10
"""The longest JSON that an unpacker hands back."""
PATHS: Final = 1_000_000
"""The most paths that an unpacker hands back."""
PATHS_BYTES: Final = 32 << 20
"""The longest that those may be together."""

_LENGTH: Final = struct.Struct("<Q")
_PATHS_HEAD: Final = struct.Struct("<QQ")
_PATHS_AT: Final = _LENGTH.size + RESULT_BYTES
_SLICE_BYTES: Final = 256 << 10
_SEALS: Final = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_ERROR_SENTENCE: Final = 2000
_ERROR_STEPS: Final = 16
_ERROR_STEP: Final = 400
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
    _write_at(descriptor, 0, _LENGTH.pack(len(data)) + data)


def _write_at(descriptor: int, position: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, position)
        position, left = position + written, left[written:]


def write_paths(descriptor: int, paths: tuple[bytes, ...]) -> None:
    """Put the paths of an unpacker's result into its body.

    Raises:
        LimitExceeded: they do not fit.
    """
    length = sum(map(len, paths)) + len(paths)
    if len(paths) > PATHS or length > PATHS_BYTES:
        sentence = f"a result with {len(paths)} paths of {length} bytes is longer than a helper may hand back"
        raise LimitExceeded(sentence, "directories")
    _write_at(descriptor, _PATHS_AT, _PATHS_HEAD.pack(len(paths), length) + b"".join(path + b"\0" for path in paths))


def read_result(descriptor: int) -> Json:
    """Return what lies in the body of an unpacker, the paths as `paths` of its value.

    Raises:
        HelperFailed: it is anything else, or more than it may be.
    """
    body = read_body(descriptor, RESULT_BYTES)
    value = body.get("value")
    if isinstance(value, dict):
        value["paths"] = _read_paths(descriptor)
    return body


def _read_paths(descriptor: int) -> tuple[bytes, ...]:
    """Read slice by slice, so that other threads have their turn and nothing is split that is too much."""
    head = os.pread(descriptor, _PATHS_HEAD.size, _PATHS_AT)
    number, length = _PATHS_HEAD.unpack(head) if len(head) == _PATHS_HEAD.size else (0, 1)
    found: list[bytes] = []
    rest, at = b"", 0
    fits = number <= PATHS and length <= PATHS_BYTES
    while fits and at < length:
        piece = os.pread(descriptor, min(_SLICE_BYTES, length - at), _PATHS_AT + _PATHS_HEAD.size + at)
        at += len(piece)
        fits = bool(piece) and len(found) + piece.count(0) <= number and len(rest) <= RESULT_BYTES
        if not fits:
            break
        *whole, rest = (rest + piece).split(b"\0")
        found += whole
    if not fits or len(found) != number or rest:
        raise HelperFailed("the paths of a result are not what it says")
    return tuple(found)


def read_body(descriptor: int, limit_bytes: int = BODY_BYTES) -> Json:
    """Return what lies in a body, whose JSON has at most *limit_bytes*.

    Raises:
        HelperFailed: nothing, or something else than a JSON object of the length it states.
    """
    prefix = os.pread(descriptor, _LENGTH.size, 0)
    length = _LENGTH.unpack(prefix)[0] if len(prefix) == _LENGTH.size else 0
    if not 0 < length <= limit_bytes:
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
        "steps": [step[:_ERROR_STEP] for step in error.steps[:_ERROR_STEPS]],
        "bound": error.bound if isinstance(error, LimitExceeded) else "",
    }


def to_error(value: object) -> RootfsError:
    """Read an error; the text may come from a hostile child, so it is cut and made printable."""
    if not isinstance(value, dict):
        return HelperFailed("a failure was told without its reason")
    kind = _ERRORS.get(str(value.get("kind")), HelperFailed)
    sentence = printable(value.get("sentence"))
    error = LimitExceeded(sentence, printable(value.get("bound"))[:64]) if kind is LimitExceeded else kind(sentence)
    steps = value.get("steps")
    error.steps = tuple(printable(step) for step in steps[:_ERROR_STEPS]) if isinstance(steps, list) else ()
    return error


def printable(value: object) -> str:
    """Cut a text from elsewhere and replace what would not print."""
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
