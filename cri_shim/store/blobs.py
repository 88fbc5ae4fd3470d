"""Documents on the disk: manifests, indexes and configs, by digest.

Their bytes were verified by whoever fetched them; they are verified again when they are read, because a disk forgets.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from cri_shim.errors import StoreDamaged
from cri_shim.store.durable import write_durably
from rootfs.digest import Digest
from rootfs.errors import RootfsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cri_shim.store.layout import Layout

_LARGEST_DOCUMENT_BYTES = 16 << 20
_RECORD = ".image.json"


class Blobs:
    """The documents below `blobs/`. Every method blocks on the disk."""

    def __init__(self, layout: Layout) -> None:
        self._root = layout.blobs

    def path(self, digest: Digest) -> Path:
        """Return where *digest* lies, or would."""
        return self._root / digest.algorithm / digest.hex

    def put(self, digest: Digest, data: bytes) -> None:
        """Keep *data*, whose digest the caller has verified.

        One that lies here is written again: whether its name was brought to the disk only its writer knows, who may
        have been told that it was not, or may not be so far.

        Raises:
            OSError: the disk refused.
        """
        write_durably(self.path(digest), data)

    def get(self, digest: Digest) -> bytes:
        """Return the bytes of *digest*.

        Raises:
            StoreDamaged: they are gone, or are not what the digest says.
        """
        path = self.path(digest)
        try:
            with path.open("rb") as file:
                data = file.read(_LARGEST_DOCUMENT_BYTES + 1)
        except OSError as error:
            raise StoreDamaged(f"{path}: {error.strerror}; pull the image again to repair it") from error
        if Digest.of(data, digest.algorithm) != digest:
            raise StoreDamaged(f"{path} does not match its digest; pull the image again to repair it")
        return data

    def put_record(self, config: Digest, record: bytes) -> None:
        """Keep an image's record beside its config, so that the index can be made anew from the disk."""
        write_durably(self.record_path(config), record)

    def remove(self, digests: tuple[Digest, ...]) -> None:
        """Forget *digests* and the records beside them; what is absent is fine."""
        for digest in digests:
            for path in (self.path(digest), self.record_path(digest)):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    def records(self) -> Iterator[Path]:
        """Return where the records of images lie."""
        for algorithm in ("sha256", "sha512"):
            yield from sorted((self._root / algorithm).glob(f"*{_RECORD}"))

    def present(self) -> tuple[Digest, ...]:
        """Return every digest that lies here; what else a crash has left in the directories is deleted."""
        return tuple(digest for algorithm in ("sha256", "sha512") for digest in self._present(algorithm))

    def _present(self, algorithm: str) -> list[Digest]:
        names = set(os.listdir(self._root / algorithm))
        found = [digest for name in names if (digest := _digest(algorithm, name)) is not None]
        kept = {self.path(digest).name for digest in found} | {self.record_path(digest).name for digest in found}
        for name in names - kept:
            with contextlib.suppress(OSError):
                os.unlink(self._root / algorithm / name)
        return found

    def record_path(self, config: Digest) -> Path:
        """Return where the record of an image lies, or would."""
        path = self.path(config)
        return path.with_name(path.name + _RECORD)


def _digest(algorithm: str, name: str) -> Digest | None:
    try:
        return Digest.parse(f"{algorithm}:{name}")
    except RootfsError:
        return None
