"""How a peer's text is quoted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.oci.shown import escaped, shown


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("plain", '"plain"'),
        ("", '""'),
        ("a\r\nb\x1b[0m", r'"a\x0d\x0ab\x1b[0m"'),
        ("é\u202e\U0001f600", r'"\xe9\u202e\U0001f600"'),
        ("\ud800", r'"\ud800"'),
        ("\x7f\x00", r'"\x7f\x00"'),
        ("a" * 256, '"' + "a" * 256 + '"'),
        ("a" * 257, '"' + "a" * 256 + '"...'),
    ],
)
def test_quoting(text: str, quoted: str) -> None:
    assert shown(text) == quoted


@given(st.text(max_size=50), st.integers(min_value=0, max_value=20))
def test_it_is_always_printable_and_short(text: str, limit: int) -> None:
    for quoted in (shown(text, limit), escaped(text, limit)):
        assert quoted.isascii()
        assert quoted.isprintable()
        assert len(quoted) <= limit * 10 + 5
