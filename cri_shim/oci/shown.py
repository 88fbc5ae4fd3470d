"""How text of a peer is quoted in a message: printable, on one line, and cut.

A name of three megabytes or one with terminal controls must not reach a log line or a gRPC status as it is.
"""

from __future__ import annotations

from typing import Final

SHOWN_CHARACTERS: Final = 256
"""How much of a peer's text a message repeats, in characters before escaping."""


def shown(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """Quote *text* for a message: at most *limit* characters of it, everything but printable ASCII escaped."""
    return f'"{escaped(text[:limit], limit)}"' + ("..." if len(text) > limit else "")


def escaped(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """Do as `shown` does, without the quotes."""
    clean = text[:limit].encode("ascii", "backslashreplace").decode("ascii")
    letters = (letter if " " <= letter <= "~" else f"\\x{ord(letter):02x}" for letter in clean)
    return "".join(letters) + ("..." if len(text) > limit else "")
