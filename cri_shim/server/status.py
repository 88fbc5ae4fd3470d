"""The one table that turns errors into gRPC codes, and the wording that kubelet acts on.

kubelet strips the code from UNKNOWN only, and then looks at how the text begins: `RegistryUnavailable` becomes a
reason of its own, and so does `SignatureValidationFailed`. So these two must be UNKNOWN with their prefix; any other
code loses it.
An error that has no row is a bug: the caller learns that there was one, and the log has the rest.
"""

from __future__ import annotations

import errno
import os
from asyncio import CancelledError
from dataclasses import dataclass
from typing import Final

from grpc import StatusCode

from cri_shim import errors as shim
from cri_shim.log import printable
from rootfs import errors as rootfs

LONGEST_MESSAGE_BYTES: Final = 4096
"""Of a message as it travels (percent-encoded); gRPC peers begin to refuse headers at 8 KiB."""

BUG: Final = "internal error; the log of cri-shim has the details"
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


@dataclass(frozen=True, slots=True)
class Row:
    """What one class of errors, and those below it, become; *reason* is the word for it in the metrics."""

    error: type[Exception]
    code: StatusCode
    reason: str
    prefix: str = ""


TABLE: Final = (
    Row(shim.InvalidReference, StatusCode.INVALID_ARGUMENT, "invalid_reference"),
    Row(shim.InvalidRequest, StatusCode.INVALID_ARGUMENT, "invalid_request"),
    Row(shim.NotFound, StatusCode.NOT_FOUND, "not_found"),
    Row(shim.Unauthenticated, StatusCode.UNAUTHENTICATED, "unauthorized"),
    Row(shim.Denied, StatusCode.PERMISSION_DENIED, "denied"),
    Row(shim.RegistryUnavailable, StatusCode.UNKNOWN, "unavailable", prefix="RegistryUnavailable: "),
    Row(shim.SignatureRejected, StatusCode.UNKNOWN, "signature_invalid", prefix="SignatureValidationFailed: "),
    Row(shim.ContentRejected, StatusCode.FAILED_PRECONDITION, "content_invalid"),
    Row(shim.Unsupported, StatusCode.UNIMPLEMENTED, "unsupported"),
    Row(shim.LimitExceeded, StatusCode.RESOURCE_EXHAUSTED, "limit_exceeded"),
    Row(shim.NoSpace, StatusCode.RESOURCE_EXHAUSTED, "no_space"),
    Row(shim.StoreDamaged, StatusCode.DATA_LOSS, "store_damaged"),
    Row(shim.ConfigError, StatusCode.FAILED_PRECONDITION, "config"),
    Row(shim.HandOffFailed, StatusCode.UNAVAILABLE, "handoff"),
    Row(shim.DeadlineExceeded, StatusCode.DEADLINE_EXCEEDED, "deadline_exceeded"),
    Row(shim.Draining, StatusCode.UNAVAILABLE, "stopping"),
    Row(shim.Cancelled, StatusCode.CANCELLED, "cancelled"),
    Row(rootfs.LayerRejected, StatusCode.FAILED_PRECONDITION, "content_invalid"),
    Row(rootfs.ContentMismatch, StatusCode.FAILED_PRECONDITION, "digest_invalid"),
    Row(rootfs.InvalidDigest, StatusCode.FAILED_PRECONDITION, "content_invalid"),
    Row(rootfs.UnsupportedDigest, StatusCode.UNIMPLEMENTED, "unsupported"),
    Row(rootfs.LimitExceeded, StatusCode.RESOURCE_EXHAUSTED, "limit_exceeded"),
    Row(rootfs.NoSpace, StatusCode.RESOURCE_EXHAUSTED, "no_space"),
    Row(rootfs.JobCancelled, StatusCode.CANCELLED, "cancelled"),
    Row(rootfs.HelperFailed, StatusCode.INTERNAL, "helper"),
    Row(
        rootfs.RootfsError, StatusCode.INTERNAL, "disk"
    ),  # the node's disk failed (EIO, EROFS): no bug, and worth its sentence
)
_ROWS: Final = {row.error: row for row in TABLE}


def row_of(error: BaseException) -> Row | None:
    """Return the row of an error's class or of the nearest class above it; None for a bug."""
    return next((_ROWS[kind] for kind in type(error).__mro__ if kind in _ROWS), None)


def is_bug(error: BaseException) -> bool:
    """Tell whether *error* should not have come this far."""
    return row_of(error) is None and not _is_no_space(error)


def status_of(error: BaseException) -> tuple[StatusCode, str]:
    """Return the code of *error* and its message, fit to be sent."""
    if (row := row_of(error)) is not None:
        return row.code, sendable(f"{row.prefix}{error}")
    if _is_no_space(error):
        number = error.errno if isinstance(error, OSError) and error.errno else errno.ENOMEM
        return StatusCode.RESOURCE_EXHAUSTED, f"the node has no room left: {os.strerror(number)}"
    return StatusCode.INTERNAL, BUG


def reason_of(error: BaseException) -> str:
    """Return the word for *error* in the metrics; there are as many as rows, and three more."""
    if isinstance(error, CancelledError):
        return "cancelled"
    if (row := row_of(error)) is not None:
        return row.reason
    return "no_space" if _is_no_space(error) else "unknown"


def sendable(message: str) -> str:
    """Escape what could disturb a terminal or a log, and cut at `LONGEST_MESSAGE_BYTES`."""
    text = printable(message, LONGEST_MESSAGE_BYTES)
    spent = 0
    for position, letter in enumerate(text):
        spent += _wire_bytes(letter)
        if spent > LONGEST_MESSAGE_BYTES - 3:
            return text[:position] + "..."
    return text


def _wire_bytes(letter: str) -> int:
    return 1 if " " <= letter <= "~" and letter != "%" else 3 * len(letter.encode())


def _is_no_space(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _NO_SPACE)
