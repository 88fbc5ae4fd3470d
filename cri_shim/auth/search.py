"""The kubelet's search paths for credential files, and the keyring that they make.

`config.json` is looked for in the kubelet's root directory, its working directory, `$HOME/.docker` and `/.docker`;
`.dockercfg` in the first two, `$HOME` and `/`, and only when no `config.json` was good. The first good file is all
there is, unless `merge` is on: then all good files add up, in this order. The directories are the kubelet's and not
ours, so they are given (kubernetes: pkg/credentialprovider/config.go).
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cri_shim.auth.dockercfg import DockerConfig, parse_config_json, parse_dockercfg
from cri_shim.auth.files import CredentialFile
from cri_shim.auth.keyring import Keyring

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class FileInUse:
    """One file that counts: where it lies, what it says, and the keyring of it alone."""

    path: str
    config: DockerConfig
    keyring: Keyring


@dataclass(frozen=True, slots=True)
class InUse:
    """The files that count, in order, and the keyring that they make together."""

    files: tuple[FileInUse, ...] = ()
    keyring: Keyring = field(default_factory=Keyring)


class SearchPaths:
    """The credential files of one node. Its methods read the disk; any thread may call them."""

    def __init__(
        self,
        kubelet_root_dir: str = "/var/lib/kubelet",
        kubelet_cwd: str = "/",
        home: str | None = None,
        *,
        merge: bool = False,
        filesystem_root: str = "/",
        trusted_uids: frozenset[int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Anchor the paths: *home* is the kubelet's HOME, None or "" where it has none (systemd's usual case)."""
        trusted = frozenset({0, os.geteuid()}) if trusted_uids is None else trusted_uids
        under_home = home or kubelet_cwd
        docker = [os.path.join(place, ".docker") for place in (under_home, filesystem_root)]
        new = [kubelet_root_dir, kubelet_cwd, *docker]
        old = [kubelet_root_dir, kubelet_cwd, under_home, filesystem_root]

        def files(
            places: list[str], name: str, parse: Callable[[bytes, str], DockerConfig]
        ) -> tuple[CredentialFile, ...]:
            paths = dict.fromkeys(os.path.normpath(os.path.join(kubelet_cwd, place, name)) for place in places)
            return tuple(CredentialFile(path, parse, trusted_uids=trusted, clock=clock) for path in paths)

        self._new = files(new, "config.json", parse_config_json)
        self._old = files(old, ".dockercfg", parse_dockercfg)
        self._merge = merge
        self._lock = threading.Lock()
        self._known = InUse()

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path that is looked at, in order."""
        return tuple(file.path for file in (*self._new, *self._old))

    def keyring(self) -> Keyring:
        """Give the keyring of the files as they stand now; the same one until one of them changes."""
        return self.current().keyring

    def current(self) -> InUse:
        """Give the files that count as they stand now; the same value until one of them changes."""
        with self._lock:
            found = self._in_use()
            if [id(config) for _, config in found] != [id(file.config) for file in self._known.files]:
                self._known = _made_ready(found)
            return self._known

    def _in_use(self) -> list[tuple[CredentialFile, DockerConfig]]:
        everything = (*self._new, *self._old)
        if self._merge:
            read = ((file, file.read()) for file in everything)
            return [(file, config) for file, config in read if config is not None]
        for place, file in enumerate(everything):
            if (config := file.read()) is not None:
                _tell_shadowed(file, everything[place + 1 :])
                return [(file, config)]
        return []


def _made_ready(found: list[tuple[CredentialFile, DockerConfig]]) -> InUse:
    files = tuple(FileInUse(file.path, config, Keyring(config.entries)) for file, config in found)
    if len(files) == 1:
        return InUse(files, files[0].keyring)
    return InUse(files, Keyring(entry for file in files for entry in file.config.entries))


def _tell_shadowed(winner: CredentialFile, others: tuple[CredentialFile, ...]) -> None:
    """Say of each file behind *winner* that it does not count; another path to the same file is no news."""
    used = winner.state()
    for file in others:
        if file.state() != used:
            file.warn_shadowed(winner.path)
