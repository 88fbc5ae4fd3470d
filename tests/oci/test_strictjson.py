"""JSON that only one reader could understand is refused: attacks.md M17, M21, M22, M24, F02."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.errors import ContentRejected, LimitExceeded
from cri_shim.oci.strictjson import DEEPEST, DOCUMENT_BYTES, decode


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b'{"layers":[1],"layers":[2]}', id="M17"),
        pytest.param(b'{"a":{"b":1,"b":1}}', id="M17-nested"),
        pytest.param(b'{"a":1,"\\u0061":2}', id="M17-escaped"),
        pytest.param(b"", id="M21-empty"),
        pytest.param(b"<html></html>", id="M21-html"),
        pytest.param(b"\xef\xbb\xbf{}", id="M21-bom"),
        pytest.param('{"a":1}'.encode("utf-16"), id="M21-utf16"),
        pytest.param('{"a":1}'.encode("utf-16-le"), id="M21-utf16le"),
        pytest.param('{"a":1}'.encode("utf-32"), id="M21-utf32"),
        pytest.param(b'{"a":"\xff"}', id="M21-latin1"),
        pytest.param(b'{"a":"\xc0\xaf"}', id="M21-overlong"),
        pytest.param(b'{"a":"\xed\xa0\x80"}', id="M21-encoded-surrogate"),
        pytest.param(b"NaN", id="M21-nan"),
        pytest.param(b'{"a":Infinity}', id="M21-infinity"),
        pytest.param(b"[-Infinity]", id="M21-minus-infinity"),
        pytest.param(b'{"size":' + b"9" * 1_000_000 + b"}", id="M24-digits"),
        pytest.param(b'{"size":' + b"1" * 20 + b"}", id="M24-20-digits"),
        pytest.param(b"1e999999", id="M24-exponent"),
        pytest.param(b'"\\ud800"', id="half-surrogate"),
        pytest.param(b'{"\\udc00":1}', id="half-surrogate-key"),
        pytest.param(b'"\x00"', id="F02-nul"),
        pytest.param(b'"\t"', id="F02-tab"),
        pytest.param(b"{}{}", id="trailing"),
        pytest.param(b"{} x", id="trailing-junk"),
        pytest.param(b'{"a":1,}', id="trailing-comma"),
        pytest.param(b"{'a':1}", id="single-quotes"),
        pytest.param(b'{"a"', id="truncated"),
        pytest.param(b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), id="deep"),
        pytest.param(b"[" * 1_000_000, id="very-deep"),
        pytest.param(b'{"a":' * 500_000, id="very-deep-objects"),
    ],
)
def test_refused(data: bytes) -> None:
    with pytest.raises(ContentRejected):
        decode(data)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"null", None),
        (b' {"a": [1, -2, 1.5, true, false, null, "x"]}\r\n', {"a": [1, -2, 1.5, True, False, None, "x"]}),
        (b"9" * 19, int("9" * 19)),
        (b"-" + b"9" * 19, -int("9" * 19)),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        ('"é"'.encode(), "é"),
        (b'"\\u0000"', "\0"),
        (b"[" * DEEPEST + b"]" * DEEPEST, json.loads("[" * DEEPEST + "]" * DEEPEST)),
        (b"[" + b"[]," * 10_000 + b"[]]", [[]] * 10_001),
        (b'"' + b"[" * 10_000 + b'"', "[" * 10_000),
        (b'["' + b'\\"[' * 1000 + b'"]', ['"[' * 1000]),
    ],
)
def test_accepted(data: bytes, value: object) -> None:
    assert decode(data) == value


def test_the_bound_on_the_size() -> None:
    assert decode(b'"' + b"a" * 98 + b'"', limit=100)
    with pytest.raises(LimitExceeded, match="100 bytes"):
        decode(b'"' + b"a" * 99 + b'"', limit=100)
    with pytest.raises(LimitExceeded):
        decode(b" " * (DOCUMENT_BYTES + 1))


def test_the_message_says_where_and_repeats_nothing() -> None:
    with pytest.raises(ContentRejected) as caught:
        decode(b'{\n "hunter2": hunter3}')
    assert str(caught.value) == "the document is not JSON: line 2, column 13"
    with pytest.raises(ContentRejected) as caught:
        decode(b'{"hunter2":1,"hunter2":2}')
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b'"\\"' * 200_000, b'["' + b'\\"' * 500_000, b'"' + b"\\" * 1_000_001, b"[]" * 500_000, b'"["' * 300_000],
    ids=["quotes", "unended", "backslashes", "brackets", "strings"],
)
def test_no_input_takes_more_than_linear_time(data: bytes) -> None:
    started = time.process_time()
    with pytest.raises(ContentRejected):
        decode(b"[" * (DEEPEST + 1) + data)
    assert time.process_time() - started < 2


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(value=values, ascii_only=st.booleans())
def test_what_json_writes_is_read_back(*, value: object, ascii_only: bool) -> None:
    assert decode(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\u0nul1e', max_size=60).map(str.encode))
def test_anything_else_is_refused_in_one_way(data: bytes) -> None:
    try:
        decode(data)
    except ContentRejected:
        return
    json.loads(data)
