"""What a log line may say about a request. Messages are never formatted: protobuf would print the secrets in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.log import printable
from cri_shim.pb import api_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

_LONGEST_NAME = 256
_SECRETS = ("password", "auth", "identity_token", "registry_token")


def describe(request: Message | None) -> dict[str, object]:
    """Return the particulars of a request: which image, for which pod, which kinds of credentials; no secret.

    None is a request that could not be decoded: nothing is known of it.
    """
    said: dict[str, object] = {}
    spec = _spec_of(request)
    if spec is not None and spec.image:
        said["image"] = shown(spec.image)
    if isinstance(request, api_pb2.PullImageRequest):
        said |= _of_pull(request)
    return said


def shown(name: str) -> str:
    """Return the name of an image for a line: printable, and never as long as a client may make it."""
    return printable(name, _LONGEST_NAME)


def _spec_of(request: Message | None) -> api_pb2.ImageSpec | None:
    if isinstance(request, api_pb2.ListImagesRequest | api_pb2.StreamImagesRequest):
        return request.filter.image
    if isinstance(request, api_pb2.ImageStatusRequest | api_pb2.PullImageRequest | api_pb2.RemoveImageRequest):
        return request.image
    return None


def _of_pull(request: api_pb2.PullImageRequest) -> dict[str, object]:
    said: dict[str, object] = {}
    given = [name for name in ("username", *_SECRETS) if getattr(request.auth, name)]
    if given:
        said["credentials"] = ",".join(given)
    pod = request.sandbox_config.metadata
    if pod.name:
        said["pod"] = f"{pod.namespace}/{pod.name}"
    return said
