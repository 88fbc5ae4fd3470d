"""What a name that was asked for means: one reference, or several where a short name is looked for at registries.

Who has no rules for short names takes them as containerd does: they belong to Docker Hub.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from cri_shim.errors import Denied, NotFound, RegistryUnavailable, ShimError, Unauthenticated
from cri_shim.oci.reference import DOCKER_HUB, Reference, parse_reference, split_short

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cri_shim.auth.credential import Credential

References = Callable[[str], tuple[Reference, ...]]
# After which failures the next registry is tried. Wrong bytes and full disks are not cured by another one.
PASSED_OVER = (NotFound, Unauthenticated, Denied, RegistryUnavailable)


def plainly(text: str) -> tuple[Reference, ...]:
    """Return the one reference that *text* spells.

    Raises:
        InvalidReference: It is none.
    """
    return (parse_reference(text),)


def bound(given: Credential | None, name: str, reference: Reference) -> Credential | None:
    """Return the credential of a request as it may be used for *reference*, which *name* was found to mean.

    kubelet looks up credentials by the name that the pod has, and a short name is Docker Hub's there. So what comes
    with a short name is meant for Docker Hub, and is bound to it: an alias does not carry it elsewhere.
    """
    if given is None or given.server or split_short(name) is None or reference.registry == DOCKER_HUB:
        return given
    return replace(given, server=DOCKER_HUB)


def none_of(name: str, tries: Sequence[ShimError]) -> ShimError:
    """Return one error for a short name that no registry had.

    "Not found" only when every registry said so: one that could not be reached might have it, and one that refuses is
    what there is to do something about.
    """
    kinds = (RegistryUnavailable, Denied, Unauthenticated)
    kind = next((kind for kind in kinds if any(isinstance(one, kind) for one in tries)), NotFound)
    return kind(f"no registry that is searched has {name}: {'; '.join(map(str, tries))}")
