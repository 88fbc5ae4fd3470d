"""containerd's socket: one connection, a few calls, each with a deadline.

Rule: what containerd answers becomes a value here, or one of two errors: `Unreachable`, which passes when containerd
comes back, and `Refused`, which does not. gRPC connects again by itself, at most five seconds after containerd is back;
`states` tells when.

All calls are made in the namespace of containerd's CRI plugin. Where a lease is given, what the call makes or finds is
held by it.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from cri_shim.errors import HandOffFailed
from cri_shim.handoff.containerd.records import Record, Target
from cri_shim.pb import api_pb2, api_pb2_grpc
from cri_shim.pb.containerd import (
    content_pb2,
    content_pb2_grpc,
    images_pb2,
    images_pb2_grpc,
    leases_pb2,
    leases_pb2_grpc,
    snapshots_pb2,
    snapshots_pb2_grpc,
    types_pb2,
    version_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping

    from cri_shim.handoff.containerd.records import Blob

T = TypeVar("T")

NAMESPACE: Final = "k8s.io"
CALL_SECONDS: Final = 20.0
"""What a call may take; containerd writes its database once for most of them."""

_LARGEST_ANSWER_BYTES: Final = 64 << 20
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", _LARGEST_ANSWER_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5000),
    ("grpc.client_idle_timeout_ms", 2**31 - 1),  # never: a connection that is given up for want of calls looks lost
    ("grpc.default_authority", "localhost"),  # the path of a socket is none
    ("grpc.enable_http_proxy", 0),
)
_PASSING: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class Unreachable(HandOffFailed):
    """containerd does not answer: it is down, starting, or too slow."""


class Refused(HandOffFailed):
    """containerd answered that it will not do what it was asked for."""


class Vanished(Refused):
    """Something that was there is not any more: containerd's collector was faster than our lease."""


@dataclass(frozen=True, slots=True)
class Mount:
    """How to mount a snapshot."""

    kind: str
    source: str
    options: tuple[str, ...]


class Client:
    """A connection to one containerd. Made and used on the event loop."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self._channel = grpc.aio.insecure_channel(f"unix://{socket}", options=_OPTIONS)
        self._leases = _stub(leases_pb2_grpc.LeasesStub, self._channel)
        self._content = _stub(content_pb2_grpc.ContentStub, self._channel)
        self._images = _stub(images_pb2_grpc.ImagesStub, self._channel)
        self._snapshots = _stub(snapshots_pb2_grpc.SnapshotsStub, self._channel)
        self._version = _stub(version_pb2_grpc.VersionStub, self._channel)
        self._cri = _stub(api_pb2_grpc.ImageServiceStub, self._channel)

    async def close(self) -> None:
        """End the connection."""
        await self._channel.close()

    async def states(self) -> AsyncIterator[bool]:
        """Tell whether containerd is connected, now and after every change, and keep connecting."""
        while True:
            state = self._channel.get_state(try_to_connect=True)
            yield state is grpc.ChannelConnectivity.READY
            await self._channel.wait_for_state_change(state)
            if state is grpc.ChannelConnectivity.READY:
                yield False  # it was gone, though it may be back by now

    @property
    def connected(self) -> bool:
        """Whether calls can be made now."""
        return self._channel.get_state() is grpc.ChannelConnectivity.READY

    async def version(self) -> str:
        """Return containerd's version, as it spells it."""
        return str((await self._call(self._version.Version, Empty())).version)

    # Leases

    async def make_lease(self, lease: str, labels: Mapping[str, str]) -> None:
        """Begin the lease *lease*."""
        await self._call(self._leases.Create, leases_pb2.CreateRequest(id=lease, labels=labels))

    async def end_lease(self, lease: str, seconds: float = CALL_SECONDS) -> None:
        """End a lease; none of that name is fine."""
        call = self._call(self._leases.Delete, leases_pb2.DeleteRequest(id=lease), seconds=seconds)
        await _or_none(call, grpc.StatusCode.NOT_FOUND)

    async def leases(self, owner: tuple[str, str]) -> tuple[str, ...]:
        """Return the leases whose label *owner*, name and value, is that."""
        request = leases_pb2.ListRequest(filters=[_labelled(*owner)])
        return tuple(lease.id for lease in (await self._call(self._leases.List, request)).leases)

    async def hold_layer(self, snapshotter: str, name: str, lease: str) -> None:
        """Let *lease* hold the committed layer *name*.

        Raises:
            Vanished: it is not there any more.
        """
        resource = leases_pb2.Resource(id=name, type=f"snapshots/{snapshotter}")
        await self._call(self._leases.AddResource, leases_pb2.AddResourceRequest(id=lease, resource=resource), lease)
        if not await self.has_layer(snapshotter, name):
            raise Vanished(f"containerd at {self.socket} has removed layer {name}")

    # Snapshots

    async def prepare(
        self, snapshotter: str, key: str, parent: str, labels: Mapping[str, str], lease: str
    ) -> tuple[Mount, ...] | None:
        """Begin the snapshot *key* on *parent*; None: what it would be committed as is there already."""
        request = snapshots_pb2.PrepareSnapshotRequest(snapshotter=snapshotter, key=key, parent=parent, labels=labels)
        call = self._call(self._snapshots.Prepare, request, lease)
        answer = await _or_none(call, grpc.StatusCode.ALREADY_EXISTS)
        if answer is None:
            return None
        return tuple(Mount(mount.type, mount.source, tuple(mount.options)) for mount in answer.mounts)

    async def view(self, snapshotter: str, key: str, parent: str, lease: str) -> tuple[Mount, ...]:
        """Begin the snapshot *key* to read *parent*, a committed layer with all below it.

        Raises:
            Vanished: there is no such layer.
        """
        request = snapshots_pb2.ViewSnapshotRequest(snapshotter=snapshotter, key=key, parent=parent)
        answer = await self._call(self._snapshots.View, request, lease)
        return tuple(Mount(mount.type, mount.source, tuple(mount.options)) for mount in answer.mounts)

    async def commit(self, snapshotter: str, name: str, key: str, lease: str) -> bool:
        """Make the snapshot *key* the layer *name*; False: there is one already, and *key* is still there."""
        request = snapshots_pb2.CommitSnapshotRequest(snapshotter=snapshotter, name=name, key=key)
        call = self._call(self._snapshots.Commit, request, lease)
        return await _or_none(call, grpc.StatusCode.ALREADY_EXISTS) is not None

    async def remove_snapshot(self, snapshotter: str, key: str, lease: str, seconds: float = CALL_SECONDS) -> None:
        """Give up the snapshot *key*; none of that name is fine."""
        request = snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=key)
        call = self._call(self._snapshots.Remove, request, lease, seconds=seconds)
        await _or_none(call, grpc.StatusCode.NOT_FOUND)

    async def has_layer(self, snapshotter: str, name: str, seconds: float = CALL_SECONDS) -> bool:
        """Tell whether the layer *name* is committed."""
        request = snapshots_pb2.StatSnapshotRequest(snapshotter=snapshotter, key=name)
        call = self._call(self._snapshots.Stat, request, seconds=seconds)
        answer = await _or_none(call, grpc.StatusCode.NOT_FOUND)
        return answer is not None and answer.info.kind == snapshots_pb2.COMMITTED

    # Content

    async def has_blob(self, digest: str, seconds: float = CALL_SECONDS) -> bool:
        """Tell whether the content store has a document."""
        request = content_pb2.InfoRequest(digest=digest)
        call = self._call(self._content.Info, request, seconds=seconds)
        return await _or_none(call, grpc.StatusCode.NOT_FOUND) is not None

    async def put_blob(self, blob: Blob, lease: str) -> None:
        """Write a document whole, or give the one that is there the labels of *blob*."""
        request = content_pb2.WriteContentRequest(
            action=content_pb2.COMMIT,
            ref=f"cri-shim-{uuid.uuid4().hex}",
            total=len(blob.data),
            expected=blob.digest,
            data=blob.data,
            labels=blob.labels,
        )
        written = await _or_none(self._written(request, lease), grpc.StatusCode.ALREADY_EXISTS)
        if written is None and blob.labels:
            info = content_pb2.Info(digest=blob.digest, labels=blob.labels)
            mask = FieldMask(paths=[f"labels.{name}" for name in blob.labels])
            await self._call(self._content.Update, content_pb2.UpdateRequest(info=info, update_mask=mask), lease)

    async def _written(self, request: content_pb2.WriteContentRequest, lease: str) -> bool:
        call = self._content.Write(iter([request]), metadata=_metadata(lease), timeout=CALL_SECONDS)
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError as error:
            raise self._sorted(error) from error
        return True

    # Image records

    async def records(self, filters: Iterable[str], seconds: float = CALL_SECONDS) -> tuple[Record, ...]:
        """Return the records that one of *filters* (`named`, `owned`) lets through."""
        answer = await self._call(self._images.List, images_pb2.ListImagesRequest(filters=filters), seconds=seconds)
        return tuple(Record(image.name, _target_from(image.target)) for image in answer.images)

    async def put_record(self, record: Record, labels: Mapping[str, str], lease: str) -> None:
        """Make a name stand for a target, whatever it stood for; whoever watches the records hears of it."""
        target = types_pb2.Descriptor(
            media_type=record.target.media_type, digest=record.target.digest, size=record.target.size_bytes
        )
        image = images_pb2.Image(name=record.name, labels=labels, target=target)
        create = self._call(self._images.Create, images_pb2.CreateImageRequest(image=image), lease)
        if await _or_none(create, grpc.StatusCode.ALREADY_EXISTS) is None:
            mask = FieldMask(paths=["target", *(f"labels.{name}" for name in labels)])
            await self._call(self._images.Update, images_pb2.UpdateImageRequest(image=image, update_mask=mask), lease)

    async def drop_record(self, name: str, *, collect: bool, seconds: float = CALL_SECONDS) -> None:
        """Remove a name, absent is fine; with *collect* return when what nothing needs any more is gone."""
        request = images_pb2.DeleteImageRequest(name=name, sync=collect)
        await _or_none(self._call(self._images.Delete, request, seconds=seconds), grpc.StatusCode.NOT_FOUND)

    # What its CRI plugin sees

    async def seen(self, name: str, seconds: float = CALL_SECONDS) -> tuple[str, tuple[str, ...]] | None:
        """Return the id that *name* has for containerd's CRI, and all names of that image; None: it has none."""
        request = api_pb2.ImageStatusRequest(image=api_pb2.ImageSpec(image=name))
        answer = await self._call(self._cri.ImageStatus, request, seconds=seconds)
        if not answer.HasField("image"):
            return None
        return answer.image.id, (*answer.image.repo_tags, *answer.image.repo_digests)

    async def _call(self, method: Any, request: Any, lease: str = "", *, seconds: float = CALL_SECONDS) -> Any:
        try:
            return await method(request, metadata=_metadata(lease), timeout=seconds)
        except grpc.aio.AioRpcError as error:
            raise self._sorted(error) from error

    def _sorted(self, error: grpc.aio.AioRpcError) -> HandOffFailed:
        details = error.details() or error.code().name
        if error.code() in _PASSING:
            return Unreachable(f"containerd at {self.socket} does not answer ({details}); is it running?")
        kind = Vanished if error.code() is grpc.StatusCode.NOT_FOUND else Refused
        return kind(f"containerd at {self.socket} refused: {details}")


def _stub(kind: Any, channel: grpc.aio.Channel) -> Any:
    return kind(channel)  # generated code has no types


def named(name: str) -> str:
    """Return the filter for the record *name*."""
    return f'name=="{_quoted(name)}"'


def owned(label: str, value: str) -> str:
    """Return the filter for the records with a label of that value."""
    return _labelled(label, value)


def _labelled(label: str, value: str) -> str:
    return f'labels."{_quoted(label)}"=="{_quoted(value)}"'


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _target_from(target: types_pb2.Descriptor) -> Target:
    return Target(target.media_type, target.digest, target.size)


def _metadata(lease: str) -> tuple[tuple[str, str], ...]:
    return (("containerd-namespace", NAMESPACE), *((("containerd-lease", lease),) if lease else ()))


async def _or_none(call: Awaitable[T], code: grpc.StatusCode) -> T | None:
    """Wait for *call*; None where it ended with *code*."""
    try:
        return await call
    except Refused as error:
        cause = error.__cause__
        if isinstance(cause, grpc.aio.AioRpcError) and cause.code() is code:
            return None
        raise
