"""Values to messages and back. The spelling of ids, which differs by runtime, is in this file and nowhere else.

kubelet compares `Image.id` with the image ids of the runtime's containers and removes what it takes for unused: an id
spelled otherwise than the runtime spells it loses images that are in use.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cri_shim.auth.credential import from_auth_config
from cri_shim.errors import InvalidReference
from cri_shim.oci.config import user_of
from cri_shim.oci.reference import parse_reference
from cri_shim.pb import api_pb2
from cri_shim.store.image import LONGEST_TEXTS_BYTES, fitting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cri_shim.auth.credential import Credential
    from cri_shim.config.schema import Runtime
    from cri_shim.store.image import Image, Usage
    from rootfs.digest import Digest


class Spelling:
    """How images of this node are told to its clients: ids as *runtime* has them, pinned by the patterns *pinned*."""

    def __init__(self, runtime: Runtime, pinned: Iterable[str] = ()) -> None:
        self._prefixed = runtime != "cri-o"
        patterns = "|".join(_pattern(text) for text in pinned)
        self._pinned = re.compile(patterns, re.IGNORECASE) if patterns else None

    def id(self, digest: Digest) -> str:
        """Spell the id of an image: `sha256:<hex>` for containerd, the bare hex for CRI-O."""
        return str(digest) if self._prefixed else digest.hex

    def image(self, image: Image) -> api_pb2.Image:
        """Return the message about *image*; equal for equal images, however they were asked for."""
        message = api_pb2.Image(
            id=self.id(image.id),
            repo_tags=image.tags,
            repo_digests=image.digests,
            size=max(1, image.size_bytes),  # clients take 0 for an error
            pinned=self.pinned(image),
        )
        _put_user(message, image.user)
        if image.annotations:
            message.spec.annotations.update({valid(key): valid(text) for key, text in fitting(image.annotations)})
        return message

    def pinned(self, image: Image) -> bool:
        """Tell whether the node asks to keep *image*: one of its names fits one of the patterns."""
        pattern = self._pinned
        return pattern is not None and any(pattern.fullmatch(name) for name in image.names)


def credential(request: api_pb2.PullImageRequest) -> Credential | None:
    """Return the credential that came with a pull, None when there is none.

    Raises:
        InvalidRequest: it cannot be decoded; the message repeats nothing of it.
    """
    if not request.HasField("auth"):
        return None
    auth = request.auth
    return from_auth_config(
        auth.username, auth.password, auth.auth, auth.server_address, auth.identity_token, auth.registry_token
    )


def filesystem(mountpoint: str, usage: Usage, now_ns: int) -> api_pb2.FilesystemUsage:
    """Return the message about the filesystem of the images. *now_ns* is of the wall clock."""
    return api_pb2.FilesystemUsage(
        timestamp=max(1, now_ns),
        fs_id=api_pb2.FilesystemIdentifier(mountpoint=mountpoint),
        used_bytes=api_pb2.UInt64Value(value=max(0, usage.used_bytes)),
        inodes_used=api_pb2.UInt64Value(value=max(0, usage.inodes)),
    )


def valid(text: str) -> str:
    """Return *text* as protobuf takes it: one lone surrogate would fail the whole list of images."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _put_user(message: api_pb2.Image, user: str) -> None:
    uid_or_name = user_of(user)
    if isinstance(uid_or_name, int):
        message.uid.value = uid_or_name
    else:
        message.username = valid(uid_or_name[:LONGEST_TEXTS_BYTES])


def _pattern(text: str) -> str:
    """A name without a star is a reference, so that `nginx` pins docker.io/library/nginx:latest."""
    if "*" in text:
        return ".*".join(re.escape(part) for part in text.split("*"))
    try:
        return re.escape(str(parse_reference(text)))
    except InvalidReference:
        return re.escape(text)
