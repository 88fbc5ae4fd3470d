"""JSON of a peer, read so that no two readers can differ on it.

Python's decoder takes UTF-16, NaN, infinity, a key twice and any depth. This one takes UTF-8 only, finite numbers of
at most 19 digits, a key once, and a bounded depth; what it refuses is `ContentRejected`. Its messages say where, and
repeat nothing of the document, because the document may be a file of credentials.
"""

from __future__ import annotations

import json
import math
import re
from itertools import accumulate
from typing import Final

from cri_shim.errors import ContentRejected, LimitExceeded

DOCUMENT_BYTES: Final = 4 << 20
"""The largest manifest, index or config, in bytes."""
DEEPEST: Final = 100
"""How deep objects and lists may nest."""

_INTEGER: Final = re.compile(r"-?[0-9]{1,19}")
# A string that never ends runs to the end of the data: without that, each of its quotes would be tried as a beginning.
_NOT_BRACKETS: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[^\[\]{}"]+', re.DOTALL)
_STEP: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


def decode(data: bytes, limit: int = DOCUMENT_BYTES) -> object:
    """Decode *data*, at most *limit* bytes of UTF-8 JSON.

    Raises:
        LimitExceeded: the data is longer than *limit*.
        ContentRejected: it is not JSON, or is JSON that readers may take in different ways.
    """
    if len(data) > limit:
        raise LimitExceeded(f"the document is larger than {limit} bytes")
    _check_depth(data)
    try:
        text = data.decode("utf-8")
        value: object = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_constant,
        )
    except UnicodeDecodeError:
        raise ContentRejected("the document is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ContentRejected(f"the document is not JSON: line {error.lineno}, column {error.colno}") from None
    _check_surrogates(data, value)
    return value


def _check_depth(data: bytes) -> None:
    """Measure the depth before the recursive decoder sees it; only brackets outside strings count."""
    if data.count(b"[") + data.count(b"{") <= DEEPEST:
        return
    brackets = _NOT_BRACKETS.sub(b"", data)
    if max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > DEEPEST:
        raise ContentRejected(f"the document nests deeper than {DEEPEST}")


def _check_surrogates(data: bytes, value: object) -> None:
    """Refuse half a surrogate pair: it is no character, and cannot be written as UTF-8 again."""
    if not _SURROGATE.search(data):
        return
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ContentRejected("the document holds half a surrogate pair") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ContentRejected("the document has a key twice in one object")
    return value


def _integer(digits: str) -> int:
    if not _INTEGER.fullmatch(digits):
        raise ContentRejected("the document holds a number of more than 19 digits")
    return int(digits)


def _number(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ContentRejected("the document holds a number that is too large")
    return number


def _constant(_name: str) -> object:
    raise ContentRejected("the document holds NaN or an infinity, which JSON has not")
