"""What crictl does: the calls of the image service over its socket, with the answers as values and dicts.

The dicts have the names and forms that the JSON of the CRI messages has (numbers of 64 bits as texts, defaults told,
what is unset left out), so that what is printed is what crictl prints.
"""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any, Final, Self

# grpc's hooks around fork are for forks we do not make. This must be said before grpc is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc

from cri_shim.errors import ShimError
from cri_shim.pb import api_pb2, api_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

CALL_SECONDS: Final = 60.0
_CONNECT_SECONDS: Final = 5.0
_LONGEST_MESSAGE_BYTES: Final = 16 << 20


class Client:
    """A connection to the image service that listens on *path*.

    Every call may raise `ShimError`: nobody answers there, or what the daemon said with its code.
    """

    def __init__(self, path: str) -> None:
        self._path = path.removeprefix("unix://")
        options = [
            ("grpc.max_receive_message_length", _LONGEST_MESSAGE_BYTES),
            ("grpc.enable_http_proxy", 0),
            ("grpc.default_authority", "localhost"),
        ]
        self._channel = grpc.insecure_channel(f"unix://{self._path}", options=options)
        generated: Any = api_pb2_grpc  # generated, without types
        self._service = generated.ImageServiceStub(self._channel)

    def __enter__(self) -> Self:
        try:
            grpc.channel_ready_future(self._channel).result(timeout=_CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            self._channel.close()
            raise ShimError(f"no daemon answers on {self._path}: is it running, may you use its socket?") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def images(self, name: str = "") -> list[dict[str, Any]]:
        """Return all images, or the one that *name* means, in the order of StreamImages."""
        request = api_pb2.StreamImagesRequest(filter=_filter(name))
        try:
            batches = list(self._service.StreamImages(request, timeout=CALL_SECONDS))
        except grpc.RpcError as error:
            raise _told(error) from error
        return [image_of(image) for batch in batches for image in batch.images]

    def status(self, name: str, *, verbose: bool = True) -> dict[str, Any] | None:
        """Return `status` and `info` of the image *name*, None when it is not here."""
        request = api_pb2.ImageStatusRequest(image=api_pb2.ImageSpec(image=name), verbose=verbose)
        answer = self._call("ImageStatus", request)
        if not answer.image.id:
            return None
        info = {key: json.loads(value) for key, value in sorted(answer.info.items())}
        # crictl lays what is under "info" flat.
        return {"status": image_of(answer.image), "info": info.get("info", info)}

    def pulling(self, name: str, credential: Mapping[str, str] | None, patience_seconds: float | None) -> Pulling:
        """Begin to pull *name*; *credential* has the fields of AuthConfig."""
        auth = api_pb2.AuthConfig(**credential) if credential else None
        request = api_pb2.PullImageRequest(image=api_pb2.ImageSpec(image=name), auth=auth)
        return Pulling(self._service.PullImage.future(request, timeout=patience_seconds))

    def remove(self, name: str) -> None:
        """Remove the image *name* with all its names."""
        self._call("RemoveImage", api_pb2.RemoveImageRequest(image=api_pb2.ImageSpec(image=name)))

    def filesystems(self) -> dict[str, Any]:
        """Return what the images take on the disk."""
        answer = self._call("ImageFsInfo", api_pb2.ImageFsInfoRequest())
        return {
            "imageFilesystems": [_filesystem(one) for one in answer.image_filesystems],
            "containerFilesystems": [_filesystem(one) for one in answer.container_filesystems],
        }

    def _call(self, method: str, request: object) -> Any:
        try:
            return getattr(self._service, method)(request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            raise _told(error) from error


class Pulling:
    """A PullImage that was begun."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._done = threading.Event()
        call.add_done_callback(lambda _: self._done.set())

    def ended(self, patience_seconds: float) -> bool:
        """Wait for its end, *patience_seconds* at most, and tell whether it has come."""
        return self._done.wait(patience_seconds)

    def reference(self) -> str:
        """Return the reference of the image.

        Raises:
            ShimError: What the daemon said.
        """
        try:
            return str(self._call.result().image_ref)
        except grpc.RpcError as error:
            raise _told(error) from error


def image_of(image: api_pb2.Image) -> dict[str, Any]:
    """Return *image* in the form of its JSON."""
    return {
        "id": image.id,
        "repoTags": list(image.repo_tags),
        "repoDigests": list(image.repo_digests),
        "size": str(image.size),
        **({"uid": {"value": str(image.uid.value)}} if image.HasField("uid") else {}),
        "username": image.username,
        **({"spec": _spec(image.spec)} if image.HasField("spec") else {}),
        "pinned": image.pinned,
    }


def _spec(spec: api_pb2.ImageSpec) -> dict[str, Any]:
    return {
        "image": spec.image,
        "annotations": dict(sorted(spec.annotations.items())),
        "userSpecifiedImage": spec.user_specified_image,
        "runtimeHandler": spec.runtime_handler,
        "imageRef": spec.image_ref,
    }


def _filesystem(one: api_pb2.FilesystemUsage) -> dict[str, Any]:
    return {
        "timestamp": str(one.timestamp),
        "fsId": {"mountpoint": one.fs_id.mountpoint},
        "usedBytes": {"value": str(one.used_bytes.value)},
        "inodesUsed": {"value": str(one.inodes_used.value)},
    }


def _filter(name: str) -> api_pb2.ImageFilter | None:
    return api_pb2.ImageFilter(image=api_pb2.ImageSpec(image=name)) if name else None


def _told(error: Any) -> ShimError:
    code = error.code()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ShimError("it took longer than it may; a pull that had begun goes on for a while, so try again")
    return ShimError(error.details() or f"the daemon ends the call with {code.name}")
