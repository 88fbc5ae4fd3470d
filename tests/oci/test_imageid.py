"""What can be an image id."""

from __future__ import annotations

import pytest

from cri_shim.oci.imageid import id_prefix, is_whole_id

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "prefix", "whole"),
    [
        (HEX, HEX, True),
        (f"sha256:{HEX}", HEX, True),
        ("abc", "abc", False),
        ("cafe", "cafe", False),
        ("123", "123", False),
        (HEX[:13], HEX[:13], False),
        (f"sha256:{HEX[:13]}", HEX[:13], False),
        ("ab", None, False),
        ("", None, False),
        ("sha256:", None, False),
        ("sha256:ab", None, False),
        (HEX + "0", None, False),
        (HEX.upper(), None, False),
        (f"SHA256:{HEX}", None, False),
        (f"sha512:{HEX}", None, False),
        (f"sha256:sha256:{HEX}", None, False),
        ("abg", None, False),
        ("abc\n", None, False),
        (" abc", None, False),
        ("a/c", None, False),
        ("\u0661\u0661\u0661", None, False),
    ],
)
def test_ids(text: str, prefix: str | None, *, whole: bool) -> None:
    assert id_prefix(text) == prefix
    assert is_whole_id(text) is whole
