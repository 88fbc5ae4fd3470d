"""What crictl does, for the demo: the calls of the image service over its socket, and a look at the admin socket."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, Final, Self

# grpc's hooks around fork are for forks we do not make. This must be said before grpc is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc

from cri_shim.errors import ShimError
from cri_shim.pb import api_pb2, api_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType

_CALL_SECONDS: Final = 60
_LONGEST_PAGE_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Listed:
    """An image as ListImages tells it."""

    id: str
    tags: tuple[str, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Room:
    """What the images take on the disk."""

    mountpoint: str
    used_bytes: int
    inodes: int


class Client:
    """A connection to the image service. Every call may raise `ShimError` with the code and what the daemon said."""

    def __init__(self, path: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix://{path}")
        generated: Any = api_pb2_grpc  # generated, without types
        self._service = generated.ImageServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def pull(self, name: str) -> str:
        """Pull *name* and return the image's reference."""
        request = api_pb2.PullImageRequest(image=api_pb2.ImageSpec(image=name))
        return str(self._call("PullImage", request).image_ref)

    def images(self) -> tuple[Listed, ...]:
        """List the images."""
        answer = self._call("ListImages", api_pb2.ListImagesRequest())
        return tuple(Listed(image.id, tuple(image.repo_tags), image.size) for image in answer.images)

    def layers(self, name: str) -> tuple[dict[str, Any], ...]:
        """Return what the verbose ImageStatus tells about the layers of *name*, bottom first."""
        request = api_pb2.ImageStatusRequest(image=api_pb2.ImageSpec(image=name), verbose=True)
        info = json.loads(self._call("ImageStatus", request).info["info"])
        return tuple(info["layers"])

    def remove(self, name: str) -> None:
        """Remove the image *name*."""
        self._call("RemoveImage", api_pb2.RemoveImageRequest(image=api_pb2.ImageSpec(image=name)))

    def room(self) -> Room:
        """Ask what the images take."""
        answer = self._call("ImageFsInfo", api_pb2.ImageFsInfoRequest())
        images = answer.image_filesystems[0]
        return Room(images.fs_id.mountpoint, images.used_bytes.value, images.inodes_used.value)

    def _call(self, method: str, request: object) -> Any:
        try:
            return getattr(self._service, method)(request, timeout=_CALL_SECONDS, wait_for_ready=True)
        except grpc.RpcError as error:
            raise ShimError(f"{method}: {error.code().name}: {error.details()}") from error


def status_page(path: Path) -> dict[str, Any]:
    """Return the /status page of the admin socket at *path*."""
    connection = _UnixConnection(path)
    try:
        connection.request("GET", "/status")
        page: dict[str, Any] = json.loads(connection.getresponse().read(_LONGEST_PAGE_BYTES))
        return page
    finally:
        connection.close()


def last_pulls(page: dict[str, Any], names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the newest record of each of *names* from a status page."""
    wanted = set(names)
    return {record["name"]: record for record in page["recent"] if record["name"] in wanted}


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_CALL_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_CALL_SECONDS)
        self.sock.connect(os.fspath(self._path))
