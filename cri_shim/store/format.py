"""The number of a root's format, in `VERSION`, and the steps that lead from one format to the next.

A step changes what lies below the root; when that is on the disk, the next number is written, in one rename. So a
number never tells more than is there, and who was killed begins with the same step again. The schema of the index has
numbers of its own (`store.index`).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cri_shim.errors import ConfigError
from cri_shim.store.durable import write_durably
from rootfs import syscalls
from rootfs.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NAME: Final = "VERSION"


@dataclass(frozen=True, slots=True)
class Step:
    """From one format to the next.

    Attributes:
        what: what it does, as the end of "cannot ...".
        apply: does it below the root it is given, where it may meet its own work, whole or in part.
    """

    what: str
    apply: Callable[[Path], None]


STEPS: Final[tuple[Step, ...]] = ()
"""The first leads from format 1 to format 2, and so on; one that was released is never changed."""

FORMAT: Final = 1 + len(STEPS)


def bring_up_to_date(root: Path, steps: tuple[Step, ...] = STEPS) -> None:
    """Make of *root*, which exists and which nobody else uses, one of the newest format. Blocks on the disk.

    Raises:
        ConfigError: a newer cri-shim wrote it, nobody knows what wrote it, or a step failed; nothing was changed, or
            every step before that one, and the root can be used by a cri-shim that knows them.
        OSError: it cannot be read or written.
    """
    newest = 1 + len(steps)
    path = root / NAME
    number = _number(path)
    if not number:
        _must_be_empty(root)
        write_durably(path, f"{newest}\n".encode())
        return
    if number > newest:
        raise ConfigError(
            f"root {root} has format {number}, written by a newer cri-shim; "
            f"this one knows format {newest}: install the newer version or give another root"
        )
    for place, step in enumerate(steps[number - 1 :], number):
        _take(root, place + 1, step)


def _number(path: Path) -> int:
    """Read the number; 0 where there is none."""
    try:
        with path.open("rb") as file:
            text = file.read(32).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ConfigError(f"{path} holds no version number; was this root made by cri-shim?")
    return int(text)


def _must_be_empty(root: Path) -> None:
    """What has no number is new, and new is what holds no file: one may have been killed that had made directories."""
    if (found := next(_files(root), None)) is not None:
        raise ConfigError(
            f"root {root} holds {found} and no number of its format in {NAME}; give an empty directory or, if cri-shim "
            f"made this one, put {NAME} back as it was"
        )


def _files(root: Path) -> Iterator[str]:
    """Name the files below *root*, but for locks, sockets (`state` may lie there) and what a kill left of VERSION."""
    for top, _, names in os.walk(root, onerror=_raise):
        for name in names:
            path = os.path.join(top, name)
            ours = name in ("lock", NAME) or name.startswith(f".{NAME}.")
            if not ours and not stat.S_ISSOCK(os.lstat(path).st_mode):
                yield os.path.relpath(path, root)


def _raise(error: OSError) -> None:
    raise error


def _take(root: Path, number: int, step: Step) -> None:
    try:
        written = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            step.apply(root)
            failpoint("format.syncfs")
            syscalls.syncfs(written)
        finally:
            os.close(written)
        write_durably(root / NAME, f"{number}\n".encode())
    except OSError as error:
        raise ConfigError(
            f"root {root} cannot be brought to format {number}: cannot {step.what} ({error.filename or root}: "
            f"{error.strerror}); mend that and start again, which goes on there"
        ) from error
