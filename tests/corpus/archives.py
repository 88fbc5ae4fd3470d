"""Groups P and Z of the attack corpus: broken and extravagant tars, compression and bombs, scaled down.

The daemon that serves these runs with the bounds in `LIMITS`, so that going over one takes no hundred gigabytes.
"""

# ruff: noqa: N803  # V is the letter of the attack corpus

from __future__ import annotations

import functools
import gzip
import random
import struct
import zlib

import zstandard
from grpc import StatusCode

from tests.corpus.look import Case, a_dir, a_file, a_link, beyond, done, layer, rejected
from tests.fakes.ground import UP
from tests.fakes.images import FakeLayer, digest_of
from tests.fakes.tars import END, GNU, USTAR, D, F, H, S, base_256, gnu_name, header, map_lines, padded, pax, tar

LIMITS = {"unpacked_bytes": 32 << 20, "entries": 5000, "ratio_floor_bytes": 8 << 20, "ratio": 10_000}
BOMB_BYTES = 40 << 20
RATIO_BYTES = 16 << 20
BIG = "1" + "0" * 26
SPARSE_1 = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
TRUNCATED = F("a", b"x" * 1000)[: 512 + 600]
SKIPPABLE = b"\x50\x2a\x4d\x18" + struct.pack("<I", 3) + b"toc"


@functools.cache
def cases(V: str) -> dict[str, Case]:
    return {**headers(), **extended(V), **ends(), **gzips(), **zstds(), **bombs()}


def blob(data: bytes, diff: bytes = b"", compression: str = "gzip") -> FakeLayer:
    """A layer whose blob is *data*, whatever that is."""
    return FakeLayer(data, digest_of(diff), compression)


def headers() -> dict[str, Case]:
    """Numbers, checksums and types."""
    hidden = F("hidden")
    broken = header("b", checksum=b"000001\0 ")
    cases = {
        "P01 2^63-1": rejected(header("a", size=base_256((1 << 63) - 1, 12)), end=b"", says="cut off"),
        "P01 2^40": rejected(header("a", size=base_256(1 << 40, 12)), end=b"", says="cut off"),
        "P04 negative": rejected(header("a", size=b"\xff" * 12), says="negative"),
        "P05": done(
            {"a": a_file(b"y" * 600), "ok": a_file(b"1")},
            layer(pax({"size": "600"}), header("a"), padded(b"y" * 600), F("ok", b"1")),
        ),
        "P05 reversed": rejected(
            pax({"size": "0"}), header("a", size=1024), b"no header at all".ljust(512, b"!"), hidden, says="tar header"
        ),
        "P05 hidden": done({"a": a_file(hidden)}, layer(F("a", hidden))),
        "P06 checksum": rejected(F("a"), broken, F("c"), says="checksum"),
        "P06 stray bytes": rejected(F("a"), b"s" * 100, end=b"", says="cut off"),
        "P06 short": rejected(TRUNCATED, end=b"", says="cut off"),
        "P20": rejected(b"this is no tar\n" * 100, end=b"", says="tar header"),
        "P22 octal": done(
            {"f": a_file(b"123", mode=0o755, uid=8)},
            layer(header("f", mode=b"   755 \0", uid=b"10\0", size=b" 3 \0"), padded(b"123")),
        ),
        "P22 a sign": rejected(header("f", size=b"+3\0"), padded(b"123"), says="octal"),
        "P22 nines": rejected(header("f", mode=b"999\0"), says="octal"),
    }
    for kind in (b"7", b"D", b"V", b"M", b"s", b"Z", b"S"):
        cases[f"P16 {kind.decode()}"] = rejected(header("x", kind, magic=GNU if kind == b"S" else USTAR), says="type")
    for name, entry in {
        "dir": D("d", size=512),
        "link": S("d", "t", size=512),
        "hard link": H("b", "a", size=512),
    }.items():
        # Go believes no size of these: what follows is read as a header.
        cases[f"P07 {name}"] = rejected(F("a"), entry, b"z" * 512, says="tar header")
    return cases


def extended(V: str) -> dict[str, Case]:
    """PAX records, long names, sparse maps."""
    bad = {
        "P02": b"1" * 200_000,
        "P09 too long": b"30 path=x\n",
        "P09 no newline": b"9 path=xy",
        "P09 negative": b"-9 path=x\n",
        "P09 zero": b"0 path=x\n",
        "P09 a key with NUL": b"12 a\0b=cdef\n",
        "P09 no equals": b"10 pathxy\n",
        "P09 a value with NUL": b"11 path=\0x\n",
    }
    hole = {**SPARSE_1, "GNU.sparse.realsize": str(16 << 20)}
    huge = {**SPARSE_1, "GNU.sparse.realsize": str((1 << 63) - 1)}
    named = {"GNU.sparse.map": "0,512", "GNU.sparse.numblocks": "1", "GNU.sparse.size": "512"}
    cases = {name: rejected(pax(data), header("a"), says="PAX") for name, data in bad.items()}
    for text in ("-512", "-2560", "abc", BIG):
        cases[f"P04 PAX {text[:5]}"] = rejected(pax({"size": text}), header("a"))
    return cases | {
        "P10 PAX": beyond(pax({"comment": "x" * (2 << 20)}), F("a"), says="longer than"),
        "P10 GNU": beyond(gnu_name("x" * (2 << 20)), F("a"), says="longer than"),
        "P11": beyond(header("x", b"x", 1 << 32), b"1" * 512, says="longer than"),
        "P12 records": beyond(pax(b"6 a=1\n" * 150_000), F("a"), says="records"),
        "P12 digits": rejected(pax({"uid": "1" * 5000}), F("a"), says="not a number"),
        "P14": done(
            {"a": a_file(uid=0), "b": a_file(uid=0)}, layer(pax({"path": "gpath", "uid": "77"}, b"g"), F("a"), F("b"))
        ),
        "P15": done({}, layer(pax({"path": "x"}))),
        "P30": beyond(F("a", map_lines(1 << 40), pax=hole), says="sparse map"),
        "P30 old GNU": rejected(header("a", b"S", magic=GNU), says="type"),
        "P31": done({"a": a_file(b"x" * 512 + bytes((16 << 20) - 512))}, layer(
            F("a", map_lines(1, 0, 512) + b"x" * 512, pax=hole))),
        "P31 huge": beyond(F("a", map_lines(0), pax=huge), says="sparse files"),
        "P32": rejected(
            F("f", b"x" * 512, pax={**named, "GNU.sparse.name": UP + V + "/x"}), says="leaves the layer"
        ),
    }  # fmt: skip


def ends() -> dict[str, Case]:
    """How archives end, and what follows."""
    two = {"a": a_file(), "b": a_file()}
    return {
        "P17 nothing": done({}, layer(end=b"")),
        "P17 zeros": done({}, layer(end=bytes(1024))),
        "P17 one block": done({"a": a_file()}, layer(F("a"), end=bytes(512))),
        "P17 no end": done(two, layer(F("a"), F("b"), end=b"")),
        "P17 no padding": done({"a": a_file(b"x" * 700)}, layer(F("a", b"x" * 700)[: 512 + 700], end=b"")),
        "P19": done({"a": a_file()}, layer(F("a"), end=END + random.Random(19).randbytes(7000))),
        "P21": done({"a": a_file()}, layer(F("a"), end=END + bytes(6 << 20))),
        "P24": beyond(F("f") * 5001, says="5000 entries"),
        "P25": done({"d": a_dir(), "s": a_link("d")}, layer(D("d") * 2000, S("s", "d"))),
    }


def gzips() -> dict[str, Case]:
    """Members, headers and trailers of gzip."""
    first, second = F("a") + F("b"), F("c") + END
    whole, abc = first + second, {"a": a_file(), "b": a_file(), "c": a_file()}
    packed = gzip.compress(whole, mtime=0)
    empty = gzip.compress(b"", mtime=0)
    fields = b"\x1f\x8b\x08\x1c" + bytes(6) + struct.pack("<H", 60_000) + b"e" * 60_000
    long_names = fields + (b"n" * 100_000 + b"\0") * 2 + packed[10:]
    return {
        "Z06 members": done(abc, blob(gzip.compress(first) + gzip.compress(second), whole)),
        "Z06 zeros": done(abc, blob(packed + bytes(512), whole)),
        "Z06 garbage": failed(blob(packed + b"garbage text", whole), "follows the gzip stream"),
        "Z07": done(abc, blob(empty * 50_000 + packed, whole)),
        "Z09": done(abc, blob(long_names, whole)),
        "Z09 endless": failed(
            blob(b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * (2 << 20), whole), "longer than", StatusCode.RESOURCE_EXHAUSTED
        ),
        "Z09 reserved flags": failed(blob(b"\x1f\x8b\x08\xe0" + packed[4:], whole), "reserved flags"),
        "Z09 checksum": failed(blob(b"\x1f\x8b\x08\x02" + packed[4:10] + b"\0\0" + packed[10:], whole), "checksum"),
        "Z14": done(abc, blob(one_byte_blocks(whole), whole)),
    }


def one_byte_blocks(data: bytes) -> bytes:
    """Gzip that takes six bytes, and a block, for each byte."""
    blocks = b"".join(b"\x00\x01\x00\xfe\xff" + data[at : at + 1] for at in range(len(data)))
    trailer = struct.pack("<II", zlib.crc32(data), len(data))
    return b"\x1f\x8b\x08" + bytes(7) + blocks + b"\x01\x00\x00\xff\xff" + trailer


def zstds() -> dict[str, Case]:
    """Frames, windows and checksums of zstd, and types that say something else than the bytes."""
    pack = zstandard.ZstdCompressor(write_checksum=True).compress
    first, second = F("a"), F("b") + END
    whole, ab = first + second, {"a": a_file(), "b": a_file()}
    packed = pack(whole)
    plain = layer(F("a"), F("b"))
    cases = {
        f"Z04 {descriptor:#x}": failed(
            blob(b"\x28\xb5\x2f\xfd\0" + bytes([descriptor]) + b"\x19\0\0abc", whole, "zstd"),
            "window", StatusCode.RESOURCE_EXHAUSTED,
        )
        for descriptor in (0x90, 0x98, 0xA0, 0xF8)
    }  # fmt: skip
    return cases | {
        "Z10 frames": done(ab, blob(pack(first) + pack(second), whole, "zstd")),
        "Z10 skippable first": done(ab, blob(SKIPPABLE + packed, whole, "zstd")),
        "Z10 skippable last": done(ab, blob(packed + SKIPPABLE, whole, "zstd")),
        "Z10 garbage": failed(blob(packed + b"garbage", whole, "zstd"), "follows the zstd stream"),
        "Z10 checksum": failed(blob(packed[:-1] + bytes([packed[-1] ^ 1]), whole, "zstd"), "corrupt"),
        "Z10 truncated": failed(blob(packed[:-10], whole, "zstd"), "zstd"),
        "Z10 dictionary": failed(
            blob(packed[:4] + bytes([packed[4] | 1]) + b"\x07" + packed[5:], whole, "zstd"), "zstd"
        ),
        "Z11 zstd as gzip": done(ab, blob(packed, whole, "gzip")),
        "Z11 tar as gzip": done(ab, blob(plain.blob, plain.blob, "gzip")),
        "Z11 gzip as zstd": done(ab, blob(gzip.compress(whole), whole, "zstd")),
        "Z12": failed(blob(gzip.compress(whole), whole, "none"), "cut off inside of a header"),
    }


def bombs() -> dict[str, Case]:
    """More bytes than are allowed, in a file and after the end; more of them for each byte than are allowed."""
    in_a_file, after = tar(F("z", bytes(BOMB_BYTES))), tar(F("z")) + bytes(BOMB_BYTES)
    steep = zstandard.ZstdCompressor(level=19).compress(tar(F("z", bytes(RATIO_BYTES))))
    exhausted = StatusCode.RESOURCE_EXHAUSTED
    return {
        "Z01": failed(blob(gzip.compress(in_a_file, 1)), "more than", exhausted),
        "Z01 zstd": failed(
            blob(zstandard.ZstdCompressor(level=1).compress(in_a_file), b"", "zstd"), "more than", exhausted
        ),
        "Z01 ratio": failed(blob(steep, b"", "zstd"), "compressed more than", exhausted),
        "Z02": failed(blob(gzip.compress(after, 1)), "more than", exhausted),
        "P21 beyond": failed(blob(gzip.compress(after, 6)), "more than", exhausted),
    }


def failed(one: FakeLayer, says: str, code: StatusCode = StatusCode.FAILED_PRECONDITION) -> Case:
    return Case((one,), code, says)
