"""Which layers are mounted: by a runtime, by `cri-shim mount`, by hand, in any mount namespace of the node.

A mounted overlay goes on when a directory below it is removed, and its files are gone: a container would find its image
empty. So every mount table that a process has is read before a layer is thrown away. A lower directory can stand there
in many spellings (`<root>/overlay/<name>/diff`, the short `<root>/overlay/l/<letters>`, both under another root where
the store is mounted elsewhere, relative ones, and `<runtime's root>/overlay/<id>/mapped/0/l/<letters>` for a user
namespace), so only its end counts. That can keep a layer for somebody else's mount, and never loses one.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from cri_shim.store.layout import Layout

MOST_BYTES: Final = 256 << 20
"""Of mount tables; a node with more cannot be told from one that wants us to fail."""
MOST_PROCESSES: Final = 1 << 20
_HEAD_BYTES: Final = 4096
_PART_BYTES: Final = 1 << 20

_SHORT: Final = re.compile(rb"(?:^|/)l/([A-Z2-7]{26})$")
_LONG: Final = re.compile(rb"(?:^|/)overlay/([0-9a-z._-]{1,80})/diff(?:/|$)")
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")
_LOWER: Final = (b"lowerdir=", b"lowerdir+=", b"datadir+=")
_GONE: Final = b"//deleted"  # what the kernel says of a mounted directory that is gone
# A path ends at a colon, unless a backslash stands before it.
_PATHS: Final = re.compile(rb"(?:\\.|[^:\\])+")


class Mounts:
    """A `LayerUser`: whoever has mounted a layer."""

    def __init__(
        self, layout: Layout, disk: Callable[[Callable[[], frozenset[str]]], Awaitable[frozenset[str]]]
    ) -> None:
        """*disk* runs what blocks in a thread."""
        self._layout = layout
        self._disk = disk

    async def in_use(self, layers: frozenset[str]) -> frozenset[str]:
        """Return those of *layers* that are a lower directory, or the source of a mount, anywhere.

        Raises:
            OSError, ValueError: the mount tables, or the short names, cannot be read.
        """
        return await self._disk(lambda: self._mounted() & layers)

    def _mounted(self) -> frozenset[str]:
        short, long = mounted(Path("/proc"))
        if not short:
            return long
        links = self._layout.overlay / "l"
        return long | {
            os.readlink(links / name).split("/")[-2] for name in os.listdir(links) if os.fsencode(name) in short
        }


def mounted(proc: Path) -> tuple[frozenset[bytes], frozenset[str]]:
    """Return the short names, and the directories' names, that any mount table below *proc* has.

    Raises:
        OSError, ValueError: the tables cannot be read, or are too many.
    """
    short: set[bytes] = set()
    long: set[str] = set()
    for line in _lines(proc):
        for path in _sources(line):
            if (match := _SHORT.search(path)) is not None:
                short.add(match[1])
            if (match := _LONG.search(path)) is not None:
                long.add(match[1].decode("ascii"))
    return frozenset(short), frozenset(long)


def _lines(proc: Path) -> Iterator[bytes]:
    """Yield every line of every mount table once; a process that ends meanwhile has none."""
    seen: set[bytes] = set()
    lines: set[bytes] = set()
    left_bytes = MOST_BYTES
    processes = [name for name in os.listdir(proc) if name.isdigit()]
    if len(processes) > MOST_PROCESSES:
        raise ValueError(f"{len(processes)} processes are too many to read their mounts")
    for process in processes:
        table = _table(proc / process / "mountinfo", seen)
        left_bytes -= len(table)
        if left_bytes < 0:
            raise ValueError(f"the mount tables of this node have more than {MOST_BYTES} bytes")
        yield from (fresh := set(table.splitlines()) - lines)
        lines |= fresh


def _table(path: Path, seen: set[bytes]) -> bytes:
    """Read a process's mount table, unless one that begins alike was *seen*.

    A table begins with the number of a mount, which no other namespace has: most processes share one, and a daemon
    without capabilities may not ask for their namespaces.
    """
    try:
        with path.open("rb", buffering=0) as file:
            table = file.read(_HEAD_BYTES) or b""
            head = table.partition(b"\n")[0]
            if not head or head in seen:
                return b""
            while part := file.read(_PART_BYTES):
                table += part
    except (FileNotFoundError, ProcessLookupError):
        return b""
    except OSError as error:
        if error.errno == errno.EINVAL:  # the process has ended and is not reaped yet
            return b""
        raise
    seen.add(head)
    return table


def _sources(line: bytes) -> Iterator[bytes]:
    """Yield the paths that a line of mountinfo (proc(5)) names as what is mounted."""
    before, _, after = line.partition(b" - ")
    fields = before.split(b" ")
    if len(fields) > 3 and not fields[3].endswith(_GONE):
        yield _plain(fields[3])
    kind, _, rest = after.partition(b" ")
    if kind != b"overlay":
        return
    options = rest.partition(b" ")[2]
    for option in map(_plain, options.split(b",")):  # a comma in a path stands there as an octal number
        for key in _LOWER:
            if option.startswith(key):
                yield from (path.replace(b"\\", b"") for path in _PATHS.findall(option[len(key) :]))


def _plain(text: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8) & 255]), text)
