"""A tar writer that writes whatever it is told, header by header: every archive that no honest program would make.

A layer is the concatenation of entries, closed by `tar`. Each of the short functions makes one entry: D directory,
F file, S symbolic link, H hard link, C and K character and block device, P fifo. `pax`, `gnu_name` and `gnu_link` make
the extended headers that go before an entry.
"""

# ruff: noqa: N802  # the letters of the attack corpus

from __future__ import annotations

import os

USTAR = b"ustar\x0000"
GNU = b"ustar  \0"
V7 = bytes(8)
END = bytes(1024)
MYSELF = (os.geteuid(), os.getegid())
"""Entries belong to whom the tests run as, so that without privilege nothing is skipped unasked."""

Name = bytes | str


def raw(name: Name) -> bytes:
    return name.encode() if isinstance(name, str) else name


def octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def base_256(value: int, width: int) -> bytes:
    number = (value & ((1 << (8 * width)) - 1)).to_bytes(width, "big")
    return bytes((number[0] | 0x80,)) + number[1:]


def numeric(value: int | bytes, width: int) -> bytes:
    """A number as octal where it fits, else as base-256; bytes are taken as they are."""
    if isinstance(value, bytes):
        return value.ljust(width, b"\0")
    return octal(value, width) if 0 <= value < 8 ** (width - 1) else base_256(value, width)


def checksummed(block: bytes, checksum: bytes | None = None) -> bytes:
    total = sum(block[:148]) + 8 * 32 + sum(block[156:])
    field = b"%06o\0 " % total if checksum is None else checksum.ljust(8, b"\0")
    return block[:148] + field + block[156:]


def header(
    name: Name = b"",
    kind: bytes = b"0",
    size: int | bytes = 0,
    *,
    mode: int | bytes = 0o644,
    uid: int | bytes = MYSELF[0],
    gid: int | bytes = MYSELF[1],
    mtime: int | bytes = 1_000_000_000,
    link: Name = b"",
    magic: bytes = USTAR,
    major: int | bytes = 0,
    minor: int | bytes = 0,
    prefix: Name = b"",
    checksum: bytes | None = None,
) -> bytes:
    fields = (
        raw(name)[:100].ljust(100, b"\0"),
        numeric(mode, 8),
        numeric(uid, 8),
        numeric(gid, 8),
        numeric(size, 12),
        numeric(mtime, 12),
        bytes(8),
        kind,
        raw(link)[:100].ljust(100, b"\0"),
        magic,
        bytes(64),
        numeric(major, 8),
        numeric(minor, 8),
        raw(prefix).ljust(167, b"\0"),
    )
    return checksummed(b"".join(fields), checksum)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax_record(key: Name, value: Name) -> bytes:
    body = b" " + raw(key) + b"=" + raw(value) + b"\n"
    length = len(body)
    while length != len(body) + len(str(length)):
        length = len(body) + len(str(length))
    return b"%d" % length + body


def pax(records: dict[str, Name] | bytes, kind: bytes = b"x") -> bytes:
    """An extended header from records, or from the bytes of them."""
    data = records if isinstance(records, bytes) else b"".join(pax_record(k, v) for k, v in records.items())
    return header("pax", kind, len(data)) + padded(data)


def gnu_name(name: Name, kind: bytes = b"L") -> bytes:
    data = raw(name) + b"\0"
    return header("././@LongLink", kind, len(data), magic=GNU) + padded(data)


def gnu_link(name: Name) -> bytes:
    return gnu_name(name, b"K")


def map_lines(*numbers: int) -> bytes:
    """The map of a sparse file of format 1.0, as it stands before the data."""
    return padded(b"".join(b"%d\n" % number for number in numbers))


def _entry(name: Name, kind: bytes, data: bytes, records: dict[str, Name] | None, **fields) -> bytes:
    extended = dict(records or {})
    link = fields.get("link", b"")
    if len(raw(name)) > 100:
        extended.setdefault("path", name)
    if len(raw(link)) > 100:
        extended.setdefault("linkpath", link)
    fields.setdefault("size", len(data))
    before = pax(extended) if extended else b""
    return before + header(name, kind, **fields) + padded(data)


def F(name: Name, data: bytes = b"", pax: dict[str, Name] | None = None, **fields) -> bytes:
    return _entry(name, b"0", data, pax, **fields)


def D(name: Name, pax: dict[str, Name] | None = None, **fields) -> bytes:
    return _entry(name, b"5", b"", pax, **{"mode": 0o755, **fields})


def S(name: Name, link: Name, pax: dict[str, Name] | None = None, **fields) -> bytes:
    return _entry(name, b"2", b"", pax, **{"mode": 0o777, "link": link, **fields})


def H(name: Name, link: Name, pax: dict[str, Name] | None = None, **fields) -> bytes:
    return _entry(name, b"1", b"", pax, link=link, **fields)


def C(name: Name, major: int | bytes, minor: int | bytes, pax: dict[str, Name] | None = None, **fields) -> bytes:
    return _entry(name, b"3", b"", pax, major=major, minor=minor, **fields)


def K(name: Name, major: int | bytes, minor: int | bytes, pax: dict[str, Name] | None = None, **fields) -> bytes:
    return _entry(name, b"4", b"", pax, major=major, minor=minor, **fields)


def P(name: Name, pax: dict[str, Name] | None = None, **fields) -> bytes:
    return _entry(name, b"6", b"", pax, **fields)


def tar(*parts: bytes, end: bytes = END) -> bytes:
    return b"".join(parts) + end


B = D("etc/") + F("etc/passwd", b"root") + D("dir/") + F("dir/a", b"a") + F("dir/b", b"b") + F("file", b"old")
"""The base layer of the attack corpus."""
