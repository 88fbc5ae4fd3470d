"""The calls of CRI v1 that cri-shim answers, each in a few lines; what they do is done in `cri_shim.images`.

An absent image is no error: its status is an answer without an image, and removing it succeeds. List, status and
usage are answered from memory and never wait for a pull.
"""
# ruff: noqa: N802 (the methods are named in the interface)

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING

from cri_shim.errors import InvalidRequest
from cri_shim.log import fields
from cri_shim.pb import api_pb2, api_pb2_grpc
from cri_shim.server import convert
from cri_shim.server.describe import shown
from cri_shim.server.info import info_of
from cri_shim.server.rpc import rpc, rpc_stream
from cri_shim.store.image import Usage
from cri_shim.version import VERSION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from cri_shim.images.service import Images
    from cri_shim.server.convert import Spelling
    from cri_shim.server.rpc import Gate
    from cri_shim.store.image import Image

log = logging.getLogger(__name__)

_KUBELET_API_VERSION = "0.1.0"  # what every CRI server answers; kubelet looks that it is not empty


class ImageService(api_pb2_grpc.ImageServiceServicer):
    """`runtime.v1.ImageService`. *mountpoint* is the directory of the images, as ImageFsInfo names it."""

    def __init__(self, images: Images, spelling: Spelling, mountpoint: str, gate: Gate) -> None:
        self._images = images
        self._spelling = spelling
        self._mountpoint = mountpoint
        self._usage = Usage(0, 0)
        self.gate = gate

    @rpc
    async def ListImages(self, request: api_pb2.ListImagesRequest) -> api_pb2.ListImagesResponse:
        """Answer all images, or the one that the filter names."""
        chosen = self._chosen(request.filter)
        return api_pb2.ListImagesResponse(images=[self._spelling.image(image) for image in chosen])

    @rpc_stream
    async def StreamImages(self, request: api_pb2.StreamImagesRequest) -> AsyncIterator[api_pb2.StreamImagesResponse]:
        """Answer the same set in batches; no images, no message."""
        for batch in self._spelling.batches(self._chosen(request.filter)):
            yield api_pb2.StreamImagesResponse(images=batch)

    @rpc
    async def ImageStatus(self, request: api_pb2.ImageStatusRequest) -> api_pb2.ImageStatusResponse:
        """Answer one image, found by id, name or short id."""
        image = self._images.find(request.image.image)
        if image is None:
            return api_pb2.ImageStatusResponse()
        answer = api_pb2.ImageStatusResponse(image=self._spelling.image(image))
        if request.verbose:
            answer.info.update(info_of(image, await self._images.config_bytes(image), self._images.images()))
        return answer

    @rpc
    async def PullImage(self, request: api_pb2.PullImageRequest) -> api_pb2.PullImageResponse:
        """Bring an image here and answer its id."""
        name = request.image.image
        if not name.strip():
            raise InvalidRequest("the request names no image")
        given = convert.credential(request)
        log.info(f'PullImage "{shown(name)}"')
        begun = time.monotonic()
        image = await self._images.pull(name, given)
        image_ref = self._spelling.id(image.id)
        _log_pulled(name, image, image_ref, time.monotonic() - begun)
        return api_pb2.PullImageResponse(image_ref=image_ref)

    @rpc
    async def RemoveImage(self, request: api_pb2.RemoveImageRequest) -> api_pb2.RemoveImageResponse:
        """Remove an image with all its names."""
        await self._images.remove(request.image.image)
        return api_pb2.RemoveImageResponse()

    @rpc
    async def ImageFsInfo(self, _request: api_pb2.ImageFsInfoRequest) -> api_pb2.ImageFsInfoResponse:
        """Answer what the images take. Clients take an error here for a dead server, so there never is one."""
        try:
            self._usage = self._images.usage()
        except Exception as error:  # the last numbers are better than none
            log.error("the usage of the images is not known; answering what was known last", exc_info=error)
        both = [convert.filesystem(self._mountpoint, self._usage, time.time_ns())]
        return api_pb2.ImageFsInfoResponse(image_filesystems=both, container_filesystems=both)

    def _chosen(self, wanted: api_pb2.ImageFilter) -> Sequence[Image]:
        if not wanted.image.image:
            return self._images.images()
        image = self._images.find(wanted.image.image)
        return () if image is None else (image,)


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
            answer.info["status"] = json.dumps(self._images.status())
        return answer


def _log_pulled(name: str, image: Image, image_ref: str, seconds: float) -> None:
    """Write the two lines that people grep for in containerd's log, in its words."""
    tag = next(iter(image.tags), "")
    digest = next(iter(image.digests), "")
    size = image.size_bytes
    name = shown(name)
    log.info(
        f'Pulled image "{name}" with image id "{image_ref}", repo tag "{tag}", repo digest "{digest}", '
        f'size "{size}" in {seconds:.3f}s',
        extra=fields(layers=len(image.layers), registry=image.pulled_from),
    )
    log.info(f'PullImage "{name}" returns image reference "{image_ref}"')
