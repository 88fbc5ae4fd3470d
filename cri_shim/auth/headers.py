"""`HttpHeaders` of a config.json: which of them may go along with a request to a registry.

Docker hands headers named `X-Meta-...` on to every registry. Any other goes along only with an image for which the same
file has a credential or a helper: it may be a secret, and anybody can name a registry in a pod. What the client itself
must decide is never taken from a file.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST: Final = 32
"""Headers of one file."""

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_VALUE: Final = re.compile(r"[\t\x20-\x7e]{0,8192}")
_FOR_ALL: Final = "x-meta-"
_CONNECTION: Final = frozenset(
    ("connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade")
)
_SECRET: Final = frozenset(("authorization", "cookie", "proxy-authorization", "proxy-connection"))
_QUESTION: Final = frozenset(("accept", "accept-encoding", "content-type", "range", "user-agent"))
_CONDITION: Final = "if-"


def sendable(pairs: Iterable[tuple[str, str]], notes: list[str]) -> list[tuple[str, str]]:
    """Give the headers that may be sent; a note says of each other why not, by its place."""
    kept: list[tuple[str, str]] = []
    for place, (name, value) in enumerate(pairs, start=1):
        reason = _fault(name, value) or _surplus(name, kept)
        if reason:
            notes.append(f"header {place} of HttpHeaders is left out: {reason}")
        else:
            kept.append((name, value))
    return kept


def is_for_all(name: str) -> bool:
    """Tell whether a header goes to every registry."""
    return name.lower().startswith(_FOR_ALL)


def _fault(name: str, value: str) -> str:
    if not _NAME.fullmatch(name):
        return "its name is none"
    if _is_ours(name.lower()):
        return "it is not for a file to set"
    if not _VALUE.fullmatch(value):
        return "its value is longer than 8192 characters, or has some that do not belong in a header"
    return ""


def _is_ours(name: str) -> bool:
    return name in _CONNECTION | _SECRET | _QUESTION or name.startswith(_CONDITION)


def _surplus(name: str, kept: list[tuple[str, str]]) -> str:
    if any(name.lower() == other.lower() for other, _ in kept):
        return "it stands there before"
    return f"there are {MOST} before it" if len(kept) >= MOST else ""
