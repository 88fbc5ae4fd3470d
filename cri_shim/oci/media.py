"""The media types of images, and what each is.

Types from the OCI image specification (media-types.md) and Docker's image manifest v2 schema 2. What a layer's type
says of its compression is not used, layers are recognised by their first bytes; `must_be_plain` is the one exception.
"""

from __future__ import annotations

from typing import Final

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_FOREIGN_LAYER: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_FOREIGN_LAYER: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar"
OCTET_STREAM: Final = "application/octet-stream"
"""What old registries and tools call a config."""

ACCEPTED: Final = (OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST)
"""What a manifest request asks for, in its Accept header."""

_INDEXES: Final = frozenset({OCI_INDEX, DOCKER_INDEX})
_MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_CONFIGS: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG, OCTET_STREAM})
_SCHEMA_1: Final = "application/vnd.docker.distribution.manifest.v1+"
_FOREIGN: Final = frozenset(
    {
        OCI_FOREIGN_LAYER,
        f"{OCI_FOREIGN_LAYER}+gzip",
        f"{OCI_FOREIGN_LAYER}+zstd",
        DOCKER_FOREIGN_LAYER,
        f"{DOCKER_FOREIGN_LAYER}.gzip",
        f"{DOCKER_FOREIGN_LAYER}.zstd",
    }
)
_LAYERS: Final = _FOREIGN | {
    OCI_LAYER,
    f"{OCI_LAYER}+gzip",
    f"{OCI_LAYER}+zstd",
    DOCKER_LAYER,
    f"{DOCKER_LAYER}.gzip",
    f"{DOCKER_LAYER}.zstd",
}


def bare(media_type: str) -> str:
    """Give the type of a Content-Type header alone: lower case, without parameters."""
    return media_type.partition(";")[0].strip().lower()


def is_index(media_type: str) -> bool:
    """Tell whether this is an OCI index or a Docker manifest list."""
    return media_type in _INDEXES


def is_manifest(media_type: str) -> bool:
    """Tell whether this is the manifest of one image."""
    return media_type in _MANIFESTS


def is_schema_1(media_type: str) -> bool:
    """Tell whether this is Docker's manifest schema 1, signed or not."""
    return media_type.startswith(_SCHEMA_1)


def is_config(media_type: str) -> bool:
    """Tell whether an image's config may have this type."""
    return media_type in _CONFIGS


def is_layer(media_type: str) -> bool:
    """Tell whether this is a layer that can be unpacked, foreign ones included."""
    return media_type in _LAYERS


def is_foreign(media_type: str) -> bool:
    """Tell whether this is a layer that its maker does not let registries distribute."""
    return media_type in _FOREIGN


def must_be_plain(media_type: str) -> bool:
    """Tell whether the type promises a tar that is not compressed. Docker's own type for that is used for both."""
    return media_type in {OCI_LAYER, OCI_FOREIGN_LAYER}


def is_encrypted(media_type: str) -> bool:
    """Tell whether this is an encrypted layer (ocicrypt)."""
    return media_type.endswith("+encrypted")
