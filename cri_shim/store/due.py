"""When the next check in the background is due, and where one is that was stopped: `scrub.json`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from cri_shim.store.durable import write_durably

if TYPE_CHECKING:
    from pathlib import Path

NAME: Final = "scrub.json"


@dataclass(frozen=True, slots=True)
class Due:
    """*due_s* is wall-clock time; *after* is behind what a check that was stopped goes on, "" between two."""

    due_s: float
    after: str = ""


def read_due(path: Path) -> Due | None:
    """Read it, None where nothing is, or nothing that can be read. Blocks on the disk."""
    with suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes(), type=Due)
    return None


def write_due(path: Path, due: Due) -> None:
    """Keep it. Blocks on the disk.

    Raises:
        OSError: the disk refused.
    """
    write_durably(path, msgspec.json.encode(due))
