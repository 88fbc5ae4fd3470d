"""What a walk over hosts and credentials is called that led nowhere: one error, with every try in its sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.errors import (
    ConfigError,
    ContentRejected,
    Denied,
    LimitExceeded,
    NotFound,
    ShimError,
    Unauthenticated,
)
from cri_shim.registry.failure import HostFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

TRIES_SHOWN = 12
REFUSED = (Unauthenticated, Denied)
FAILED = (NotFound, HostFailed, ContentRejected, LimitExceeded, ConfigError)


def nobody(*, avoid: frozenset[str], only: frozenset[str] | None) -> ShimError:
    """Return the error for a walk without hosts."""
    if avoid:
        return ContentRejected(f"every host that has it sent wrong bytes ({', '.join(sorted(avoid))})")
    if only is not None:
        return NotFound("none of the hosts that delivered it is configured any more")
    return ConfigError("no host is configured that may be asked (see capabilities in hosts.toml, and no_fallback)")


def failed(tries: Sequence[ShimError]) -> ShimError:
    """Return one error for all tries, of the class of the last host's answer; a 403 there goes before a 401."""
    last = tries[-1]
    if isinstance(last, Unauthenticated):
        last = next((one for one in reversed(tries) if isinstance(one, Denied)), last)
    said = list(dict.fromkeys(one.sentence for one in tries))
    if len(said) > TRIES_SHOWN:
        said = [*said[: TRIES_SHOWN - 1], f"{len(said) - TRIES_SHOWN} more", said[-1]]
    return _of_kind(last, f"{'; '.join(said)}{_advice(last)}")


def _of_kind(error: ShimError, sentence: str) -> ShimError:
    if isinstance(error, HostFailed):
        return HostFailed(sentence, error.kind, again=error.again, after_seconds=error.after_seconds)
    return type(error)(sentence)


def _advice(error: ShimError) -> str:
    if isinstance(error, Unauthenticated):
        return "; does the image exist, and has the pod an imagePullSecret for it?"
    return ""
