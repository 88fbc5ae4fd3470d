"""The bounds of one layer: what a hostile one may cost at most.

Every bound is configurable, and going over it raises `LimitExceeded` with the name of the field.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one layer.

    Attributes:
        unpacked_bytes: the uncompressed tar, and the logical size of all its files, each.
        entries: entries of the tar (extended headers: four times as many).
        ratio: uncompressed bytes for each compressed one, counted only beyond `ratio_floor_bytes`.
        ratio_floor_bytes: see `ratio`.
        window_bytes: what a zstd frame may ask to remember.
        header_bytes: one PAX or GNU extended header, as Go's archive/tar has it.
        records: records in one PAX header, entries in one sparse map.
        depth: directories above an entry, itself included, links followed.
        path_bytes: a name, as it is in the tar and with its links followed.
        directories: directories in one layer, the only entries that are remembered until its end; names count as well
            that it both hides and has.
        remembered_bytes: the paths of all of those.
        tar_split_bytes: the record of the tar, compressed; the layer of a longer one does without.
    """

    unpacked_bytes: int = 64 << 30
    entries: int = 5_000_000
    ratio: int = 1000
    ratio_floor_bytes: int = 1 << 30
    window_bytes: int = 128 << 20
    header_bytes: int = 1 << 20
    records: int = 65_536
    depth: int = 512
    path_bytes: int = 4095
    directories: int = 500_000
    remembered_bytes: int = 64 << 20
    tar_split_bytes: int = 1 << 30
