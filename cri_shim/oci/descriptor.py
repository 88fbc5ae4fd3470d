"""A descriptor: what a document says of another piece of content (OCI image-spec, descriptor.md).

Its digest is checked before anything can use it. Inline `data` is not used: content comes from the registry, under its
digest, or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cri_shim.errors import ContentRejected
from cri_shim.oci import media
from cri_shim.oci.fields import Fields, KnownKeys
from cri_shim.oci.platforms import Platform

if TYPE_CHECKING:
    from rootfs.digest import Digest

_KEYS: Final = KnownKeys("mediaType", "digest", "size", "urls", "annotations", "platform", "data", "artifactType")
PLATFORM_KEYS: Final = KnownKeys("architecture", "os", "os.version", "os.features", "variant")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """The type, digest and size of a piece of content, with what an index entry says of it besides."""

    media_type: str
    digest: Digest
    size_bytes: int
    platform: Platform | None = None
    annotations: tuple[tuple[str, str], ...] = ()
    urls: tuple[str, ...] = ()

    @property
    def foreign(self) -> bool:
        """Whether this is a layer that its maker does not let registries distribute (`urls` say where it lies)."""
        return media.is_foreign(self.media_type)


def parse_descriptor(value: object, where: str) -> Descriptor:
    """Read one descriptor of a decoded document; *where* names it in messages.

    Raises:
        ContentRejected: a field is missing, of a wrong type or ambiguous.
        Unsupported: its digest is of an algorithm that is not served.
    """
    fields = Fields.of(value, where, _KEYS)
    digest = fields.digest("digest")
    media_type = fields.text("mediaType")
    if not media_type:
        raise ContentRejected(f"{where}.mediaType is missing")
    platform = fields.child("platform", PLATFORM_KEYS)
    return Descriptor(
        media_type=media_type,
        digest=digest,
        size_bytes=fields.size("size"),
        platform=None if platform is None else read_platform(platform),
        annotations=fields.pairs("annotations"),
        urls=fields.strings("urls"),
    )


def read_platform(fields: Fields) -> Platform:
    """Read the platform fields, which index entries and configs share, as they are written."""
    return Platform(
        os=fields.text("os"),
        architecture=fields.text("architecture"),
        variant=fields.text("variant"),
        os_version=fields.text("os.version"),
        os_features=frozenset(fields.strings("os.features")),
    )
