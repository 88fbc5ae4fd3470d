"""Headers, numbers and PAX records, as Go's archive/tar reads them."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rootfs import tarheader
from rootfs.errors import LayerRejected, LimitExceeded
from rootfs.limits import Limits
from rootfs.tarheader import Entry, bounded_ns, integer, merge_pax, number, parse_header, parse_pax, pax_time_ns
from tests.fakes.tars import GNU, USTAR, V7, base_256, checksummed, header, pax_record

OCTAL = [
    (b"0000644\0", 0o644),
    (b"   644 \0", 0o644),
    (b"644\0\0\0\0\0", 0o644),
    (b"\0\x00644\0\0\0", 0o644),
    (b" \0 644 \0", 0o644),
    (b"00000644", 0o644),
    (b"77777777", 0o77777777),
    (b"\0" * 8, 0),
    (b" " * 8, 0),
    (b"12\0 34\0\0", 0o12),
    (b"7" * 12, 0o777777777777),
]
NOT_OCTAL = [
    b"0000648\0",
    b"+000644\0",
    b"-000644\0",
    b"0x1f\0\0\0\0",
    b"0o17\0\0\0\0",
    b"1_0\0\0\0\0\0",
    b"1 2\0\0\0\0\0",
    b"abc\0\0\0\0\0",
    b"1 \x002\0\0\0\0",
]
BINARY = [
    (base_256(5, 12), 5),
    (base_256(-5, 12), -5),
    (base_256((1 << 63) - 1, 12), (1 << 63) - 1),
    (base_256(-(1 << 63), 12), -(1 << 63)),
    (base_256(5, 8), 5),
    (b"\xff" * 12, -1),
    (b"\x80" + bytes(11), 0),
    (b"\xff" * 8, -1),
    (b"\x80\0\0\0\x7f\xff\xff\xff", (1 << 31) - 1),
]


@pytest.mark.parametrize(("field", "value"), OCTAL + BINARY)
def test_numbers(field, value):
    assert number(field) == value


@pytest.mark.parametrize(
    "field",
    NOT_OCTAL + [b"\x81" + bytes(11), base_256(1 << 63, 12), base_256(-(1 << 63) - 1, 12), b"\xbf" + b"\xff" * 11],
)
def test_numbers_that_are_none(field):
    with pytest.raises(LayerRejected):
        number(field)


@settings(deadline=None, derandomize=True)
@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_base_256_goes_both_ways(value):
    assert number(base_256(value, 12)) == value


@settings(deadline=None, derandomize=True)
@given(st.binary(min_size=8, max_size=12))
def test_any_field_is_a_number_or_refused(field):
    with contextlib.suppress(LayerRejected):
        assert -(1 << 63) <= number(field) < 1 << 63


def test_a_header():
    block = header("name", b"0", 7, mode=0o100755, uid=8, gid=9, mtime=10, link="target", major=1, minor=2)
    entry = parse_header(b"before" + block, 6)
    assert (entry.kind, entry.name, entry.link, entry.size_bytes, entry.stored_bytes) == (
        b"0",
        b"name",
        b"target",
        7,
        7,
    )
    assert (entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.atime_ns) == (0o755, 8, 9, 10**10, 10**10)
    assert (entry.major, entry.minor, entry.xattrs, entry.sparse) == (1, 2, (), None)


@pytest.mark.parametrize(
    ("magic", "prefix", "name"),
    [
        (USTAR, "a/b", b"a/b/name"),
        (USTAR, "p" * 155, b"p" * 155 + b"/name"),
        (b"ustar\0xx", "a", b"a/name"),
        (V7, "a/b", b"name"),
        (GNU, "a/b", b"a/b/name"),  # written by old versions of Go
        (GNU, "café", b"name"),
        (b"ustar  x", "a", b"name"),
    ],
)
def test_prefixes(magic, prefix, name):
    assert parse_header(header("name", magic=magic, prefix=prefix), 0).name == name


def test_names_that_fill_their_field():
    entry = parse_header(header("n" * 100, link="l" * 100), 0)
    assert (entry.name, entry.link) == (b"n" * 100, b"l" * 100)


def test_names_end_at_a_nul():
    entry = parse_header(header(b"na\0me", link=b"li\0nk"), 0)
    assert (entry.name, entry.link) == (b"na", b"li")


def test_gnu_headers_have_times():
    block = header("name", magic=GNU, mtime=5, prefix=b"00000000017\0" + b"00000000020\0")
    assert parse_header(block, 0).atime_ns == 15 * 10**9


def test_star_headers_have_times():
    block = header(
        "name", mtime=5, prefix=b"pre".ljust(131, b"\0") + b"00000000017\0" + b"00000000020\0" + bytes(8) + b"tar\0"
    )
    entry = parse_header(block, 0)
    assert (entry.name, entry.atime_ns) == (b"pre/name", 15 * 10**9)


def test_old_headers_have_no_devices():
    assert parse_header(header("x", b"3", magic=V7, major=5, minor=6), 0).major == 0


@pytest.mark.parametrize("magic", [USTAR, GNU])
@pytest.mark.parametrize("field", ["mode", "uid", "gid", "size", "mtime", "major", "minor"])
def test_every_number_is_checked(magic, field):
    with pytest.raises(LayerRejected):
        parse_header(header("x", magic=magic, **{field: b"9bad"}), 0)


def test_the_memory_of_numbers_is_bounded():
    for value in range(9000):
        assert parse_header(header("x", uid=value), 0).uid == value
    assert len(tarheader._numbers) <= 4096


@pytest.mark.parametrize("checksum", [b"", b"       ", b"000000\0 ", b"7777777", b"\x80\0\0\0\0\0\x10\0", b"badsum"])
def test_wrong_checksums(checksum):
    with pytest.raises(LayerRejected):
        parse_header(header("x", checksum=checksum), 0)


def test_each_changed_byte_is_noticed():
    block = header("name", b"0", 7)
    for at in sorted(set(range(512)) - {155}):  # what follows the NUL of the checksum itself is not read
        changed = bytearray(block)
        changed[at] ^= 0x01
        with pytest.raises(LayerRejected):
            parse_header(bytes(changed), 0)


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff" * 100])
def test_signed_checksums(name):
    block = header(name)
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + b" " * 8 + block[156:])
    assert parse_header(checksummed(block, b"%06o\0 " % signed), 0).name == name


def test_checksums_are_exact_where_adler_wraps():
    block = b"\xff" * 100 + header("x")[100:345] + b"\xff" * 167
    assert parse_header(checksummed(block), 0).name == b"\xff" * 155 + b"/" + b"\xff" * 100


RECORDS = [
    (b"", {}),
    (b"11 path=ab\n", {b"path": b"ab"}),
    (b"5 a=\n", {b"a": b""}),
    (b"10 a=b\nc=\n", {b"a": b"b\nc="}),
    (b"7 a==b\n", {b"a": b"=b"}),
    (b"6 a=1\n6 a=2\n", {b"a": b"2"}),
    (b"7 a=\0b\n", {b"a": b"\0b"}),
    (b"06 a=1\n", None),
    (b"007 a=1\n", None),
    (b"6 a=1\n", {b"a": b"1"}),
    (b"7 a=1\n", None),
    (b"5 a=1\n", None),
    (b"6 a=1x", None),
    (b"4 a=\n", None),
    (b"0 a=1\n", None),
    (b"-6 a=1\n", None),
    (b"5 =1\n", None),
    (b"6 =12\n", None),
    (b"6 abc\n", None),
    (b"99999999999999999999999 a=1\n", None),
    (b"1" * 200_000, None),
    (b"9" * 19 + b" a=1\n", None),
    (b"6a=1\n", None),
    (b"8 \0a=1b\n", None),
    (b"11 path=a\0\n", None),
    (b"6 a=1\n\0\0", None),
    (b"\0" * 10, None),
    (b" 6 a=1\n", None),
    (b"+6 a=1\n", None),
    (b"2 6 a=1\n", None),
    (b"22 GNU.sparse.offset=0\n24 GNU.sparse.numbytes=0\n", None),
]


@pytest.mark.parametrize(("data", "records"), RECORDS)
def test_pax_records(data, records):
    if records is None:
        with pytest.raises(LayerRejected):
            parse_pax(data, Limits())
    else:
        assert parse_pax(data, Limits()) == records


def test_lengths_with_leading_zeros_count_their_zeros():
    assert parse_pax(b"08 a=12\n", Limits()) == {b"a": b"12"}


@pytest.mark.parametrize(
    "keys",
    [["numbytes"], ["offset", "offset"], ["offset", "numbytes", "numbytes"]],
)
def test_sparse_records_out_of_order(keys):
    with pytest.raises(LayerRejected):
        parse_pax(b"".join(pax_record("GNU.sparse." + key, "1") for key in keys), Limits())


def test_sparse_records_become_a_map():
    data = b"".join(pax_record("GNU.sparse." + key, str(n)) for n, key in enumerate(["offset", "numbytes"] * 2))
    assert parse_pax(data, Limits()) == {b"GNU.sparse.map": b"0,1,2,3"}
    with pytest.raises(LayerRejected):
        parse_pax(pax_record("GNU.sparse.offset", "1,2"), Limits())


def test_records_are_counted():
    limits = dataclasses.replace(Limits(), records=3)
    assert len(parse_pax(b"".join(pax_record(f"k{n}", "v") for n in range(3)), limits)) == 3
    with pytest.raises(LimitExceeded) as caught:
        parse_pax(b"".join(pax_record(f"k{n}", "v") for n in range(4)), limits)
    assert caught.value.bound == "records"


@settings(deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.binary(min_size=1, max_size=20).filter(lambda key: not {0, 61} & set(key)),
        st.binary(max_size=200).filter(lambda value: 0 not in value),
    )
)
def test_records_go_both_ways(records):
    wanted = {key: value for key, value in records.items() if not key.startswith(b"GNU.sparse.")}
    assert parse_pax(b"".join(pax_record(key, value) for key, value in wanted.items()), Limits()) == wanted


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=100))
def test_any_records_are_read_or_refused(data):
    with contextlib.suppress(LayerRejected):
        parse_pax(data, Limits())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"0", 0),
        (b"+5", 5),
        (b"-5", -5),
        (b"0000000000000000000000000000001", 1),
        (b"9223372036854775807", (1 << 63) - 1),
        (b"-9223372036854775808", -(1 << 63)),
    ],
)
def test_integers(text, value):
    assert integer(text, "it") == value


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" 1",
        b"1 ",
        b"1_0",
        b"0x1",
        b"1e5",
        b"--1",
        b"+",
        "１".encode(),
        b"9223372036854775808",
        b"-9223372036854775809",
        b"1" * 5000,
        b"0" * 5000,
        b"1.5",
        b"1\n",
    ],
)
def test_integers_that_are_none(text):
    with pytest.raises(LayerRejected, match="it is not a number"):
        integer(text, "it")


def test_times_near_the_end():
    assert pax_time_ns(b"9223372036.854775807", "it") == (1 << 63) - 1
    assert bounded_ns(1 << 63) == 0
    assert bounded_ns(-1) == 0


def entry_with(records: dict[bytes, bytes]) -> Entry:
    entry = parse_header(header("n", b"0", 7, mtime=5, uid=1, gid=2, link="l"), 0)
    merge_pax(entry, records)
    return entry


def test_records_go_over_fields():
    entry = entry_with(
        {
            b"path": b"p",
            b"linkpath": b"t",
            b"uid": b"10",
            b"gid": b"-3",
            b"size": b"9",
            b"mtime": b"2.5",
            b"SCHILY.xattr.user.a": b"v",
            b"comment": b"c",
            b"uname": b"u",
            b"hdrcharset": b"BINARY",
        }
    )
    assert (entry.name, entry.link, entry.uid, entry.gid, entry.size_bytes, entry.stored_bytes) == (
        b"p",
        b"t",
        10,
        -3,
        9,
        9,
    )
    assert (entry.mtime_ns, entry.atime_ns, entry.xattrs) == (2_500_000_000, 2_500_000_000, ((b"user.a", b"v"),))


def test_records_without_a_value_change_nothing():
    entry = entry_with(dict.fromkeys((b"path", b"linkpath", b"uid", b"size", b"mtime"), b""))
    assert (entry.name, entry.link, entry.uid, entry.size_bytes, entry.mtime_ns, entry.xattrs) == (
        b"n",
        b"l",
        1,
        7,
        5 * 10**9,
        (),
    )


@pytest.mark.parametrize("key", [b"uid", b"gid", b"size", b"mtime", b"atime", b"ctime"])
def test_records_of_the_wrong_type(key):
    with pytest.raises(LayerRejected):
        entry_with({key: b"abc"})


def test_attributes_may_be_empty():
    assert entry_with({b"SCHILY.xattr.user.a": b""}).xattrs == ((b"user.a", b""),)
