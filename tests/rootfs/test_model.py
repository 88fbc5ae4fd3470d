"""Sequences of entries with evil names, against a file system of dicts: the same trees, marks and refusals."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from rootfs.errors import LayerRejected
from tests.fakes.ground import Ground
from tests.fakes.tars import C, D, F, H, P, S, tar
from tests.rootfs.model import Model, Refused

EXAMPLES = int(os.environ.get("CRI_SHIM_FUZZ_EXAMPLES", "300"))
MOST = 9
# Most names lead somewhere, so that most sequences are not refused at their first entry.
ABOVE = st.lists(st.sampled_from(["a", "b", "a", "b", "a", "b", "."]), max_size=2)
LAST = st.sampled_from(["a", "b", "a", "b", "a", "b", ".wh.a", ".wh.b", ".wh..wh..opq"])
EVIL = ["a", "b", "..", ".", "", ".wh.a", ".wh.b", ".wh..wh..opq", ".wh..wh.x", ".wh..", ".wh..."]
LIKELY = st.tuples(ABOVE, LAST).map(lambda parts: "/".join((*parts[0], parts[1])))
UNLIKELY = st.lists(st.sampled_from(EVIL), min_size=1, max_size=4).map("/".join)
NAMES = st.integers(0, 19).flatmap(lambda number: LIKELY if number else UNLIKELY)
TARGETS = st.one_of(
    st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=2).map("/".join),
    st.sampled_from(["/", "/a", "/b/a", "..", "../b", ".", "a/..", "../../victim", "", ".wh.a"]),
)
MODES = st.sampled_from([0o700, 0o711, 0o755])
KINDS = {
    "file": lambda name, target, mode: F(name, target.encode(), mode=mode),
    "dir": lambda name, _, mode: D(name, mode=mode),
    "link": lambda name, target, _: S(name, target),
    "hard link": lambda name, target, mode: H(name, target, mode=mode),
    "fifo": lambda name, _, mode: P(name, mode=mode),
    "gone": lambda name, _, mode: C(name, 0, 0, mode=mode),
}
ENTRIES = st.tuples(st.sampled_from(sorted(KINDS)), NAMES, TARGETS, MODES)
NODES = {0o100000: "file", 0o040000: "dir", 0o120000: "link", 0o010000: "fifo", 0o020000: "gone"}


def expected(entries):
    """The model's answer: what stands where, which paths are one file, and the marks; None where it refuses."""
    model = Model()
    try:
        for kind, name, target, mode in entries:
            content = target.encode() if kind in ("file", "link", "hard link") else b""
            model.put(kind, name.encode(), content, mode)
    except Refused:
        return None
    opaque, implied = model.finish()
    everything = {path: node for path, node in model.everything().items() if path}
    seen = {b"/".join(path): (node.kind, node.mode, node.content) for path, node in everything.items()}
    return (
        seen,
        groups({b"/".join(path): id(node) for path, node in everything.items()}),
        *map(joined, (opaque, implied)),
    )


def joined(paths):
    return tuple(sorted(b"/".join(path) for path in paths))


def groups(names):
    """Which of *names* stand for the same thing."""
    return {frozenset(name for name in names if names[name] == one) for one in names.values()}


def unpacked(ground, entries):
    """What the unpacker makes of the same entries, read back from the disk."""
    try:
        applied = ground.apply(tar(*(KINDS[kind](name, target, mode) for kind, name, target, mode in entries)))
    except LayerRejected:
        return None
    seen, inodes = {}, {}
    for name in ground.names():
        status = ground.stat(name)
        kind = NODES[status.st_mode & 0o170000]
        content = ground.read(name) if kind == "file" else ground.link(name).encode() if kind == "link" else b""
        seen[name.encode()] = (kind, status.st_mode & 0o7777, content)
        inodes[name.encode()] = status.st_ino
    assert applied.whiteouts >= sum(kind == "gone" for kind, _, _ in seen.values())  # some went with a directory
    return seen, groups(inodes), applied.opaque, applied.implied


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ENTRIES, max_size=MOST))
def test_entries_come_to_what_the_rules_say(entries):
    with tempfile.TemporaryDirectory() as top:
        found = unpacked(Ground(Path(top)), entries)
    wanted = expected(entries)
    event("refused" if wanted is None else "unpacked")
    assert found == wanted


def test_most_examples_are_not_refused():
    """The model refuses what it must and no more: a sequence of every kind comes through."""
    entries = [
        (kind, name, "a", 0o711) for kind, name in zip(sorted(KINDS), ("x", "a", "h", "l", "p", "g"), strict=True)
    ]
    wanted = expected(sorted(entries, key=lambda entry: entry[0] == "hard link"))
    assert wanted is not None
    assert len(wanted[0]) == len(KINDS)
