"""Values of rootfs as JSON and back, strictly: a field that is missing, too many or of another type is refused.

The unpacker's result was written by a process that read hostile bytes; nothing of it is taken on trust.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from rootfs.apply import Applied
from rootfs.chain import ChainEntry
from rootfs.commit import Found
from rootfs.digest import Digest
from rootfs.errors import HelperFailed, RootfsError
from rootfs.forms import FormMade
from rootfs.graft import WAYS, Reach
from rootfs.limits import Limits
from rootfs.remove import Stuck
from rootfs.scrub import FLAWS, Flaw, Order, Scrubbed
from rootfs.share import Shared
from rootfs.tarsplit import REPLACED, TOO_LONG, Record
from rootfs.wire import path_bytes, path_text, printable

_SKIPPED: Final = 256
_LARGEST: Final = 1 << 63


def _fields(value: object, names: tuple[str, ...]) -> dict[str, object]:
    if not isinstance(value, dict) or set(value) != set(names):
        raise HelperFailed("a result has other fields than it should")
    return dict(value)


def count(value: object) -> int:
    """Read a number of things or bytes.

    Raises:
        HelperFailed: it is not one.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _LARGEST:
        raise HelperFailed("a result has a number that is none")
    return value


def text(value: object) -> str:
    """Read a text.

    Raises:
        HelperFailed: it is not one.
    """
    if not isinstance(value, str):
        raise HelperFailed("a result has a text that is none")
    return value


def array(value: object) -> list[object]:
    """Read a list.

    Raises:
        HelperFailed: it is not one.
    """
    if not isinstance(value, list):
        raise HelperFailed("a result has a list that is none")
    return value


def digest(value: object) -> Digest:
    """Read a digest.

    Raises:
        HelperFailed: it is not one.
    """
    try:
        return Digest.parse(text(value))
    except HelperFailed:
        raise
    except RootfsError as error:
        raise HelperFailed(f"a result has a digest that is none: {error}") from None


_COUNTS: Final = ("diff_size_bytes", "blob_size_bytes", "entries", "usage_bytes", "inodes", "whiteouts")
_APPLIED: Final = ("paths", *(field.name for field in dataclasses.fields(Applied)))


def from_applied(applied: Applied) -> dict[str, object]:
    """Write down what a layer was; its paths, opaque ones first, go beside it (`wire.write_paths`)."""
    return {
        **{name: getattr(applied, name) for name in _COUNTS},
        "diff_id": str(applied.diff_id),
        "blob": str(applied.blob),
        "compression": applied.compression,
        "opaque": len(applied.opaque),
        "implied": len(applied.implied),
        "skipped": list(applied.skipped),
        "record": None if applied.record is None else _from_record(applied.record),
    }


def to_applied(value: object) -> Applied:
    """Read what a layer was, from `wire.read_result`.

    Raises:
        HelperFailed: it is not that.
    """
    fields = _fields(value, _APPLIED)
    if fields["compression"] not in ("none", "gzip", "zstd"):
        raise HelperFailed("a result names an unknown compression")
    paths, opaque = fields["paths"], count(fields["opaque"])
    if not isinstance(paths, tuple) or len(paths) != opaque + count(fields["implied"]):
        raise HelperFailed("a result has another number of paths than it says")
    return Applied(
        diff_id=digest(fields["diff_id"]),
        diff_size_bytes=count(fields["diff_size_bytes"]),
        blob=digest(fields["blob"]),
        blob_size_bytes=count(fields["blob_size_bytes"]),
        compression=text(fields["compression"]),
        entries=count(fields["entries"]),
        usage_bytes=count(fields["usage_bytes"]),
        inodes=count(fields["inodes"]),
        whiteouts=count(fields["whiteouts"]),
        opaque=paths[:opaque],
        implied=paths[opaque:],
        skipped=tuple(_skipped(pair) for pair in array(fields["skipped"])[:_SKIPPED]),
        record=None if fields["record"] is None else _to_record(array(fields["record"])),
    )


def _from_record(record: Record) -> list[object]:
    return ["" if record.digest is None else str(record.digest), record.size_bytes, record.lost]


def _to_record(parts: list[object]) -> Record:
    """A record has a digest, or the reason why it has none."""
    if len(parts) != 3:
        raise HelperFailed("a result has a list of another length than it should")
    name, size, lost = text(parts[0]), count(parts[1]), text(parts[2])
    if lost not in ("", REPLACED, TOO_LONG) or bool(name) == bool(lost) or bool(name) != bool(size):
        raise HelperFailed("a result has a record that is none")
    return Record(digest(name) if name else None, size, lost)


def _skipped(value: object) -> tuple[str, int]:
    what, times = _pair(value)
    return printable(text(what)[:_SKIPPED]), count(times)


def _pair(value: object) -> tuple[object, object]:
    pair = array(value)
    if len(pair) != 2:
        raise HelperFailed("a result has a list of another length than it should")
    return pair[0], pair[1]


def from_limits(limits: Limits) -> dict[str, object]:
    """Write down the bounds of a layer."""
    return dataclasses.asdict(limits)


def to_limits(value: object) -> Limits:
    """Read the bounds of a layer.

    Raises:
        HelperFailed: they are not that.
    """
    fields = _fields(value, tuple(field.name for field in dataclasses.fields(Limits)))
    return Limits(**{name: count(number) for name, number in fields.items()})


def to_form_made(value: object) -> FormMade | None:
    """Read what a form cost, None when none was needed.

    Raises:
        HelperFailed: it is not that.
    """
    if value is None:
        return None
    fields = _fields(value, tuple(field.name for field in dataclasses.fields(FormMade)))
    return FormMade(**{name: count(number) for name, number in fields.items()})


def to_grafted(value: object) -> FormMade:
    """Read what a layer cost in a runtime's directory.

    Raises:
        HelperFailed: it is not that.
    """
    made = to_form_made(value)
    if made is None:
        raise HelperFailed("a result is not what was asked for")
    return made


def to_reach(value: object) -> Reach:
    """Read how files come into a runtime's root.

    Raises:
        HelperFailed: it is not that.
    """
    fields = _fields(value, ("way", "why"))
    way = text(fields["way"])
    if way not in ("", *WAYS):
        raise HelperFailed("a result names a way that is none")
    return Reach(way, printable(text(fields["why"])))


def to_shared(value: object) -> Shared:
    """Read what a layer shares with another store.

    Raises:
        HelperFailed: it is not that.
    """
    fields = _fields(value, tuple(field.name for field in dataclasses.fields(Shared)))
    way = text(fields.pop("way"))
    if way not in WAYS:
        raise HelperFailed("a result names a way that is none")
    why = printable(text(fields.pop("why"))[:_SKIPPED])
    return Shared(**{name: count(number) for name, number in fields.items()}, way=way, why=why)


def from_found(found: tuple[Found, ...]) -> list[object]:
    """Write down the layers that were found."""
    return [[layer.name, None if layer.seal is None else path_text(layer.seal)] for layer in found]


def to_found(value: object) -> tuple[Found, ...]:
    """Read the layers that were found.

    Raises:
        HelperFailed: they are not that.
    """
    pairs = [_pair(pair) for pair in array(value)]
    return tuple(Found(text(name), None if seal is None else path_bytes(seal)) for name, seal in pairs)


def from_chain(entries: tuple[ChainEntry, ...]) -> list[object]:
    """Write down entries of a chain."""
    return [[entry.name, entry.layer, list(entry.below)] for entry in entries]


def to_chain(value: object) -> tuple[ChainEntry, ...]:
    """Read entries of a chain.

    Raises:
        HelperFailed: they are not that.
    """
    entries = []
    for triple in array(value):
        name, layer, below = array(triple)
        entries.append(ChainEntry(text(name), text(layer), tuple(text(one) for one in array(below))))
    return tuple(entries)


def from_stuck(stuck: tuple[Stuck, ...]) -> list[object]:
    """Write down what could not be removed."""
    return [[left.name, left.reason] for left in stuck]


def to_stuck(value: object) -> tuple[Stuck, ...]:
    """Read what could not be removed.

    Raises:
        HelperFailed: it is not that.
    """
    pairs = [_pair(pair) for pair in array(value)]
    return tuple(Stuck(text(name), text(reason)) for name, reason in pairs)


def from_scrubbed(scrubbed: Scrubbed) -> dict[str, object]:
    """Write down what was found in a layer; its paths, those of flaws first, go beside it (`wire.write_paths`)."""
    return {
        "flaws": [flaw.what[:_SKIPPED] for flaw in scrubbed.flaws],
        "more": scrubbed.more,
        "compared": scrubbed.compared,
        "entries": scrubbed.entries,
        "read_bytes": scrubbed.read_bytes,
        "opaque": len(scrubbed.opaque),
    }


def to_scrubbed(value: object) -> Scrubbed:
    """Read what was found in a layer, from `wire.read_result`.

    Raises:
        HelperFailed: it is not that.
    """
    fields = _fields(value, ("paths", *(field.name for field in dataclasses.fields(Scrubbed))))
    paths, whats, compared = fields["paths"], array(fields["flaws"]), fields["compared"]
    if not isinstance(paths, tuple) or len(whats) > FLAWS or len(paths) != len(whats) + count(fields["opaque"]):
        raise HelperFailed("a result has another number of paths than it says")
    if not isinstance(compared, bool):
        raise HelperFailed("a result is not what was asked for")
    return Scrubbed(
        flaws=tuple(Flaw(path, printable(text(what))) for path, what in zip(paths, whats, strict=False)),
        more=count(fields["more"]),
        compared=compared,
        entries=count(fields["entries"]),
        read_bytes=count(fields["read_bytes"]),
        opaque=paths[len(whats) :],
    )


def paths_of(scrubbed: Scrubbed) -> tuple[bytes, ...]:
    """Return the paths that go beside it."""
    return (*(flaw.path for flaw in scrubbed.flaws), *scrubbed.opaque)


def from_order(order: Order) -> dict[str, object]:
    """Write down what to compare a tree with."""
    record = None if order.record is None else str(order.record)
    return {
        **dataclasses.asdict(order),
        "diff_id": str(order.diff_id),
        "record": record,
        "skipped": sorted(order.skipped),
    }


def to_order(value: object) -> Order:
    """Read what to compare a tree with.

    Raises:
        HelperFailed: it is not that.
    """
    fields = _fields(value, tuple(field.name for field in dataclasses.fields(Order)))
    return Order(
        diff_id=digest(fields["diff_id"]),
        record=None if fields["record"] is None else digest(fields["record"]),
        skipped=frozenset(text(one) for one in array(fields["skipped"])),
        content=bool(fields["content"]),
        bytes_per_second=count(fields["bytes_per_second"]),
        privileged=bool(fields["privileged"]),
    )


def from_flaws(flaws: tuple[Flaw, ...]) -> list[object]:
    """Write down flaws that a trusted job found."""
    return [[path_text(flaw.path), flaw.what] for flaw in flaws]


def to_flaws(value: object) -> tuple[Flaw, ...]:
    """Read flaws that a trusted job found.

    Raises:
        HelperFailed: they are not that.
    """
    pairs = [_pair(pair) for pair in array(value)]
    return tuple(Flaw(path_bytes(path), printable(text(what))) for path, what in pairs)


def from_comparison(scrubbed: Scrubbed) -> dict[str, object]:
    """Write down how a form compared."""
    return {**dataclasses.asdict(scrubbed), "flaws": from_flaws(scrubbed.flaws)}


def to_comparison(value: object) -> Scrubbed:
    """Read how a form compared.

    Raises:
        HelperFailed: it is not that.
    """
    fields = _fields(value, tuple(field.name for field in dataclasses.fields(Scrubbed)))
    more, entries, read_bytes = (count(fields[name]) for name in ("more", "entries", "read_bytes"))
    compared = bool(fields["compared"])
    return Scrubbed(to_flaws(fields["flaws"]), more, compared=compared, entries=entries, read_bytes=read_bytes)
