"""Our tar reader against Go's archive/tar, which every other runtime reads layers with: the attack corpus, the archives
of the reader's own tests, and thousands of archives with random damage under right checksums.

What we refuse, Go may accept: types that layers do not have, NUL in a name, more than the bounds. What Go refuses, we
refuse; and what both accept is the same, byte for byte.
"""

from __future__ import annotations

import random
import re

import pytest

from tests.corpus import archives, layers
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
    checksummed,
    gnu_link,
    gnu_name,
    header,
    map_lines,
    pax,
    pax_record,
    tar,
)
from tests.real.gotar import by_go, by_us
from tests.rootfs import test_tarstream as own

pytestmark = pytest.mark.needs("go")

STRICTER = re.compile(
    r"which layers do not have|a NUL in the name|(is|are) (longer|larger) than|more than \d+|sparse map has more than"
)
"""Why we refuse what Go accepts: see `rootfs.tarstream` and `rootfs.limits`."""

RANDOM = 6000
GO_SPARSE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "700"}
STAR = b"ustar\x0000"
PIECES = (
    *(F("a", b"x" * 700), F("b"), D("d/"), S("s", "t"), H("h", "a"), C("c", 1, 3), K("k", 8, 0), P("p")),
    *(header("v", magic=V7), header("vd/", b"\0", magic=V7), header("g", magic=GNU), header("x", prefix="pre/fix")),
    header("neg", size=base_256(-5, 12), magic=GNU),
    header("big", uid=base_256(1 << 40, 8), mtime=base_256(-3, 12), magic=GNU),
    header("dir", b"5", size=512),
    pax({"path": "long/name", "mtime": "12.5", "uid": "7", "SCHILY.xattr.user.a": "b"}),
    pax({"size": "3"}),
    pax({"size": "3", "mtime": "-1.25", "atime": "9", "ctime": "7"}),
    pax({"path": "global"}, b"g"),
    pax(pax_record("path", "") + pax_record("linkpath", "x")),
    F("sp", map_lines(2, 0, 3, 500, 4) + b"abcdefg", pax=GO_SPARSE),
    F("s1", b"abc", pax={"GNU.sparse.map": "1,2,9,1", "GNU.sparse.numblocks": "2", "GNU.sparse.size": "12"}),
    *(gnu_name("long" * 50), gnu_link("link" * 50), gnu_name("")),
    *(bytes(512), END, b"rubbish" * 20),
)  # fmt: skip


def kept() -> dict[str, bytes]:
    """Archives that somebody thought of."""
    found = {}
    for name, case in {**layers.cases("/victim"), **archives.cases("/victim")}.items():
        for place, layer in enumerate(case.layers):
            if layer.compression == "none" and len(layer.blob) < 8 << 20:
                found[f"{name} {place}"] = layer.blob
    found |= {f"good: {name}": data for name, (data, _) in own.GOOD.items()}
    found |= {f"bad: {name}": data for name, data in own.BAD.items()}
    return found


def damaged(chance: random.Random) -> bytes:
    """A few pieces, of which some bytes are others; most blocks that were headers have a right checksum again."""
    parts = chance.choices(PIECES, k=chance.randint(1, 5))
    archive = bytearray(tar(*parts, end=chance.choice((END, END, bytes(512), b""))))
    for _ in range(chance.randint(0, 3)):
        at = chance.randrange(len(archive)) if archive else 0
        letters = b"\0 0127x\xff\x80/.=\n" + bytes([chance.randrange(256)])
        archive[at : at + 1] = bytes([chance.choice(letters)]) if archive else b""
        start = at - at % 512
        if chance.random() < 0.8 and b"ustar" in archive[start + 257 : start + 265]:
            archive[start : start + 512] = checksummed(bytes(archive[start : start + 512]))
    return bytes(archive[: chance.randrange(len(archive) + 1)] if chance.random() < 0.1 else archive)


def complaint(go, us) -> str:
    """What is wrong about the two answers, "" for nothing."""
    (theirs, their_error), (ours, our_error) = go, us
    if our_error and not their_error:
        return "" if STRICTER.search(our_error) and theirs[: len(ours)] == ours else f"only we refuse: {our_error}"
    if their_error and not our_error:
        return f"only Go refuses: {their_error}"
    if our_error:
        short = min(len(ours), len(theirs))
        return "" if ours[:short] == theirs[:short] else f"read before the error: {theirs} {ours}"
    return "" if ours == theirs else f"{theirs} {ours}"


def complaints(found: dict[str, bytes]) -> list[str]:
    answers = zip(found, by_go(list(found.values())), map(by_us, found.values()), strict=True)
    return [f"{name}: {said}" for name, go, us in answers if (said := complaint(go, us))]


def test_archives_that_somebody_thought_of():
    found = kept()
    assert len(found) > 200
    assert complaints(found) == []


@pytest.mark.parametrize("seed", range(3))
def test_archives_with_random_damage(seed):
    chance = random.Random(seed)
    found = {f"{seed}/{number}": damaged(chance) for number in range(RANDOM)}
    assert complaints(found) == []
    accepted = sum(not error for _, error in by_go(list(found.values())))
    assert RANDOM / 10 < accepted < RANDOM * 9 / 10, "neither answer is rare"


def test_a_difference_is_seen():
    go, us = by_go([tar(F("a", b"x"))])[0], by_us(tar(F("a", b"y")))
    assert complaint(go, us)
    assert complaint(go, ([], "the archive is cut off"))
    assert complaint((go[0], "invalid"), (go[0], "")) == "only Go refuses: invalid"
