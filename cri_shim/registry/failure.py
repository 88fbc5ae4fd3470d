"""What a failure is called: sentences for an operator, with the peer's words bounded, escaped and without secrets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cri_shim.errors import RegistryUnavailable, ShimError, Unauthenticated
from cri_shim.oci.shown import escaped, shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cri_shim.auth.credential import Credential

PEER_TEXT = 200  # characters of a peer's own words in a sentence
ERROR_BODY_BYTES = 64 << 10  # what is read of the body of an error
SHORTEST_SECRET = 4  # characters; shorter ones would black out ordinary words


class HostFailed(RegistryUnavailable):
    """One host could not be asked, or answered as no registry should.

    Attributes:
        kind: "refused", "reset", "short", "dns", "certificate", "tls", "timeout", "silent", "stalled", "protocol",
            "address", "redirect", "range", "status".
        again: Whether the same request may work on the same host in a moment.
        after_seconds: When the host said so, how long to wait; else None.
        busy: It was 429: everyone should leave the host alone for a while.
        refused: The credentials that the registry itself refused before it failed. Never shown.
    """

    def __init__(
        self,
        sentence: str,
        kind: str = "",
        *,
        again: bool = False,
        after_seconds: float | None = None,
        busy: bool = False,
    ) -> None:
        super().__init__(sentence)
        self.kind = kind
        self.again = again
        self.after_seconds = after_seconds
        self.busy = busy
        self.refused: tuple[Credential, ...] = ()


class RefusedAbroad(Unauthenticated):
    """A host that we were sent to wants credentials, which are not shown there."""


class Refused(ShimError):
    """Something that was asked of us is not done: an address, a redirect, a realm."""


def without(text: str, secrets: Iterable[str]) -> str:
    """Return *text* with every one of *secrets* replaced; done before cutting, so that no half of one stays."""
    for secret in sorted({one for one in secrets if len(one) >= SHORTEST_SECRET}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def diagnosis(body: bytes, secrets: Iterable[str] = ()) -> str:
    """Return what a registry's error document says, `code: message` of its first error, or "".

    The document is that of the distribution specification, "Error Codes"; token servers use `details` or
    `error_description`. Anything else, an HTML page say, gives "".
    """
    try:
        document = json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    errors = document.get("errors")
    first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else document
    words = (first.get(key) for key in ("code", "message", "details", "error", "error_description"))
    said = dict.fromkeys(word.strip() for word in words if isinstance(word, str) and word.strip())
    text = escaped(without(": ".join(said), secrets), PEER_TEXT)[: PEER_TEXT + 3]
    return f'"{text}"' if text else ""


def quoted(body: bytes) -> str:
    """Return the first 64 bytes of a body that should not have come, escaped, in quotes."""
    return shown(body[:64].decode("latin-1"))
