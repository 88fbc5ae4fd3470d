"""The `auth` text of Docker's files and of CRI's AuthConfig: base64 of `user:password`.

The kubelet's rules (kubernetes: pkg/credentialprovider/config.go), which are Go's: the standard alphabet; with padding
when the text ends in `=`, else without; line ends are skipped, other blanks are not. Nothing of the text, encoded or
decoded, is ever repeated in an error.
"""

from __future__ import annotations

import base64
import re
from typing import Final

_ALPHABET: Final = re.compile(r"[A-Za-z0-9+/]*")


def decode_auth(text: str) -> tuple[str, str]:
    """Give the user and the password in *text*; the password may be empty and may hold colons.

    Raises:
        ValueError: it is not base64, not UTF-8, or has no colon. The message repeats nothing of it.
    """
    try:
        decoded = _decode(text).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("auth is not base64 of UTF-8 text") from None
    user, colon, password = decoded.partition(":")
    if not colon:
        raise ValueError("auth is not base64 of user:password")
    return user, password


def _decode(text: str) -> bytes:
    padded = text.strip().endswith("=")
    digits = text.replace("\r", "").replace("\n", "")
    body = digits.rstrip("=") if padded else digits
    padding = "=" * (-len(body) % 4)
    if not _ALPHABET.fullmatch(body) or len(padding) == 3 or (padded and body + padding != digits):
        raise ValueError("auth is not base64")
    return base64.b64decode(body + padding)
