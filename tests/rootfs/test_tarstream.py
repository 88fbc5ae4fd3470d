"""What lies where in an archive: group P of the attack corpus, whole and a byte at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rootfs.errors import LayerRejected, LimitExceeded, RootfsError
from rootfs.limits import Limits
from rootfs.tarstream import TarStream
from tests.fakes.ground import Dribble
from tests.fakes.tars import (
    END,
    GNU,
    V7,
    C,
    D,
    F,
    H,
    K,
    P,
    S,
    base_256,
    gnu_link,
    gnu_name,
    header,
    map_lines,
    padded,
    pax,
    pax_record,
    tar,
)

STEPS = [0, 1, 7, 511, 513]


def read(data: bytes, step: int = 0, **changes):
    """Every entry: (kind, name, link, size, content with holes filled)."""
    stream = TarStream(Dribble(data, step) if step else io.BytesIO(data), dataclasses.replace(Limits(), **changes))
    found = []
    while entry := stream.next():
        content = b""
        if entry.sparse is not None:
            for offset, length in entry.sparse:
                content = content.ljust(offset, b"\0") + b"".join(stream.pieces(length))
            content = content.ljust(entry.size_bytes, b"\0")
        elif entry.stored_bytes:
            whole = stream.whole()
            content = bytes(whole) if whole is not None else b"".join(stream.pieces(entry.stored_bytes))
        assert len(content) == entry.size_bytes
        found.append((entry.kind, entry.name, entry.link, content))
    assert stream.entries == len(found)
    return found


def sparse(version: str, runs: list[tuple[int, int]], size: int, **more: str) -> dict[str, str]:
    records = {"GNU.sparse.size": str(size), "GNU.sparse.numblocks": str(len(runs)), **more}
    if version == "0.1":
        records["GNU.sparse.map"] = ",".join(f"{offset},{length}" for offset, length in runs)
    return records


GOOD = {
    "empty": (b"", []),
    "one block of zeros": (bytes(512), []),
    "two blocks of zeros": (END, []),
    "no end": (F("a", b"x"), [(b"0", b"a", b"", b"x")]),
    "one block at the end": (tar(F("a"), end=bytes(512)), [(b"0", b"a", b"", b"")]),
    "rubbish after the end": (tar(F("a")) + b"rubbish" * 1000, [(b"0", b"a", b"", b"")]),
    "no padding at the very end": (F("a", b"xyz")[:515], [(b"0", b"a", b"", b"xyz")]),
    "half of the padding": (F("a", b"xyz")[:700], [(b"0", b"a", b"", b"xyz")]),
    "types": (
        tar(D("d/"), S("s", "t"), H("h", "t"), C("c", 1, 2), K("b", 1, 2), P("p")),
        [
            (b"5", b"d/", b"", b""),
            (b"2", b"s", b"t", b""),
            (b"1", b"h", b"t", b""),
            (b"3", b"c", b"", b""),
            (b"4", b"b", b"", b""),
            (b"6", b"p", b"", b""),
        ],
    ),
    "old types": (
        tar(header("f", b"\0", 3) + padded(b"abc"), header("d/", b"\0", magic=V7)),
        [(b"0", b"f", b"", b"abc"), (b"5", b"d/", b"", b"")],
    ),
    "sizes of what has no content": (
        tar(header("d", b"5", 1000), header("s", b"2", base_256(-5, 12), link="t"), F("f")),
        [(b"5", b"d", b"", b""), (b"2", b"s", b"t", b""), (b"0", b"f", b"", b"")],
    ),
    "PAX size over a smaller one": (
        tar(pax({"size": "600"}) + header("a", size=0) + padded(b"y" * 600), F("ok")),
        [(b"0", b"a", b"", b"y" * 600), (b"0", b"ok", b"", b"")],
    ),
    "PAX size over a larger one": (
        tar(pax({"size": "512"}) + header("a", size=1024) + padded(b"y" * 512), F("ok", b"1")),
        [(b"0", b"a", b"", b"y" * 512), (b"0", b"ok", b"", b"1")],
    ),
    "a header in a file": (
        tar(F("a", F("hidden")), F("ok")),
        [(b"0", b"a", b"", F("hidden")), (b"0", b"ok", b"", b"")],
    ),
    "global records": (
        tar(pax({"path": "gpath", "uid": "77", "size": "5"}, b"g"), F("a"), F("b")),
        [(b"0", b"a", b"", b""), (b"0", b"b", b"", b"")],
    ),
    "a global header undoes the one before": (
        tar(pax({"path": "lost"}), pax({"path": "g"}, b"g"), F("a")),
        [(b"0", b"a", b"", b"")],
    ),
    "PAX header at the end": (tar(pax({"path": "x"})), []),
    "PAX header and nothing": (pax({"path": "x"}), []),
    "the later PAX header counts": (
        tar(pax({"path": "x", "linkpath": "y"}), pax({"path": "z"}), F("a")),
        [(b"0", b"z", b"", b"")],
    ),
    "long names": (
        tar(gnu_name("n" * 3000), gnu_link("l" * 2000), S("s", "t")),
        [(b"2", b"n" * 3000, b"l" * 2000, b"")],
    ),
    "the later long name counts": (tar(gnu_name("one"), gnu_name("two"), F("a")), [(b"0", b"two", b"", b"")]),
    "long names go over PAX": (tar(pax({"path": "pax"}), gnu_name("gnu"), F("a")), [(b"0", b"gnu", b"", b"")]),
    "long names end at a NUL": (tar(gnu_name(b"gnu\0rest"), F("a")), [(b"0", b"gnu", b"", b"")]),
    "empty long names": (tar(gnu_name(b""), F("a")), [(b"0", b"a", b"", b"")]),
    "the slash of an old directory from PAX": (tar(pax({"path": "d/"}), header("f", b"\0")), [(b"5", b"d/", b"", b"")]),
    "sparse 0.1": (
        tar(F("a", b"abcd", pax=sparse("0.1", [(2, 3), (9, 1)], 12))),
        [(b"0", b"a", b"", b"\0\0abc\0\0\0\0d\0\0")],
    ),
    "sparse 0.1 with a name": (
        tar(
            F(
                "a",
                b"x",
                pax=sparse(
                    "0.1", [(0, 1)], 1, **{"GNU.sparse.name": "real", "GNU.sparse.major": "0", "GNU.sparse.minor": "1"}
                ),
            )
        ),
        [(b"0", b"real", b"", b"x")],
    ),
    "sparse 0.1 without data": (tar(F("a", pax=sparse("0.1", [(5, 0)], 5))), [(b"0", b"a", b"", bytes(5))]),
    "sparse 0.0": (
        tar(
            pax(
                pax_record("GNU.sparse.size", "6")
                + pax_record("GNU.sparse.numblocks", "2")
                + pax_record("GNU.sparse.offset", "0")
                + pax_record("GNU.sparse.numbytes", "1")
                + pax_record("GNU.sparse.offset", "4")
                + pax_record("GNU.sparse.numbytes", "2")
            )
            + header("a", size=3)
            + padded(b"xyz")
        ),
        [(b"0", b"a", b"", b"x\0\0\0yz")],
    ),
    "sparse 1.0": (
        tar(
            F(
                "a",
                map_lines(2, 1, 2, 5, 1) + b"abc",
                pax={
                    "GNU.sparse.major": "1",
                    "GNU.sparse.minor": "0",
                    "GNU.sparse.name": "real",
                    "GNU.sparse.realsize": "7",
                },
            ),
            F("b"),
        ),
        [(b"0", b"real", b"", b"\0ab\0\0c\0"), (b"0", b"b", b"", b"")],
    ),
    "sparse 1.0 with a long map": (
        tar(
            F(
                "a",
                map_lines(300, *(n for i in range(300) for n in (2 * i, 1))) + b"x" * 300,
                pax={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "600"},
            )
        ),
        [(b"0", b"a", b"", b"x\0" * 300)],
    ),
    "sparse of an unknown version": (
        tar(F("a", b"x", pax={"GNU.sparse.major": "2", "GNU.sparse.minor": "0", "GNU.sparse.name": "no"})),
        [(b"0", b"a", b"", b"x")],
    ),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("case", GOOD)
def test_good_archives(case, step):
    data, entries = GOOD[case]
    assert read(data, step) == entries


RUN = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}
BAD = {
    "a size that is not there": header("a", size=base_256((1 << 63) - 1, 12)),
    "a large size that is not there": header("a", size=base_256(1 << 40, 12)) + b"x" * 100,
    "a negative size": header("a", size=b"\xff" * 12),
    "a negative PAX size": pax({"size": "-512"}) + header("a"),
    "a negative PAX size, larger": pax({"size": "-2560"}) + header("a") + F("b"),
    "a PAX size that is none": pax({"size": "abc"}) + header("a"),
    "a PAX size that is too large": pax({"size": "1" + "0" * 26}) + header("a"),
    "a wrong checksum in the middle": tar(F("a"), header("b", checksum=b"0000001"), F("c")),
    "rubbish at the end": F("a") + b"x" * 100,
    "rubbish instead of a header": F("a") + b"x" * 512,
    "too little content": header("a", size=1000) + b"x" * 600,
    "content after a directory": header("d", b"5", 512) + b"x" * 512,
    "content after a link": header("s", b"2", 512, link="t") + b"x" * 512,
    "something after a block of zeros": bytes(512) + F("a"),
    "half a block after a block of zeros": bytes(512) + bytes(100),
    "text": b"this is no tar\n" * 100,
    "a PAX header that is cut off": header("x", b"x", 1 << 19) + b"1" * 512,
    "PAX digits": pax(b"1" * 200_000) + header("a"),
    "a long name that is cut off": header("x", b"L", 1000, magic=GNU) + b"x" * 512,
    "a negative size under a PAX size": tar(pax({"size": "1"}), header("a", size=b"\xff" * 12), padded(b"x")),
    "a negative size of an old directory": tar(header("d/", b"\0", size=b"\xff" * 12, magic=V7)),
    "a negative long name": header("x", b"L", b"\xff" * 12, magic=GNU),
    "old GNU sparse": header("a", b"S", magic=GNU),
    **{
        f"type {kind!r}": header("a", kind)
        for kind in (b"7", b"D", b"V", b"M", b"s", b"Z", b"N", b"A", b"\xff", b"1"[:0] + b"8")
    },
    "a global header that is none": tar(pax(b"rubbish", b"g"), F("a")),
    "a sparse link": tar(H("h", "t", pax=sparse("0.1", [(0, 0)], 0))),
    "a sparse directory": tar(D("h", pax=sparse("0.1", [(0, 0)], 0))),
    "sparse: more content than map": tar(F("a", b"abc", pax=sparse("0.1", [(0, 2)], 9))),
    "sparse: more map than content": tar(F("a", b"abc", pax=sparse("0.1", [(0, 4)], 9))),
    "sparse: past the end": tar(F("a", b"abc", pax=sparse("0.1", [(7, 3)], 9))),
    "sparse: overlap": tar(F("a", b"abc", pax=sparse("0.1", [(0, 2), (1, 1)], 9))),
    "sparse: backwards": tar(F("a", b"abc", pax=sparse("0.1", [(5, 2), (0, 1)], 9))),
    "sparse: negative offset": tar(F("a", b"abc", pax=sparse("0.1", [(-1, 3)], 9))),
    "sparse: negative length": tar(F("a", b"abc", pax=sparse("0.1", [(0, 4), (5, -1)], 9))),
    "sparse: wrong count": tar(F("a", b"abc", pax={**sparse("0.1", [(0, 3)], 9), "GNU.sparse.numblocks": "2"})),
    "sparse: no count": tar(F("a", b"abc", pax={"GNU.sparse.map": "0,3", "GNU.sparse.size": "9"})),
    "sparse: odd map": tar(
        F("a", b"abc", pax={"GNU.sparse.map": "0,3,4", "GNU.sparse.size": "9", "GNU.sparse.numblocks": "1"})
    ),
    "sparse: map of words": tar(
        F("a", b"abc", pax={"GNU.sparse.map": "0,x", "GNU.sparse.size": "9", "GNU.sparse.numblocks": "1"})
    ),
    "sparse: negative size": tar(
        F("a", b"", pax={"GNU.sparse.map": "0,0", "GNU.sparse.size": "-9", "GNU.sparse.numblocks": "1"})
    ),
    "sparse: size of words": tar(
        F("a", b"", pax={"GNU.sparse.map": "0,0", "GNU.sparse.size": "x", "GNU.sparse.numblocks": "1"})
    ),
    "sparse 1.0: no map": tar(F("a", b"", pax=RUN)),
    "sparse 1.0: short map": tar(F("a", b"2\n0\n1\n", pax=RUN)),
    "sparse 1.0: words": tar(F("a", padded(b"x\n"), pax=RUN)),
    "sparse 1.0: no line": tar(F("a", b"1" * 4096, pax=RUN)),
    "sparse 1.0: endless map": tar(F("a", map_lines(2, 0, 1) + b"x", pax=RUN)),
    "sparse 1.0: empty line": tar(F("a", padded(b"1\n\n1\n") + b"x", pax=RUN)),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("case", BAD)
def test_bad_archives(case, step):
    start = time.thread_time()
    with pytest.raises(LayerRejected):
        read(BAD[case], step)
    assert time.thread_time() - start < 20


LIMITED = {
    "entries": (b"".join(F(f"f{n}") for n in range(4)), {"entries": 3}),
    "PAX header": (pax({"comment": "x" * (2 << 20)}) + F("a"), {}),
    "PAX header that is not there": (header("x", b"x", 1 << 32) + b"1" * 512, {}),
    "long name": (gnu_name("x" * (2 << 20)) + F("a"), {}),
    "records": (pax(b"6 a=1\n" * 70_000) + F("a"), {}),
    "extended headers": (pax({"a": "b"}) * 5 + F("a"), {"entries": 1}),
    "name": (F("n" * 5000), {}),
    "link": (S("s", "n" * 5000), {}),
    "logical bytes": (tar(F("a", b"", pax=sparse("0.1", [(0, 0)], (1 << 63) - 1))), {}),
    "logical bytes of many": (
        tar(*(F(f"f{n}", b"", pax=sparse("0.1", [(0, 0)], 1000)) for n in range(3))),
        {"unpacked_bytes": 2999},
    ),
    "sparse map": (tar(F("a", map_lines(1 << 40), pax=RUN)), {}),
    "sparse map in records": (tar(F("a", b"", pax=sparse("0.1", [(0, 0)] * 5, 1))), {"records": 4}),
    "sparse map with long lines": (tar(F("a", map_lines(3) + bytes(4096), pax=RUN)), {"header_bytes": 1024}),
}


@pytest.mark.parametrize("case", LIMITED)
def test_limits(case):
    data, changes = LIMITED[case]
    with pytest.raises(LimitExceeded) as caught:
        read(data, **changes)
    assert caught.value.bound in {"entries", "header_bytes", "records", "path_bytes", "unpacked_bytes"}


def test_limits_at_the_bound():
    assert len(read(b"".join(F(f"f{n}") for n in range(3)), entries=3)) == 3
    assert len(read(F("n" * 4095))) == 1
    record = pax_record("comment", "x" * 1000)
    assert len(read(pax(record) + F("a"), header_bytes=len(record))) == 1
    with pytest.raises(LimitExceeded):
        read(pax(record) + F("a"), header_bytes=len(record) - 1)


def test_content_that_is_not_read_is_passed_over():
    stream = TarStream(Dribble(tar(F("a", b"x" * 5000), F("b", b"y")), 600), Limits())
    assert stream.next().name == b"a"
    assert b"".join(stream.pieces(700)) == b"x" * 700
    assert stream.next().name == b"b"
    assert stream.next() is None
    assert stream.next() is None


def test_many_empty_files_take_no_memory():
    chunk = b"".join(F(f"f{n}") for n in range(2048))

    class Endless:
        left = 30

        def read(self, size: int, /) -> bytes:
            self.left -= 1
            return chunk if self.left >= 0 else b""

    stream = TarStream(Endless(), Limits())
    while stream.next():
        pass
    assert stream.entries == 30 * 2048


PIECES = [
    F("a", b"x" * 10),
    F("b"),
    D("d"),
    S("s", "t"),
    pax({"path": "p"}),
    pax({"size": "1"}),
    gnu_name("n"),
    bytes(512),
    b"x" * 512,
    header("q", size=512),
    b"\xff" * 7,
]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES), max_size=8), st.integers(1, 1100))
def test_how_it_arrives_makes_no_difference(pieces, step):
    data = b"".join(pieces)

    def outcome(step: int):
        try:
            return read(data, step)
        except RootfsError as error:
            return str(error)

    assert outcome(0) == outcome(step)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_any_damage_is_read_or_refused(data):
    archive = bytearray(
        tar(F("a", b"x" * 600, pax={"mtime": "1.5"}), gnu_name("n" * 200), F("b", b"1"), *GOOD["sparse 1.0"][:1])
    )
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(archive) - 1))
        archive[at] = data.draw(st.integers(0, 255))
    start = data.draw(st.integers(0, 600))
    with contextlib.suppress(RootfsError):
        read(bytes(archive[start:]))
