"""Tables and sizes are spelled as crictl spells them."""

from __future__ import annotations

import pytest

from cri_shim.table import human_size, table


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        *((0, "0B"), (999, "999B"), (1000, "1kB"), (1234, "1.23kB"), (87_150_000, "87.2MB"), (2 * 10**9, "2GB")),
        *((10**18, "1EB"), (10**22, "1e+04EB")),
    ],
)
def test_sizes_are_decimal_with_three_digits(size_bytes, text):
    assert human_size(size_bytes) == text


def test_columns_are_as_wide_as_their_widest_cell_and_not_narrower_than_asked():
    rows = [("A", "B"), ("x" * 18, "y"), ("", "zz")]
    assert table(rows) == ["A" + " " * 20 + "B", "x" * 18 + "   y", " " * 21 + "zz"]
    assert table(rows[:1], 0) == ["A   B"]
    assert table([]) == []
