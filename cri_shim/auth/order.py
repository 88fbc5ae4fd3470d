"""The credentials of one pull, in the order in which they are tried."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.auth.credential import ANONYMOUS
from cri_shim.auth.servers import is_for

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cri_shim.auth.credential import Credential
    from cri_shim.oci.reference import Reference


def listed(
    given: Credential | None, found: Iterable[Credential], reference: Reference, *, anonymous: bool = True
) -> tuple[Credential, ...]:
    """List what to try for *reference*: what the request gave, what was *found* on the node, nothing at all.

    A credential that is bound to another server is left out. One that holds the same secrets as one before it is left
    out too, and the first keeps its source. An entry of a keyring without user and password is an anonymous try at its
    place. With *anonymous* off and nothing given and found the list is empty.
    """
    offered = [*([given] if given else ()), *found, *([ANONYMOUS] if anonymous else ())]
    chosen: list[Credential] = []
    for credential in offered:
        fits = is_for(credential.server, reference.registry)
        if fits and not any(credential.same_as(earlier) for earlier in chosen):
            chosen.append(credential)
    return tuple(chosen)
