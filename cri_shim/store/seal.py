"""The seal of a layer: `layer.json` in its directory, enough to know the layer again without the index.

It is written before the layer gets its name and never changed. The paths of implied directories, which can be many,
lie in a file of their own beside it, `implied`: it is read only when an image is put together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from cri_shim.errors import StoreDamaged
from cri_shim.store.catalog import Layer
from cri_shim.store.image import Usage
from cri_shim.store.provenance import Proof
from rootfs.digest import Digest
from rootfs.errors import RootfsError

if TYPE_CHECKING:
    from rootfs.apply import Applied

VERSION = 1


@dataclass(frozen=True, slots=True)
class Seal:
    """What a layer directory holds.

    *implied* counts the directories without an entry of their own. *source* is the plain layer that a form was made
    of, else empty. *tar_split* is the digest of the record of the tar beside the layer, of *tar_split_bytes*; empty
    where there is none.
    """

    name: str
    diff_id: Digest
    form: str
    usage: Usage
    ghosts: bool
    implied: int
    diff_size_bytes: int = 0
    blob: str = ""
    blob_size_bytes: int = 0
    compression: str = ""
    entries: int = 0
    skipped: tuple[tuple[str, int], ...] = ()
    source: str = ""
    tar_split: str = ""
    tar_split_bytes: int = 0

    @property
    def layer(self) -> Layer:
        """The row of the index for this layer."""
        return Layer(self.name, self.diff_id, self.form, self.usage, self.ghosts, self.implied)

    @property
    def proof(self) -> Proof | None:
        """What the arrival of this layer has proved; a form proves nothing."""
        return Proof(Digest.parse(self.blob), self.diff_id) if self.form == "plain" and self.blob else None


class _Fields(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    name: str
    diff_id: str
    form: str
    used_bytes: int
    inodes: int
    ghosts: bool
    implied: int
    diff_size_bytes: int
    blob: str
    blob_size_bytes: int
    compression: str
    entries: int
    skipped: list[tuple[str, int]]
    source: str
    tar_split: str = ""
    tar_split_bytes: int = 0


def seal_of(applied: Applied) -> Seal:
    """Return the seal of a plain layer that was just unpacked."""
    record = applied.record
    digest = None if record is None else record.digest
    size = 0 if record is None else record.size_bytes
    return Seal(
        name=applied.diff_id.hex,
        diff_id=applied.diff_id,
        form="plain",
        usage=Usage(applied.usage_bytes + size, applied.inodes + (digest is not None)),
        ghosts=applied.whiteouts > 0 or bool(applied.opaque),
        implied=len(applied.implied),
        diff_size_bytes=applied.diff_size_bytes,
        blob=str(applied.blob),
        blob_size_bytes=applied.blob_size_bytes,
        compression=applied.compression,
        entries=applied.entries,
        skipped=applied.skipped,
        tar_split="" if digest is None else str(digest),
        tar_split_bytes=size,
    )


def encode_seal(seal: Seal) -> bytes:
    """Return the bytes of `layer.json`."""
    return msgspec.json.encode(
        _Fields(
            version=VERSION,
            name=seal.name,
            diff_id=str(seal.diff_id),
            form=seal.form,
            used_bytes=seal.usage.used_bytes,
            inodes=seal.usage.inodes,
            ghosts=seal.ghosts,
            implied=seal.implied,
            diff_size_bytes=seal.diff_size_bytes,
            blob=seal.blob,
            blob_size_bytes=seal.blob_size_bytes,
            compression=seal.compression,
            entries=seal.entries,
            skipped=list(seal.skipped),
            source=seal.source,
            tar_split=seal.tar_split,
            tar_split_bytes=seal.tar_split_bytes,
        )
    )


def decode_seal(data: bytes) -> Seal:
    """Read `layer.json` back.

    Raises:
        StoreDamaged: it is not what `encode_seal` wrote.
    """
    try:
        fields = msgspec.json.decode(data, type=_Fields)
        diff_id = Digest.parse(fields.diff_id)
    except (msgspec.DecodeError, RootfsError) as error:
        raise StoreDamaged(f"the seal of a layer cannot be read: {error}") from error
    return Seal(
        name=fields.name,
        diff_id=diff_id,
        form=fields.form,
        usage=Usage(fields.used_bytes, fields.inodes),
        ghosts=fields.ghosts,
        implied=fields.implied,
        diff_size_bytes=fields.diff_size_bytes,
        blob=fields.blob,
        blob_size_bytes=fields.blob_size_bytes,
        compression=fields.compression,
        entries=fields.entries,
        skipped=tuple((what, count) for what, count in fields.skipped),
        source=fields.source,
        tar_split=fields.tar_split,
        tar_split_bytes=fields.tar_split_bytes,
    )


def encode_implied(paths: tuple[bytes, ...]) -> bytes:
    """Return the bytes of `implied`: each path, ended by a zero byte, which no path can hold."""
    return b"".join(path + b"\0" for path in paths)


def decode_implied(data: bytes) -> tuple[bytes, ...]:
    """Read `implied` back."""
    return tuple(data.split(b"\0")[:-1])
