"""Which credentials fit an image, in which order (kubernetes: pkg/credentialprovider/keyring.go).

The index is sorted as bytes and then turned round, so that a longer path goes before a shorter one on the same host and
globs go last. All that match are returned. Only when none does, an image of Docker Hub gets what stands under
`index.docker.io`.

One difference, on purpose: the kubelet takes `localhost/app` for an image of Docker Hub and would hand Hub's
credentials to a registry on this node; here Hub's credentials go to Docker Hub.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri_shim.auth.hostkey import Pattern, index_key
from cri_shim.oci.reference import DOCKER_HUB

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cri_shim.auth.credential import Credential
    from cri_shim.auth.dockercfg import Entry

_HUB_KEY: Final = "index.docker.io"


class Keyring:
    """Entries of credential files, made ready for lookup. It does not change."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        index: dict[str, list[Credential]] = {}
        for entry in entries:
            key = index_key(entry.key)
            if key is not None:
                index.setdefault(key, []).append(entry.credential)
        self._rows = tuple((Pattern.of(key), tuple(index[key])) for key in sorted(index, key=_as_bytes, reverse=True))
        self._hub = tuple(index.get(_HUB_KEY, ()))

    def __len__(self) -> int:
        return sum(len(credentials) for _, credentials in self._rows)

    def lookup(self, name: str) -> tuple[Credential, ...]:
        """Give the credentials for a repository, best first; *name* is `Reference.name`, without tag and digest."""
        wanted = Pattern.of(name)
        if wanted is None:
            return ()
        matching = (
            credentials for pattern, credentials in self._rows if pattern is not None and pattern.matches(wanted)
        )
        found = tuple(credential for credentials in matching for credential in credentials)
        return found or (self._hub if is_docker_hub(name) else ())


def is_docker_hub(name: str) -> bool:
    """Tell whether a repository belongs to Docker Hub: its name says so, or names no registry at all."""
    first, slash, _ = name.partition("/")
    if first in {DOCKER_HUB, _HUB_KEY}:
        return True
    is_registry = "." in first or ":" in first or first == "localhost" or first.lower() != first
    return bool(first) and (not slash or not is_registry)


def _as_bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")
