"""Files with holes, in the three ways that GNU tar writes them into PAX archives.

Formats 0.0 and 0.1 keep the map in PAX records, 1.0 at the start of the content. The map comes back as runs of data,
checked as Go's archive/tar and bsdtar check it; what lies between the runs is a hole and stays one on the disk. The
old GNU format (type S) is not served: no builder of images writes it, and its map is a chain of blocks without an end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rootfs.errors import LayerRejected, LimitExceeded
from rootfs.tarheader import BLOCK_BYTES, HEADER_ONLY, SPARSE_MAP, Entry, integer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rootfs.limits import Limits

Runs = tuple[tuple[int, int], ...]

_MAP_IN_CONTENT: Final = (b"1", b"0")
_VERSIONS: Final = frozenset({(b"0", b"0"), (b"0", b"1"), _MAP_IN_CONTENT})


def is_sparse(records: dict[bytes, bytes]) -> bool:
    """Tell whether PAX records make their entry a sparse file of a version that is known."""
    return _version(records) in _VERSIONS


def _version(records: dict[bytes, bytes]) -> tuple[bytes, bytes]:
    """Formats 0.0 and 0.1 need not say what they are."""
    major, minor = records.get(b"GNU.sparse.major", b""), records.get(b"GNU.sparse.minor", b"")
    return (major, minor) if major or minor or not records.get(SPARSE_MAP) else (b"0", b"1")


def apply_sparse(entry: Entry, records: dict[bytes, bytes], take: Callable[[int], bytes], limits: Limits) -> None:
    """Give *entry* the name, size and map that GNU.sparse records say.

    Args:
        entry: after its other records were merged; `stored_bytes` counts the content as it lies in the archive.
        records: its PAX records, which `is_sparse`.
        take: reads that many bytes of the content.
        limits: `records` bounds the map, `header_bytes` its length in the content.

    Raises:
        LayerRejected: the map is malformed, out of order, or does not fit the content or the size.
        LimitExceeded: the map is too long.
    """
    entry.name = records.get(b"GNU.sparse.name") or entry.name
    if size := records.get(b"GNU.sparse.size") or records.get(b"GNU.sparse.realsize"):
        entry.size_bytes = integer(size, "the size of a sparse file")
    if entry.kind in HEADER_ONLY:
        raise LayerRejected("something that has no content has a sparse map")
    if _version(records) == _MAP_IN_CONTENT:
        runs, used = _map_from_content(entry.stored_bytes, take, limits)
        entry.stored_bytes -= used
    else:
        runs = _map_from_records(records, limits)
    _check(runs, entry)
    entry.sparse = runs


def _map_from_records(records: dict[bytes, bytes], limits: Limits) -> Runs:
    count = integer(records.get(b"GNU.sparse.numblocks", b""), "the length of a sparse map")
    text = records.get(SPARSE_MAP, b"")
    numbers = text.split(b",") if text else []
    if len(numbers) != 2 * count:
        raise LayerRejected("a sparse map is not as long as it says")
    return _runs(numbers, limits)


def _map_from_content(stored_bytes: int, take: Callable[[int], bytes], limits: Limits) -> tuple[Runs, int]:
    """Read a map of lines, in whole blocks, from the start of the content; give it and how much it took."""
    blocks = [_block(stored_bytes, 0, take)]
    while (lines := blocks[0].count(b"\n")) == 0:
        if len(blocks[0]) > BLOCK_BYTES:
            raise LayerRejected("a sparse map does not start with its length")
        blocks[0] += _block(stored_bytes, len(blocks[0]), take)
    used = len(blocks[0])
    count = integer(blocks[0].partition(b"\n")[0], "the length of a sparse map")
    if not 0 <= count <= limits.records:
        raise LimitExceeded(f"a sparse map has more than {limits.records} runs", "records")
    while lines < 2 * count + 1:
        if used + BLOCK_BYTES > limits.header_bytes:
            raise LimitExceeded(f"a sparse map is longer than {limits.header_bytes} bytes", "header_bytes")
        blocks.append(_block(stored_bytes, used, take))
        used += BLOCK_BYTES
        lines += blocks[-1].count(b"\n")
    numbers = b"".join(blocks).split(b"\n", 2 * count + 1)[1 : 2 * count + 1]
    return _runs(numbers, limits), used


def _block(stored_bytes: int, used: int, take: Callable[[int], bytes]) -> bytes:
    if stored_bytes - used < BLOCK_BYTES:
        raise LayerRejected("a sparse map is cut off")
    return take(BLOCK_BYTES)


def _runs(numbers: list[bytes], limits: Limits) -> Runs:
    if len(numbers) > 2 * limits.records:
        raise LimitExceeded(f"a sparse map has more than {limits.records} runs", "records")
    values = [integer(text, "an entry of a sparse map") for text in numbers]
    return tuple(zip(values[::2], values[1::2], strict=True))


def _check(runs: Runs, entry: Entry) -> None:
    """In order, without overlap, within the file, and as long together as the content."""
    end = 0
    for offset, length in runs:
        if offset < end or length < 0:
            raise LayerRejected("a sparse map is out of order")
        end = offset + length
    if end > entry.size_bytes or entry.size_bytes < 0:
        raise LayerRejected("a sparse map goes past the end of its file")
    if sum(length for _, length in runs) != entry.stored_bytes:
        raise LayerRejected("a sparse map does not fit the content of its file")
