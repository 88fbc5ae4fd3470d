"""Tar headers, PAX records and their numbers, with the semantics of Go's archive/tar.

What that package accepts is what every other runtime accepts; a layer that is read differently by two programs is a
way past one of them. So: ustar, GNU and STAR headers, octal and base-256 numbers, both checksums, PAX records over
header fields, empty records ignored. Nothing here reads: blocks and records come in, values go out.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import TYPE_CHECKING, Final

from rootfs.errors import LayerRejected, LimitExceeded, shown

if TYPE_CHECKING:
    from rootfs.limits import Limits

BLOCK_BYTES: Final = 512

REGULAR: Final = b"0"
LINK: Final = b"1"
SYMLINK: Final = b"2"
CHAR: Final = b"3"
BLOCK: Final = b"4"
DIRECTORY: Final = b"5"
FIFO: Final = b"6"
PAX: Final = b"x"
PAX_GLOBAL: Final = b"g"
GNU_NAME: Final = b"L"
GNU_LINK: Final = b"K"

HEADER_ONLY: Final = frozenset({LINK, SYMLINK, CHAR, BLOCK, DIRECTORY, FIFO})
"""Types whose size field means nothing: no content follows them."""
EXTENSIONS: Final = frozenset({PAX, PAX_GLOBAL, GNU_NAME, GNU_LINK})
"""Types that say something about the next entry."""
KINDS: Final = HEADER_ONLY | {REGULAR}

XATTR_PREFIX: Final = b"SCHILY.xattr."
_OLD_REGULAR: Final = b"\0"
_SPARSE_OFFSET: Final = b"GNU.sparse.offset"
_SPARSE_BYTES: Final = b"GNU.sparse.numbytes"
SPARSE_MAP: Final = b"GNU.sparse.map"

_HEADER: Final = struct.Struct("100s8s8s8s12s12s8sc100s8s32x32x8s8s155s12s")
_USTAR: Final = b"ustar\0"
_GNU: Final = b"ustar  \0"
_STAR_TRAILER: Final = b"tar\0"
_INTEGER: Final = re.compile(rb"[+-]?0*([0-9]{1,19})")
_STRINGS: Final = frozenset({b"path", b"linkpath", b"uname", b"gname"})
_MEMORY: Final = 4096
_SECOND: Final = 1_000_000_000
_LATEST_NS: Final = (1 << 63) - 1

_numbers: dict[bytes, int] = {}
_claims: dict[bytes, int] = {}


class Entry:
    """One entry of a tar, as its header and the extended headers before it describe it.

    Attributes:
        kind: the type flag; old regular files are REGULAR, or DIRECTORY when their name ends with a slash.
        name: as it is in the tar.
        link: target of a hard or symbolic link, as it is in the tar.
        size_bytes: logical size.
        stored_bytes: what of the archive belongs to the content; less than `size_bytes` when there are holes.
        mode: permission bits, 07777 at most.
        uid: as it is in the tar; may be out of range.
        gid: the same.
        mtime_ns: modification time, 0 when it is outside of what a node can hold.
        atime_ns: access time, not before the modification time.
        major: of a device; may be out of range.
        minor: the same.
        xattrs: names and values.
        sparse: (offset, length) of each run of data, or None for a file without holes.
    """

    __slots__ = (
        "atime_ns",
        "gid",
        "kind",
        "link",
        "major",
        "minor",
        "mode",
        "mtime_ns",
        "name",
        "size_bytes",
        "sparse",
        "stored_bytes",
        "uid",
        "xattrs",
    )

    kind: bytes
    name: bytes
    link: bytes
    size_bytes: int
    stored_bytes: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    atime_ns: int
    major: int
    minor: int
    xattrs: tuple[tuple[bytes, bytes], ...]
    sparse: tuple[tuple[int, int], ...] | None


def parse_header(data: bytes, at: int) -> Entry:
    """Read the header block at *at* of *data*.

    Raises:
        LayerRejected: the checksum is wrong, or a field is not a number in its range.
    """
    fields = _HEADER.unpack_from(data, at)
    name, mode, uid, gid, size, mtime, checksum, kind, link, magic, major, minor, prefix, tail = fields
    _check(data, at, checksum)
    entry = Entry()
    entry.name = name.partition(b"\0")[0] if 0 in name else name
    entry.link = link.partition(b"\0")[0] if link[0] else b""
    numbers = _numbers
    typed = magic == _GNU or magic[:6] == _USTAR
    try:  # of all but sizes there are few: mostly each was read before
        entry.mode = numbers[mode] & 0o7777
        entry.uid = numbers[uid]
        entry.gid = numbers[gid]
        seconds = numbers[mtime]
        entry.major, entry.minor = (numbers[major], numbers[minor]) if typed else (0, 0)
    except KeyError:
        entry.mode, entry.uid, entry.gid = _remembered(mode) & 0o7777, _remembered(uid), _remembered(gid)
        seconds = _remembered(mtime)
        entry.major, entry.minor = (_remembered(major), _remembered(minor)) if typed else (0, 0)
    entry.size_bytes = entry.stored_bytes = number(size)
    if entry.size_bytes < 0 and kind not in HEADER_ONLY:  # also where a PAX header says another
        raise LayerRejected("not a tar header: a size is negative")
    entry.mtime_ns = entry.atime_ns = bounded_ns(seconds * _SECOND)
    entry.xattrs = ()
    entry.sparse = None
    entry.kind = kind
    if typed and magic != _GNU:
        _finish_ustar(entry, prefix, tail)
    elif typed and (prefix[0] or prefix[12]):
        _finish_gnu(entry, prefix)
    return entry


def _finish_ustar(entry: Entry, prefix: bytes, tail: bytes) -> None:
    if tail[-4:] == _STAR_TRAILER:
        accessed, changed = prefix[131:143], prefix[143:155]
        prefix = prefix[:131]
        number(changed)
        entry.atime_ns = max(bounded_ns(number(accessed) * _SECOND), entry.mtime_ns)
    if prefix[0]:
        entry.name = prefix.partition(b"\0")[0] + b"/" + entry.name


def _finish_gnu(entry: Entry, prefix: bytes) -> None:
    """GNU headers have times where ustar has a prefix; buggy old writers put a prefix there all the same."""
    accessed, changed = prefix[:12], prefix[12:24]
    try:
        if accessed[0]:
            entry.atime_ns = max(bounded_ns(number(accessed) * _SECOND), entry.mtime_ns)
        if changed[0]:
            number(changed)
    except LayerRejected:
        entry.atime_ns = entry.mtime_ns
        text = prefix.partition(b"\0")[0]
        if text and text.isascii():
            entry.name = text + b"/" + entry.name


def _check(data: bytes, at: int, field: bytes) -> None:
    """The checksum counts its own field as spaces. Adler-32 of half a block holds the exact sum of its bytes."""
    expected = _claims.get(field)
    if expected is None:
        expected = _claim(field)
    middle = at + 256
    if (zlib.adler32(data[at:middle]) & 0xFFFF) + (zlib.adler32(data[middle : at + 512]) & 0xFFFF) == expected:
        return
    claimed = number(field, base_256=False)
    block = data[at : at + 148] + b" " * 8 + data[at + 156 : at + BLOCK_BYTES]
    if claimed != sum(struct.unpack("512b", block)):
        raise LayerRejected("not a tar header: its checksum is wrong")


def _claim(field: bytes) -> int:
    """Give what the halves of a block that claims the checksum *field* must come to; remembered as by `_remembered`."""
    if len(_claims) >= _MEMORY:
        _claims.clear()
    expected = _claims[field] = number(field, base_256=False) + sum(field) - 256 + 2
    return expected


def number(field: bytes, *, base_256: bool = True) -> int:
    """Read a numeric field: octal between spaces and NULs, or base-256 when its first bit is set.

    Raises:
        LayerRejected: other letters, or more than 63 bits.
    """
    digits = field.strip(b" \0")
    if digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError:
            raise LayerRejected(f"not a tar header: {shown(field)} is not an octal number") from None
    if base_256 and field[0] & 0x80:
        return _base_256(field)
    digits = digits.partition(b"\0")[0]
    if not digits:
        return 0
    if digits.isdigit():
        return number(digits)
    raise LayerRejected(f"not a tar header: {shown(field)} is not an octal number")


def _base_256(field: bytes) -> int:
    value = int.from_bytes(field, "big")
    bits = 8 * len(field)
    negative = bool(field[0] & 0x40)
    value = value - (1 << bits) if negative else value - (1 << (bits - 1))
    if not -(1 << 63) <= value < 1 << 63:
        raise LayerRejected("not a tar header: a number is out of range")
    return value


def _remembered(field: bytes) -> int:
    """Read a field that many headers share, once."""
    value = _numbers.get(field)
    if value is None:
        if len(_numbers) >= _MEMORY:
            _numbers.clear()
        value = _numbers[field] = number(field)
    return value


def bounded_ns(time_ns: int) -> int:
    """Give a time that a node can hold: 0 stands for those before 1970 and after 2262."""
    return time_ns if 0 <= time_ns <= _LATEST_NS else 0


def parse_pax(data: bytes, limits: Limits) -> dict[bytes, bytes]:
    r"""Read PAX records ("%d %s=%s\n"); of the same key the last one counts.

    Offsets and lengths of sparse format 0.0 come back as one `GNU.sparse.map`, as format 0.1 has it.

    Raises:
        LayerRejected: a record is not of that form.
        LimitExceeded: there are more than `limits.records`.
    """
    records: dict[bytes, bytes] = {}
    runs: list[bytes] = []
    at = count = 0
    while at < len(data):
        key, value, at = _record(data, at)
        count += 1
        if count > limits.records:
            raise LimitExceeded(f"a PAX header has more than {limits.records} records", "records")
        if key in (_SPARSE_OFFSET, _SPARSE_BYTES):
            if key != (_SPARSE_OFFSET, _SPARSE_BYTES)[len(runs) % 2] or b"," in value:
                raise LayerRejected("a PAX sparse map is out of order")
            runs.append(value)
        else:
            records[key] = value
    if runs:
        records[SPARSE_MAP] = b",".join(runs)
    return records


def _record(data: bytes, at: int) -> tuple[bytes, bytes, int]:
    """Give key, value and end of the record at *at*."""
    space = data.find(b" ", at, at + 20)
    digits = data[at:space] if space > at else b""
    if not digits.isdigit():
        raise LayerRejected("a PAX record does not start with its length")
    length = int(digits)
    end = at + length
    if length < 5 or end > len(data) or end <= space + 1 or data[end - 1] != 0x0A:
        raise LayerRejected("a PAX record is not as long as it says")
    key, equals, value = data[space + 1 : end - 1].partition(b"=")
    if not key or not equals:
        raise LayerRejected("a PAX record has no key")
    if 0 in (value if key in _STRINGS else key):
        raise LayerRejected(f"a NUL in the PAX record {shown(key)}")
    return key, value, end


def integer(text: bytes, what: str) -> int:
    """Read a decimal integer of 64 bits, as PAX has it.

    Raises:
        LayerRejected: it is none; *what* names it.
    """
    match = _INTEGER.fullmatch(text) if len(text) <= 64 else None
    value = 0 if match is None else int(match[1]) * (-1 if text[0] == 0x2D else 1)
    if match is None or not -(1 << 63) <= value < 1 << 63:
        raise LayerRejected(f"{what} is not a number: {shown(text)}")
    return value


def pax_time_ns(text: bytes, what: str) -> int:
    """Read seconds with any number of decimals, of which nine count; the result is bounded.

    Raises:
        LayerRejected: the text is not of that form.
    """
    seconds, _, fraction = text.partition(b".")
    whole = integer(seconds, what)
    if fraction and not fraction.isdigit():
        raise LayerRejected(f"{what} is not a time: {shown(text)}")
    nanoseconds = int(fraction[:9].ljust(9, b"0")) if fraction else 0
    return bounded_ns(whole * _SECOND + (-nanoseconds if seconds.startswith(b"-") else nanoseconds))


def merge_pax(entry: Entry, records: dict[bytes, bytes]) -> None:
    """Put PAX records over the fields of *entry*; records without a value change nothing, but for attributes.

    Raises:
        LayerRejected: a value is not of its type.
    """
    xattrs: list[tuple[bytes, bytes]] = []
    accessed_ns = entry.atime_ns if entry.atime_ns > entry.mtime_ns else 0
    for key, value in records.items():
        if key.startswith(XATTR_PREFIX):  # these may be empty, as containerd has it
            xattrs.append((key[len(XATTR_PREFIX) :], value))
        elif not value:
            continue
        elif key == b"atime":
            accessed_ns = pax_time_ns(value, "the access time")
        elif key == b"ctime":
            pax_time_ns(value, "the change time")
        elif field := _FIELDS.get(key):
            setattr(entry, field, value)
        elif reading := _READINGS.get(key):
            setattr(entry, reading[0], reading[1](value, reading[2]))
    entry.stored_bytes = entry.size_bytes
    entry.atime_ns = max(accessed_ns, entry.mtime_ns)
    entry.xattrs = tuple(xattrs)


_FIELDS: Final = {b"path": "name", b"linkpath": "link"}
_READINGS: Final = {
    b"uid": ("uid", integer, "the owner"),
    b"gid": ("gid", integer, "the group"),
    b"size": ("size_bytes", integer, "the size"),
    b"mtime": ("mtime_ns", pax_time_ns, "the modification time"),
}


def settle_kind(entry: Entry) -> None:
    """Resolve the old flag for regular files, once the name is final."""
    if entry.kind == _OLD_REGULAR:
        entry.kind = DIRECTORY if entry.name.endswith(b"/") else REGULAR
