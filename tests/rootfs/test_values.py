"""Values as JSON: what was written is read, and nothing else is."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootfs import values
from rootfs.apply import Applied
from rootfs.commit import Found
from rootfs.digest import Digest
from rootfs.errors import HelperFailed
from rootfs.forms import FormMade
from rootfs.limits import Limits
from rootfs.remove import Stuck
from rootfs.tarsplit import REPLACED, TOO_LONG, Record

COUNTS = st.integers(0, 2**63 - 1)
PATHS = st.lists(st.binary(max_size=20), max_size=5).map(tuple)
RECORDS = st.one_of(
    st.none(),
    st.builds(Record, st.binary().map(Digest.of), st.integers(1, 2**63 - 1)),
    st.sampled_from([Record(None, 0, REPLACED), Record(None, 0, TOO_LONG)]),
)
APPLIED = st.builds(
    Applied,
    diff_id=st.binary().map(Digest.of),
    diff_size_bytes=COUNTS,
    blob=st.binary().map(lambda data: Digest.of(data, "sha512")),
    blob_size_bytes=COUNTS,
    compression=st.sampled_from(["none", "gzip", "zstd"]),
    entries=COUNTS,
    usage_bytes=COUNTS,
    inodes=COUNTS,
    whiteouts=COUNTS,
    opaque=PATHS,
    implied=PATHS,
    skipped=st.lists(st.tuples(st.text("a:\u00e9", max_size=20), COUNTS), max_size=4).map(tuple),
    record=RECORDS,
)
ONE = Applied(
    diff_id=Digest.of(b""),
    diff_size_bytes=1,
    blob=Digest.of(b""),
    blob_size_bytes=2,
    compression="gzip",
    entries=3,
    usage_bytes=4,
    inodes=5,
    whiteouts=6,
    opaque=(b"a",),
    implied=(b"b",),
    skipped=(("owner", 7),),
)


def handed_back(applied):
    """What the daemon has once it read the body."""
    return {**travelled(values.from_applied(applied)), "paths": (*applied.opaque, *applied.implied)}


def travelled(value):
    return json.loads(json.dumps(value))


@given(APPLIED)
def test_applied_travels(applied):
    assert values.to_applied(handed_back(applied)) == applied


NOT_COUNTS = [-1, 2**63, 1.0, "1", None, True, [], {}]
NOT_LISTS = [None, "x", 1, {}]


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        *((name, wrong) for name in ("entries", "diff_size_bytes", "whiteouts") for wrong in NOT_COUNTS),
        *((name, wrong) for name in ("opaque", "implied") for wrong in [*NOT_COUNTS[:-3], 0, 2]),
        *((name, wrong) for name in ("skipped", "paths") for wrong in NOT_LISTS),
        ("paths", ()),
        ("paths", (b"a", b"b", b"c")),
        ("skipped", [["a"]]),
        ("skipped", [["a", 1, 2]]),
        ("skipped", [[1, 1]]),
        ("skipped", ["ab"]),
        ("compression", "lzma"),
        ("compression", []),
        ("blob", "sha256:x"),
        ("blob", "md5:00"),
        ("diff_id", None),
        *(("record", wrong) for wrong in (["x"], ["", 0], ["", 0, ""], ["", 1, REPLACED], ["", 0, "odd"], [1, 1, ""])),
        *(("record", [str(Digest.of(b"")), *wrong]) for wrong in ([0, ""], [1, REPLACED], [-1, ""], ["1", ""])),
    ],
)
def test_an_applied_of_another_shape_is_refused(field, wrong):
    with pytest.raises(HelperFailed):
        values.to_applied({**handed_back(ONE), field: wrong})


@pytest.mark.parametrize("value", [None, [], "x", {}, {**handed_back(ONE), "more": 1}])
def test_other_fields_are_refused(value):
    with pytest.raises(HelperFailed):
        values.to_applied(value)


@pytest.mark.parametrize("field", ["paths", *(field.name for field in dataclasses.fields(Applied))])
def test_every_field_is_needed(field):
    written = handed_back(ONE)
    del written[field]
    with pytest.raises(HelperFailed):
        values.to_applied(written)


def test_what_was_skipped_is_bounded():
    written = {**handed_back(ONE), "skipped": [["\x1b" + "x" * 1000, 1]] * 1000}
    read = values.to_applied(written).skipped
    assert len(read) == 256
    assert read[0][0] == "?" + "x" * 255


def test_limits_travel():
    limits = Limits(entries=7, ratio=3)
    assert values.to_limits(travelled(values.from_limits(limits))) == limits
    with pytest.raises(HelperFailed):
        values.to_limits({"entries": 7})


def test_other_results_travel():
    form = FormMade(1, 2, 3, 4, 5)
    assert values.to_form_made(travelled(dataclasses.asdict(form))) == form
    assert values.to_form_made(None) is None
    found = (Found("a", b"\0\xff"), Found("\udcff", None))
    assert values.to_found(travelled(values.from_found(found))) == found
    stuck = (Stuck("a", "busy"),)
    assert values.to_stuck(travelled(values.from_stuck(stuck))) == stuck


@pytest.mark.parametrize("value", [None, [1], [["a"]], [["a", 1]], [[1, None]], [["a", "b", "c"]]])
def test_other_results_of_another_shape(value):
    for read in (values.to_found, values.to_stuck):
        with pytest.raises(HelperFailed):
            read(value)


def test_a_form_of_another_shape():
    for value in ([], {"directories": 1}, {**dataclasses.asdict(FormMade(1, 2, 3, 4, 5)), "links": -1}):
        with pytest.raises(HelperFailed):
            values.to_form_made(value)
