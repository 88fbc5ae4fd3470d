"""The calls of CRI v1 that cri-shim answers, each in a few lines; what they do is done in `cri_shim.images`.

An absent image is no error: its status is an answer without an image, and removing it succeeds. List, status and
usage are answered from memory and never wait for a pull. docs/compatibility.md tells every field and why.
"""
# ruff: noqa: N802 (the methods are named in the interface)

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.errors import DeadlineExceeded, InvalidRequest
from cri_shim.log import fields
from cri_shim.pb import api_pb2, api_pb2_grpc
from cri_shim.server import convert
from cri_shim.server.describe import shown
from cri_shim.server.info import info_of, pull_info
from cri_shim.server.listing import Listing
from cri_shim.server.priority import ALIKE, Weights
from cri_shim.server.rpc import rpc, rpc_stream, timed_rpc
from cri_shim.store.image import Usage
from cri_shim.version import VERSION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from cri_shim.images.service import Images
    from cri_shim.server.convert import Spelling
    from cri_shim.server.rpc import Gate
    from cri_shim.store.image import Image

log = logging.getLogger(__name__)

_KUBELET_API_VERSION = "0.1.0"  # what every CRI server answers; kubelet looks that it is not empty


# A pull asks a registry, which takes longer than this: a caller that waits no longer gets its answer at once, and no
# pull is begun that would be cancelled before its first byte.
_SHORTEST_PULL_SECONDS = 0.002

# kubelet reads the usage right after a removal and evicts pods when it has not moved: a removal waits for the room to
# be free as long as its caller does, less what the answer takes on its way.
_PATIENCE_SECONDS = 1.0
_ANSWER_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Node:
    """What clients are told about this node: how ids are spelled, where images lie, which runtime handlers there are.

    Without *handlers* every handler is taken for known. *weights* tells how heavily a pull counts.
    """

    spelling: Spelling
    mountpoint: str
    handlers: frozenset[str] = frozenset()
    weights: Weights = ALIKE


class ImageService(api_pb2_grpc.ImageServiceServicer):
    """`runtime.v1.ImageService`."""

    def __init__(self, images: Images, node: Node, gate: Gate) -> None:
        self._images = images
        self._node = node
        self._listing = Listing(node.spelling)
        self._listing.remember(images.images())
        self._usage = Usage(0, 0)
        self._pulling: Counter[str] = Counter()  # calls by name: of a thousand for one, one is told of at length
        self.gate = gate

    @rpc
    async def ListImages(self, request: api_pb2.ListImagesRequest) -> bytes:
        """Answer all images, or the one that the filter names."""
        wanted = request.filter.image.image
        if not wanted:
            return self._listing.whole(self._images.images())
        return self._listing.some(self._found(wanted))

    @rpc_stream
    async def StreamImages(self, request: api_pb2.StreamImagesRequest) -> AsyncIterator[bytes]:
        """Answer the same set in batches; no images, no message."""
        wanted = request.filter.image.image
        for batch in self._listing.batches(self._found(wanted) if wanted else self._images.images()):
            yield batch

    @rpc
    async def ImageStatus(self, request: api_pb2.ImageStatusRequest) -> api_pb2.ImageStatusResponse:
        """Answer one image, found by id, name or short id; verbose, also the pull that is bringing it."""
        name = request.image.image
        image = await self._images.usable(name)
        answer = api_pb2.ImageStatusResponse(image=self._listing.message(image) if image else None)
        if not request.verbose:
            return answer
        if (pull := self._images.pulling(name)) is not None:
            answer.info.update(pull_info(pull))
        if image is not None:
            answer.info.update(info_of(image, await self._images.config_bytes(image), self._images.shared(image)))
        return answer

    @timed_rpc
    async def PullImage(
        self, request: api_pb2.PullImageRequest, seconds_left: float | None
    ) -> api_pb2.PullImageResponse:
        """Bring an image here and answer its id."""
        name = request.image.image
        if not name.strip():
            raise InvalidRequest("the request names no image")
        self._check_handler(request.image.runtime_handler)
        given = convert.credential(request)
        if seconds_left is not None and seconds_left < _SHORTEST_PULL_SECONDS:
            raise DeadlineExceeded("no pull can be done in the time that the caller gives it")
        begun, alone = time.monotonic(), not self._pulling[name]
        if alone:
            log.info(f'PullImage "{shown(name)}"')
        self._pulling[name] += 1
        try:
            image = await self._images.pull(name, given, self._node.weights.of(request.sandbox_config))
        finally:
            self._pulling[name] -= 1
            if not self._pulling[name]:
                del self._pulling[name]
        image_ref = self._node.spelling.id(image.id)
        if alone:
            _log_pulled(name, image, image_ref, time.monotonic() - begun)
        log.info(f'PullImage "{shown(name)}" returns image reference "{image_ref}"')
        return api_pb2.PullImageResponse(image_ref=image_ref)

    @timed_rpc
    async def RemoveImage(
        self, request: api_pb2.RemoveImageRequest, seconds_left: float | None
    ) -> api_pb2.RemoveImageResponse:
        """Remove an image with all its names."""
        await self._images.remove(request.image.image, _patience(seconds_left))
        return api_pb2.RemoveImageResponse()

    @rpc
    async def ImageFsInfo(self, _request: api_pb2.ImageFsInfoRequest) -> api_pb2.ImageFsInfoResponse:
        """Answer what the images take. Clients take an error here for a dead server, so there never is one."""
        try:
            self._usage = self._images.usage()
        except Exception as error:  # the last numbers are better than none
            log.error("the usage of the images is not known; answering what was known last", exc_info=error)
        both = [convert.filesystem(self._node.mountpoint, self._usage, time.time_ns())]
        return api_pb2.ImageFsInfoResponse(image_filesystems=both, container_filesystems=both)

    def _found(self, name: str) -> Iterable[Image]:
        image = self._images.find(name)
        return () if image is None else (image,)

    def _check_handler(self, handler: str) -> None:
        known = self._node.handlers
        if handler and known and handler not in known:
            raise InvalidRequest(
                f"this node has no runtime handler {shown(handler)}; runtime_handlers of the configuration has "
                f"{', '.join(sorted(known))}"
            )


class RuntimeService(api_pb2_grpc.RuntimeServiceServicer):
    """The part of `runtime.v1.RuntimeService` that a server without containers can answer."""

    def __init__(self, images: Images, gate: Gate) -> None:
        self._images = images
        self.gate = gate

    @rpc
    async def Version(self, _request: api_pb2.VersionRequest) -> api_pb2.VersionResponse:
        """Answer who we are."""
        return api_pb2.VersionResponse(
            version=_KUBELET_API_VERSION,
            runtime_name="cri-shim",
            runtime_version=VERSION,
            runtime_api_version="v1",
        )

    @rpc
    async def Status(self, request: api_pb2.StatusRequest) -> api_pb2.StatusResponse:
        """Answer that we are ready, and what for."""
        message = "cri-shim serves images; it runs no containers and no network"
        conditions = [
            api_pb2.RuntimeCondition(type=kind, status=True, reason="ImageServiceOnly", message=message)
            for kind in ("RuntimeReady", "NetworkReady")
        ]
        answer = api_pb2.StatusResponse(status=api_pb2.RuntimeStatus(conditions=conditions))
        if request.verbose:
            answer.info["imageService"] = json.dumps(self._images.status())  # crictl lays it beside `status`
        return answer


def _patience(seconds_left: float | None) -> float:
    return _PATIENCE_SECONDS if seconds_left is None else max(0.0, seconds_left - _ANSWER_SECONDS)


def _log_pulled(name: str, image: Image, image_ref: str, seconds: float) -> None:
    """Write the line that people grep for in containerd's log, in its words."""
    tag = next(iter(image.tags), "")
    digest = next(iter(image.digests), "")
    size = image.size_bytes
    name = shown(name)
    log.info(
        f'Pulled image "{name}" with image id "{image_ref}", repo tag "{tag}", repo digest "{digest}", '
        f'size "{size}" in {seconds:.3f}s',
        extra=fields(layers=len(image.layers), registry=image.pulled_from),
    )
