"""The one table that turns errors into gRPC codes, and the wording that kubelet acts on.

kubelet strips the code from UNKNOWN only, and then looks at how the text begins: `RegistryUnavailable` becomes a
reason of its own, and so does `SignatureValidationFailed`. So these two must be UNKNOWN with their prefix; any other
code loses it.
An error that has no row is a bug: the caller learns that there was one, and the log has the rest.
"""

from __future__ import annotations

import errno
import os
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
    """What one class of errors, and those below it, become."""

    error: type[Exception]
    code: StatusCode
    prefix: str = ""


TABLE: Final = (
    Row(shim.InvalidReference, StatusCode.INVALID_ARGUMENT),
    Row(shim.InvalidRequest, StatusCode.INVALID_ARGUMENT),
    Row(shim.NotFound, StatusCode.NOT_FOUND),
    Row(shim.Unauthenticated, StatusCode.UNAUTHENTICATED),
    Row(shim.Denied, StatusCode.PERMISSION_DENIED),
    Row(shim.RegistryUnavailable, StatusCode.UNKNOWN, prefix="RegistryUnavailable: "),
    Row(shim.SignatureRejected, StatusCode.UNKNOWN, prefix="SignatureValidationFailed: "),
    Row(shim.ContentRejected, StatusCode.FAILED_PRECONDITION),
    Row(shim.Unsupported, StatusCode.UNIMPLEMENTED),
    Row(shim.LimitExceeded, StatusCode.RESOURCE_EXHAUSTED),
    Row(shim.NoSpace, StatusCode.RESOURCE_EXHAUSTED),
    Row(shim.StoreDamaged, StatusCode.DATA_LOSS),
    Row(shim.ConfigError, StatusCode.FAILED_PRECONDITION),
    Row(shim.HandOffFailed, StatusCode.UNAVAILABLE),
    Row(shim.DeadlineExceeded, StatusCode.DEADLINE_EXCEEDED),
    Row(shim.Draining, StatusCode.UNAVAILABLE),
    Row(shim.Cancelled, StatusCode.CANCELLED),
    Row(rootfs.LayerRejected, StatusCode.FAILED_PRECONDITION),
    Row(rootfs.ContentMismatch, StatusCode.FAILED_PRECONDITION),
    Row(rootfs.InvalidDigest, StatusCode.FAILED_PRECONDITION),
    Row(rootfs.UnsupportedDigest, StatusCode.UNIMPLEMENTED),
    Row(rootfs.LimitExceeded, StatusCode.RESOURCE_EXHAUSTED),
    Row(rootfs.NoSpace, StatusCode.RESOURCE_EXHAUSTED),
    Row(rootfs.JobCancelled, StatusCode.CANCELLED),
    Row(rootfs.HelperFailed, StatusCode.INTERNAL),
    Row(rootfs.RootfsError, StatusCode.INTERNAL),  # the node's disk failed (EIO, EROFS): no bug, and worth its sentence
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
