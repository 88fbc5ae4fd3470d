"""Whether a text can be an image's id.

Ids are tried before names: `sha256:<64 hex>` is also a valid name with a tag, and 64 hex digits are refused as a name.
"""

from __future__ import annotations

import re
from typing import Final

# Three hex digits are the fewest that may stand for an id, as CRI-O has it.
_ID: Final = re.compile(r"(?:sha256:)?([0-9a-f]{3,64})")


def id_prefix(text: str) -> str | None:
    """Give the hex digits of *text* when it can be an id or the beginning of one, None when it cannot.

    Accepts 3 to 64 lower case hex digits, with or without `sha256:` before them; 64 of them are a whole id.
    A short text can be a name as well (`cafe`): an id that it matches goes first, and a name is the second try.
    """
    match = _ID.fullmatch(text)
    return match.group(1) if match else None


def is_whole_id(text: str) -> bool:
    """Tell whether *text* is a whole id: 64 lower case hex digits, with or without `sha256:` before them."""
    digits = id_prefix(text)
    return digits is not None and len(digits) == 64
