"""Where everything lies below the root, and the version of that.

The layers lie in the containers-storage overlay layout, so that the root can serve as an additional image store;
everything of ours stands beside it under other names. The root is 0700: layers hold setuid files.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.errors import ConfigError
from cri_shim.store.durable import sync_directory
from cri_shim.store.format import bring_up_to_date

if TYPE_CHECKING:
    from pathlib import Path

_DIRECTORIES = ("overlay", "overlay/l", "blobs", "blobs/sha256", "blobs/sha512", "ingest", "staging", "trash")


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths below one root."""

    root: Path

    @property
    def index(self) -> Path:
        """The SQLite file."""
        return self.root / "index.db"

    @property
    def key(self) -> Path:
        """The key of the hashes that stand for credentials in the index; made when it is first needed."""
        return self.root / "credentials.key"

    @property
    def ingest(self) -> Path:
        """Where blobs arrive."""
        return self.root / "ingest"

    @property
    def overlay(self) -> Path:
        """Where layers lie."""
        return self.root / "overlay"

    @property
    def blobs(self) -> Path:
        """Where documents lie, by algorithm and digest."""
        return self.root / "blobs"

    def prepare(self) -> None:
        """Bring what is there to the newest format, and make what is missing.

        Raises:
            ConfigError: the root cannot be written, or is not one that this cri-shim can use.
        """
        try:
            self._make(self.root)
            os.chmod(self.root, 0o700)
            bring_up_to_date(self.root)
            for name in _DIRECTORIES:
                self._make(self.root / name)
        except OSError as error:
            raise ConfigError(
                f"root {self.root} cannot be used: {error.strerror} ({error.filename}); "
                "give a directory that this user can write, with --root or `root` in the configuration"
            ) from error

    def _make(self, path: Path) -> None:
        """Make a directory that a power cut does not take away with what was put into it."""
        if not path.is_dir():
            path.mkdir(mode=0o700, parents=path == self.root, exist_ok=True)
            sync_directory(path.parent)
