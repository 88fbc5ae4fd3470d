"""The errors of rootfs: a small tree, one sentence each.

They follow the same form as those of cri-shim, and know nothing of them: a sentence says what was wrong, `within` puts
the step it happened in before it. Bytes that come from a layer reach a sentence only through `shown`.
"""

from __future__ import annotations

import errno
import os
from typing import Final, Self

SHOWN_BYTES: Final = 200
"""How much of a name out of a layer an error repeats, in bytes."""

_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_CONTENT: Final = frozenset(
    {
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENOENT,
        errno.EEXIST,
        errno.ENOTEMPTY,
        errno.EINVAL,
        errno.EILSEQ,
        errno.EXDEV,
        errno.EMLINK,
        errno.E2BIG,
        errno.ERANGE,
        errno.EOVERFLOW,
    }
)


class RootfsError(Exception):
    """Something about a layer could not be done. The class itself stands for a failure of the node (EIO, EROFS)."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.steps: tuple[str, ...] = ()

    def within(self, what: str) -> Self:
        """Put the step *what* in front of what the message already says, and return self."""
        self.steps = (what, *self.steps)
        return self

    def __str__(self) -> str:
        return ": ".join((*self.steps, self.sentence))


class LayerRejected(RootfsError):
    """The tar or its compression is corrupt, or asks for something that a layer may not do."""


class ContentMismatch(RootfsError):
    """The bytes are not what their digest, size or diff ID promised."""


class InvalidDigest(RootfsError):
    """A text does not follow the digest grammar of the OCI image specification."""


class UnsupportedDigest(RootfsError):
    """A digest is well formed, and of an algorithm that is not served here."""


class LimitExceeded(RootfsError):
    """The layer goes over a configured bound; `bound` is the name of the field of `Limits`."""

    def __init__(self, sentence: str, bound: str = "") -> None:
        super().__init__(sentence)
        self.bound = bound


class NoSpace(RootfsError):
    """The node has no room: disk, quota, inodes, descriptors or memory."""


class JobCancelled(RootfsError):
    """The caller ended the job."""


class HelperFailed(RootfsError):
    """The helper or its child died, or spoke out of turn."""


def shown(name: bytes) -> str:
    """Make bytes of a layer fit for a message: printable ASCII in quotes, cut at `SHOWN_BYTES`."""
    cut = name[:SHOWN_BYTES]
    text = cut.decode("ascii", "backslashreplace")
    clean = "".join(letter if " " <= letter <= "~" else f"\\x{ord(letter):02x}" for letter in text)
    return f'"{clean}"' + ("..." if len(name) > len(cut) else "")


def from_os_error(error: OSError) -> RootfsError:
    """Sort what the kernel answered while a layer was written: no room, the layer's own fault, or the node's.

    A bound that the sandbox set on the size of a file (EFBIG) counts as a limit.
    """
    sentence = os.strerror(error.errno) if error.errno else "input or output failed"
    if error.errno in _NO_SPACE:
        return NoSpace(sentence)
    if error.errno == errno.EFBIG:
        return LimitExceeded(f"a file is larger than the node allows ({sentence})", "unpacked_bytes")
    return LayerRejected(sentence) if error.errno in _CONTENT else RootfsError(sentence)
