"""What an answer that is not the one wanted is called: status in, error out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.errors import Denied, NotFound, ShimError, Unauthenticated
from cri_shim.registry.failure import ERROR_BODY_BYTES, HostFailed, diagnosis
from cri_shim.registry.retry import retry_after

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cri_shim.auth.credential import Credential
    from cri_shim.registry.reply import Reply

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


def named(credential: Credential) -> str:
    """Say which credential was used, by its source only."""
    if credential.anonymous:
        return "without credentials"
    return f"with the credentials of {'the request' if credential.source == 'request' else credential.source}"


def temporary(reply: Reply, sentence: str, now: float) -> HostFailed | None:
    """Return the failure for a status that may pass by itself, else None. *now* is the time of day in seconds."""
    if reply.status not in PASSING and reply.status < 500:
        return None
    after = retry_after(reply.get("retry-after"), now) if reply.status in (429, 503) else None
    busy = reply.status == 429 or after is not None
    return HostFailed(sentence, "status", again=reply.status in PASSING, after_seconds=after, busy=busy)


def refusal(reply: Reply, what: str, credential: Credential, secrets: Iterable[str], now: float) -> ShimError:
    """Return the error for an answer that is no success; reads at most 64 KiB of it and closes it."""
    with reply:
        said = ""
        if reply.status >= 400:
            said = diagnosis(_start(reply), secrets)
    sentence = f"{reply.url.authority} answered {reply.status}{said and f' ({said})'} to {what} {named(credential)}"
    passing = temporary(reply, sentence, now)
    if passing is not None:
        return passing
    kinds: dict[int, type[ShimError]] = {401: Unauthenticated, 403: Denied, 404: NotFound}
    return kinds[reply.status](sentence) if reply.status in kinds else HostFailed(sentence, "status")


def _start(reply: Reply) -> bytes:
    try:
        return reply.start(ERROR_BODY_BYTES)
    except HostFailed:
        return b""
