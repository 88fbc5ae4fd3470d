"""What a name that was asked for means: one reference, or several where a short name is looked for at registries.

Who has no rules for short names takes them as containerd does: they belong to Docker Hub.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cri_shim.errors import Denied, NotFound, RegistryUnavailable, ShimError, Unauthenticated
from cri_shim.oci.reference import Reference, parse_reference

if TYPE_CHECKING:
    from collections.abc import Sequence

References = Callable[[str], tuple[Reference, ...]]
# After which failures the next registry is tried. Wrong bytes and full disks are not cured by another one.
PASSED_OVER = (NotFound, Unauthenticated, Denied, RegistryUnavailable)


def plainly(text: str) -> tuple[Reference, ...]:
    """Return the one reference that *text* spells.

    Raises:
        InvalidReference: It is none.
    """
    return (parse_reference(text),)


def none_of(name: str, tries: Sequence[ShimError]) -> ShimError:
    """Return one error for a short name that no registry had.

    "Not found" only when every registry said so: one that could not be reached might have it, and one that refuses is
    what there is to do something about.
    """
    kinds = (RegistryUnavailable, Denied, Unauthenticated)
    kind = next((kind for kind in kinds if any(isinstance(one, kind) for one in tries)), NotFound)
    return kind(f"no registry that is searched has {name}: {'; '.join(map(str, tries))}")
