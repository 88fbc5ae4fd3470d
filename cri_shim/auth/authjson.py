"""The credential files of podman, skopeo, buildah and CRI-O: containers-auth.json(5).

The format is that of Docker's config.json; what differs is the lookup (containers/image: pkg/docker/config). Files are
asked in order until one has something for the image. In a file the registry's own helper goes first; then keys count
by whole components, the longest first (`reg.io/team/app`, `reg.io/team`, `reg.io`), without globs; then keys that are
URLs or another name of Docker Hub. A `.dockercfg` has keys for registries only. A file that cannot be used is passed
over with a WARNING.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from cri_shim.auth.credential import Secret
from cri_shim.auth.dockercfg import parse_config_json, parse_dockercfg
from cri_shim.auth.files import CredentialFile
from cri_shim.auth.helpers import own_helper
from cri_shim.oci.reference import DOCKER_HUB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cri_shim.auth.credential import Credential
    from cri_shim.auth.dockercfg import DockerConfig
    from cri_shim.auth.helpers import Helpers

LEGACY_NAME: Final = ".dockercfg"

_HUB: Final = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})


def auth_json_paths(
    home: str,
    runtime_dir: str = "/run/containers/0",
    config_home: str = "",
    *,
    auth_file: str = "",
    docker_config: str = "",
) -> tuple[str, ...]:
    """List where the files lie, in order.

    *runtime_dir* is `$XDG_RUNTIME_DIR/containers`, or root's directory where there is none; *config_home* is
    `$XDG_CONFIG_HOME`, *home*`/.config` when empty. *auth_file* stands for `$REGISTRY_AUTH_FILE` and takes the place of
    the first, *docker_config* for the directory `$DOCKER_CONFIG`.
    """
    return (
        auth_file or os.path.join(runtime_dir, "auth.json"),
        os.path.join(config_home or os.path.join(home, ".config"), "containers/auth.json"),
        os.path.join(docker_config or os.path.join(home, ".docker"), "config.json"),
        os.path.join(home, LEGACY_NAME),
    )


class AuthFiles:
    """Such files, in order. Safe from any thread; files are read, and helpers asked, in the caller's."""

    def __init__(
        self,
        paths: Iterable[str],
        helpers: Helpers | None = None,
        *,
        trusted_uids: frozenset[int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without *helpers* what the files say of them is passed over."""
        trusted = frozenset({0, os.geteuid()}) if trusted_uids is None else trusted_uids
        self._files = tuple(
            CredentialFile(
                path,
                parse_dockercfg if _is_legacy(path) else parse_config_json,
                trusted_uids=trusted,
                clock=clock,
            )
            for path in dict.fromkeys(paths)
        )
        self._helpers = helpers
        self._lock = threading.Lock()

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path that is looked at, in order."""
        return tuple(file.path for file in self._files)

    def lookup(self, name: str, *, kept_seconds: float = 0.0) -> tuple[Credential, ...]:
        """Give what the first file that has something has for a repository (`Reference.name`).

        *kept_seconds* is how old the answer of a helper may be.
        """
        for path, config in self._read():
            if found := self._in_file(config, name, kept_seconds, legacy=_is_legacy(path)):
                return found
        return ()

    def _read(self) -> list[tuple[str, DockerConfig]]:
        with self._lock:
            read = [(file.path, file.read()) for file in self._files]
        return [(path, config) for path, config in read if config is not None]

    def _in_file(self, config: DockerConfig, name: str, kept_seconds: float, *, legacy: bool) -> tuple[Credential, ...]:
        registry = name.partition("/")[0]
        if helper := own_helper(config, registry):
            return self._helped(helper, registry, kept_seconds)
        found = _credentials(config, name, legacy=legacy)
        if found or not config.creds_store:
            return found
        return self._helped(config.creds_store, registry, kept_seconds)

    def _helped(self, helper: str, registry: str, kept_seconds: float) -> tuple[Credential, ...]:
        found = self._helpers.ask(helper, registry, kept_seconds=kept_seconds) if self._helpers else None
        return () if found is None else (found,)


def _credentials(config: DockerConfig, name: str, *, legacy: bool) -> tuple[Credential, ...]:
    """Give the credentials under the one key that counts; none when they are empty."""
    found: dict[str, list[Credential]] = {}
    for entry in config.entries:
        found.setdefault(entry.key, []).append(entry.credential)
    registry = name.partition("/")[0]
    keys = [registry] if legacy else [*_shortened(name)]
    keys += [key for key in found if _hub(_host_in(key, legacy=legacy)) == _hub(registry)]
    chosen = next((found[key] for key in keys if key in found), [])
    return tuple(_without_nuls(credential) for credential in chosen if _is_whole(credential))


def _shortened(name: str) -> Iterator[str]:
    """Give *name*, and then again and again without its last component."""
    while name:
        yield name
        name = name.rpartition("/")[0]


def _host_in(key: str, *, legacy: bool) -> str:
    """Give the host in a key that is a URL, and in any key of the old form; else the key."""
    bare = key.removeprefix("http://").removeprefix("https://")
    return bare.partition("/")[0] if legacy or bare != key else bare


def _hub(host: str) -> str:
    return DOCKER_HUB if host in _HUB else host


def _is_whole(credential: Credential) -> bool:
    """Tell whether there is enough in it: a user without a password is what Docker leaves beside a helper."""
    return bool((credential.username and credential.password) or credential.identity_token or credential.registry_token)


def _without_nuls(credential: Credential) -> Credential:
    """Drop NULs around the password, as containers/image and Docker do."""
    password = credential.password.reveal()
    bare = password.strip("\0")
    return credential if bare == password else replace(credential, password=Secret(bare))


def _is_legacy(path: str) -> bool:
    return os.path.basename(path) == LEGACY_NAME
