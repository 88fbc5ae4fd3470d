"""Durations as Go's time.ParseDuration takes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.auth.goduration import LONGEST_TEXT, parse_duration_ns

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("-0", 0),
        ("+0", 0),
        ("0s", 0),
        ("12h", 43_200 * SECOND),
        ("10m", 600 * SECOND),
        ("5s", 5 * SECOND),
        ("1h30m", 5400 * SECOND),
        ("1.5h", 5400 * SECOND),
        (".5s", SECOND // 2),
        ("1.s", SECOND),
        ("3ms", 3_000_000),
        ("3us", 3000),
        ("3\u00b5s", 3000),
        ("3\u03bcs", 3000),
        ("3ns", 3),
        ("0.9ns", 0),
        ("1m0.1s", 60 * SECOND + SECOND // 10),
        ("30m1h", 5400 * SECOND),
        ("-5s", -5 * SECOND),
        ("+5s", 5 * SECOND),
        ("9223372036854775807ns", 2**63 - 1),
        ("12h0m0s", 43_200 * SECOND),
        ("0000000012h", 43_200 * SECOND),
    ],
)
def test_durations(text: str, nanoseconds: int) -> None:
    assert parse_duration_ns(text) == nanoseconds


@pytest.mark.parametrize(
    "text",
    [
        "", "-", "+", "5", "s", ".s", "1.2.3s", "5 s", " 5s", "5s ", "5S", "5d", "5s5", "--5s", "1e3s", "0x5s", "1_0s",
        "\u0665s", "5s\n", "00", "hunter2", "9223372036854775808ns", "2562048h", "9" * LONGEST_TEXT + "h",
    ],
)  # fmt: skip
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_duration_ns(text)
    assert "hunter2" not in str(caught.value)


def test_the_longest_text() -> None:
    assert parse_duration_ns("0" * (LONGEST_TEXT - 2) + "1h") == 3600 * SECOND
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration_ns("0" * (LONGEST_TEXT - 1) + "1h")


@given(st.integers(0, 2_000_000), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999_999_999))
def test_what_go_writes_is_read(hours: int, minutes: int, seconds: int, rest: int) -> None:
    text = f"{hours}h{minutes}m{seconds}.{rest:09}s"
    assert parse_duration_ns(text) == ((hours * 60 + minutes) * 60 + seconds) * SECOND + rest
