"""The image config: what platform an image is for, what its layers unpack to, whom it runs as (OCI config.md).

Only what an image service answers with is read. Entrypoint, volumes and working directory are the runtime's affair, and
nothing here opens a path that a config names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cri_shim.errors import ContentRejected, Unsupported
from cri_shim.oci.descriptor import PLATFORM_KEYS, read_platform
from cri_shim.oci.fields import Fields, KnownKeys, parse_digest
from cri_shim.oci.strictjson import decode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cri_shim.oci.platforms import Platform
    from rootfs.digest import Digest

HIGHEST_UID: Final = 2**63 - 1
"""What fits the CRI's Int64Value."""

_KEYS: Final = KnownKeys("created", "config", "rootfs", *PLATFORM_KEYS.names)
_ROOTFS_KEYS: Final = KnownKeys("type", "diff_ids")
_CONTAINER_KEYS: Final = KnownKeys("User", "Labels")
_UID: Final = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """An image config. `platform` is as written, `user` the whole `config.User`, `created` RFC 3339 text or ""."""

    platform: Platform
    diff_ids: tuple[Digest, ...]
    user: str = ""
    created: str = ""
    labels: tuple[tuple[str, str], ...] = ()


def parse_config(data: bytes) -> ImageConfig:
    """Read an image config.

    Raises:
        ContentRejected: it is not one, or can be read in two ways.
        Unsupported: a diff ID is of an algorithm that is not served.
        LimitExceeded: it is larger than 4 MiB.
    """
    fields = Fields.of(decode(data), "config", _KEYS)
    container = fields.child("config", _CONTAINER_KEYS)
    return ImageConfig(
        platform=read_platform(fields),
        diff_ids=_diff_ids(fields),
        user=container.text("User") if container else "",
        created=fields.text("created"),
        labels=container.pairs("Labels") if container else (),
    )


def _diff_ids(fields: Fields) -> tuple[Digest, ...]:
    rootfs = fields.child("rootfs", _ROOTFS_KEYS)
    if rootfs is None:
        raise ContentRejected("config.rootfs is missing: this is not the config of an image")
    if rootfs.text("type") not in {"layers", ""}:
        raise ContentRejected('config.rootfs.type is not "layers"')
    diff_ids = tuple(
        parse_digest(text, f"config.rootfs.diff_ids[{place}]") for place, text in enumerate(rootfs.strings("diff_ids"))
    )
    check_names_something(diff_ids, "config.rootfs.diff_ids")
    return diff_ids


def check_names_something(digests: Iterable[Digest], where: str) -> None:
    """Refuse a digest that would name a directory or an image and is not of sha256: runtimes know no other.

    Raises:
        Unsupported: there is one.
    """
    for digest in digests:
        if digest.algorithm != "sha256":
            raise Unsupported(f"{where} has a {digest.algorithm} digest; images and layers are named by sha256 only")


def user_of(user: str) -> int | str:
    """Give the user that `config.User` names, without its group: a number is a uid, everything else a user name.

    A number is 1 to 19 ASCII digits and at most 2**63 - 1; "" when no user is named. The kubelet's runAsNonRoot verdict
    stands on this, so no sign, blank, underscore or digit of another script makes a number.
    """
    name = user.partition(":")[0]
    if _UID.fullmatch(name) and int(name) <= HIGHEST_UID:
        return int(name)
    return name
