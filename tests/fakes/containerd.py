"""A containerd in memory, with real directories: the services that are used, its collector, its CRI plugin, and moods.

`fails` lets a method (`Snapshots.Commit`) answer with a code, `hung` lets it answer nothing; `calls` tells what it was
asked for; `moved` are names that its CRI plugin still takes for those of an image; `collects_at_once` lets its collector
be faster than so many leases. It collects when a lease ends or a name is removed, whether asked to or not, so that
whoever relies on what nothing holds is found out.
"""

# ruff: noqa: N802 (the methods are named in the interface)

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import grpc
from google.protobuf.empty_pb2 import Empty

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
    version_pb2,
    version_pb2_grpc,
)

NOT_FOUND, EXISTS = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS


@dataclass
class Snapshot:
    parent: str
    directory: Path
    leases: set[str] = field(default_factory=set)


@dataclass
class Blob:
    data: bytes
    labels: dict[str, str]
    leases: set[str] = field(default_factory=set)


@dataclass
class State:
    """What containerd keeps over a restart."""

    root: Path
    leases: dict[str, dict[str, str]] = field(default_factory=dict)
    active: dict[str, Snapshot] = field(default_factory=dict)
    layers: dict[str, Snapshot] = field(default_factory=dict)
    blobs: dict[str, Blob] = field(default_factory=dict)
    records: dict[str, images_pb2.Image] = field(default_factory=dict)
    made: int = 0

    def collect(self) -> None:
        """Drop what no record and no lease reaches."""
        blobs = {record.target.digest for record in self.records.values()}
        blobs |= {digest for digest, blob in self.blobs.items() if blob.leases & set(self.leases)}
        layers = {name for name, layer in self.layers.items() if layer.leases & set(self.leases)}
        layers |= {one.parent for one in self.active.values()}
        while left := {digest for digest in blobs if digest in self.blobs}:
            named = [item for digest in left for item in self.blobs[digest].labels.items()]
            more = {value for label, value in named if label.startswith("containerd.io/gc.ref.content")}
            layers |= {value for label, value in named if label.startswith("containerd.io/gc.ref.snapshot.overlayfs")}
            if more <= blobs:
                break
            blobs |= more
        while parents := {self.layers[name].parent for name in layers if name in self.layers} - layers:
            layers |= parents
        for name in set(self.layers) - layers:
            shutil.rmtree(self.layers.pop(name).directory)
        for key in [key for key, one in self.active.items() if not one.leases & set(self.leases)]:
            shutil.rmtree(self.active.pop(key).directory)
        self.blobs = {digest: blob for digest, blob in self.blobs.items() if digest in blobs}

    def id_of(self, record: images_pb2.Image) -> str:
        """The config that a record leads to, by the documents that are here; "" where one is missing."""
        digest = record.target.digest
        while (blob := self.blobs.get(digest)) is not None:
            document = json.loads(blob.data)
            if "config" in document and "layers" in document:
                return document["config"]["digest"]
            here = [entry["digest"] for entry in document["manifests"] if entry["digest"] in self.blobs]
            digest = here[0] if here else ""
        return ""


def moody(method):
    """Count the call; then hang or fail when that was asked for."""
    name = f"{method.__qualname__}".replace("Servicer", "").lstrip("_")

    @functools.wraps(method)
    async def wrapped(self, request, context):
        owner = self.owner
        owner.calls.append(name)
        assert dict(context.invocation_metadata()).get("containerd-namespace") == "k8s.io"
        if name in owner.hung:
            await asyncio.Event().wait()
        if name in owner.fails:
            await context.abort(owner.fails[name], "it was told to fail")
        return await method(self, request, context)

    return wrapped


@dataclass
class _Part:
    owner: FakeContainerd

    @property
    def state(self) -> State:
        return self.owner.state

    def lease(self, context) -> set[str]:
        lease = dict(context.invocation_metadata()).get("containerd-lease")
        return {lease} if lease else set()


class _Leases(_Part, leases_pb2_grpc.LeasesServicer):
    @moody
    async def Create(self, request, context):
        assert request.labels["containerd.io/gc.expire"].endswith("Z")
        self.state.leases[request.id] = dict(request.labels)
        return leases_pb2.CreateResponse(lease=leases_pb2.Lease(id=request.id, labels=request.labels))

    @moody
    async def Delete(self, request, context):
        if self.state.leases.pop(request.id, None) is None:
            await context.abort(NOT_FOUND, "no such lease")
        self.state.collect()
        return Empty()

    @moody
    async def List(self, request, context):
        (wanted,) = request.filters
        found = [name for name, labels in self.state.leases.items() if matches(wanted, "", labels)]
        return leases_pb2.ListResponse(leases=[leases_pb2.Lease(id=name) for name in found])

    @moody
    async def AddResource(self, request, context):
        assert request.resource.type == "snapshots/overlayfs"
        if self.owner.collects_at_once:
            self.owner.collects_at_once -= 1
            self.state.collect()
        if (layer := self.state.layers.get(request.resource.id)) is not None:
            layer.leases.add(request.id)
        return Empty()


class _Content(_Part, content_pb2_grpc.ContentServicer):
    @moody
    async def Info(self, request, context):
        if request.digest not in self.state.blobs:
            await context.abort(NOT_FOUND, f"content {request.digest}")
        data = self.state.blobs[request.digest].data
        return content_pb2.InfoResponse(info=content_pb2.Info(digest=request.digest, size=len(data)))

    @moody
    async def Update(self, request, context):
        assert [*request.update_mask.paths] == [f"labels.{name}" for name in request.info.labels]
        blob = self.state.blobs[request.info.digest]
        blob.labels |= dict(request.info.labels)
        blob.leases |= self.lease(context)
        return content_pb2.UpdateResponse(info=request.info)

    async def Write(self, requests, context):
        self.owner.calls.append("Content.Write")
        async for request in requests:
            if request.expected in self.state.blobs:
                await context.abort(EXISTS, "there already")
            assert (request.action, request.total) == (content_pb2.COMMIT, len(request.data))
            self.state.blobs[request.expected] = Blob(request.data, dict(request.labels), self.lease(context))
            yield content_pb2.WriteContentResponse(action=request.action, digest=request.expected)


class _Snapshots(_Part, snapshots_pb2_grpc.SnapshotsServicer):
    @moody
    async def Prepare(self, request, context):
        assert request.snapshotter == "overlayfs"
        target = request.labels["containerd.io/snapshot.ref"]
        if target in self.state.layers:
            await context.abort(EXISTS, "there already")
        assert not request.parent or request.parent in self.state.layers, "the parent is not committed"
        self.state.made += 1
        directory = self.state.root / "snapshots" / str(self.state.made)
        (directory / "fs").mkdir(parents=True)
        self.state.active[request.key] = Snapshot(request.parent, directory, self.lease(context))
        return snapshots_pb2.PrepareSnapshotResponse(mounts=[self._mount(request.parent, directory)])

    @moody
    async def View(self, request, context):
        """All that lies below, as the real one has it: a bind of one directory, or lowers, the topmost first."""
        if request.parent not in self.state.layers:
            await context.abort(NOT_FOUND, "no such snapshot")
        self.state.active[request.key] = Snapshot(request.parent, self.state.root / "view", self.lease(context))
        (self.state.root / "view").mkdir(exist_ok=True)
        lowers, name = [], request.parent
        while name:
            lowers.append(f"{self.state.layers[name].directory}/fs")
            name = self.state.layers[name].parent
        mount = types_pb2.Mount(type="bind", source=lowers[0], options=["ro", "rbind"])
        if len(lowers) > 1:
            mount = types_pb2.Mount(type="overlay", source="overlay", options=[f"lowerdir={':'.join(lowers)}"])
        return snapshots_pb2.ViewSnapshotResponse(mounts=[mount])

    def _mount(self, parent: str, directory: Path) -> types_pb2.Mount:
        if self.owner.other_mounts:
            return types_pb2.Mount(type="ext4", source="/dev/nowhere")
        if not parent:
            return types_pb2.Mount(type="bind", source=f"{directory}/fs", options=["rw", "rbind"])
        lower = self.state.layers[parent].directory / "fs"
        options = [f"workdir={directory}/work", f"upperdir={directory}/fs", f"lowerdir={lower}"]
        return types_pb2.Mount(type="overlay", source="overlay", options=options)

    @moody
    async def Commit(self, request, context):
        if request.name in self.state.layers:
            await context.abort(EXISTS, "there already")
        self.state.layers[request.name] = self.state.active.pop(request.key)
        return Empty()

    @moody
    async def Remove(self, request, context):
        gone = self.state.active.pop(request.key, None)
        if gone is None:
            await context.abort(NOT_FOUND, "no such snapshot")
        shutil.rmtree(gone.directory)
        return Empty()

    @moody
    async def Stat(self, request, context):
        if request.key not in self.state.layers:
            await context.abort(NOT_FOUND, "no such snapshot")
        info = snapshots_pb2.Info(name=request.key, kind=snapshots_pb2.COMMITTED)
        return snapshots_pb2.StatSnapshotResponse(info=info)


class _Images(_Part, images_pb2_grpc.ImagesServicer):
    @moody
    async def List(self, request, context):
        records = self.state.records.values()
        wanted = request.filters
        found = [one for one in records if not wanted or any(matches(each, one.name, one.labels) for each in wanted)]
        return images_pb2.ListImagesResponse(images=found)

    @moody
    async def Create(self, request, context):
        if request.image.name in self.state.records:
            await context.abort(EXISTS, "there already")
        assert request.image.target.digest in self.state.blobs, "a name came before what it stands for"
        self.state.records[request.image.name] = request.image
        return images_pb2.CreateImageResponse(image=request.image)

    @moody
    async def Update(self, request, context):
        assert "target" in request.update_mask.paths
        record = self.state.records[request.image.name]
        record.target.CopyFrom(request.image.target)
        record.labels.update(request.image.labels)
        return images_pb2.UpdateImageResponse(image=record)

    @moody
    async def Delete(self, request, context):
        if self.state.records.pop(request.name, None) is None:
            await context.abort(NOT_FOUND, "no such name")
        self.state.collect()
        return Empty()


class _Version(_Part, version_pb2_grpc.VersionServicer):
    @moody
    async def Version(self, request, context):
        return version_pb2.VersionResponse(version="v2.0.0-fake")


class _Cri(_Part, api_pb2_grpc.ImageServiceServicer):
    @moody
    async def ImageStatus(self, request, context):
        wanted = request.image.image
        names = [name for name, record in self.state.records.items() if self.state.id_of(record) == wanted]
        if wanted not in names or self.owner.blind:
            return api_pb2.ImageStatusResponse()
        tags = [name for name in names if "@" not in name and name != wanted] + self.owner.moved.get(wanted, [])
        digests = [name for name in names if "@" in name]
        image = api_pb2.Image(id=wanted, repo_tags=tags, repo_digests=digests)
        return api_pb2.ImageStatusResponse(image=image)


def matches(wanted: str, name: str, labels) -> bool:
    """Apply one of the two kinds of filters that are used."""
    key, _, value = wanted.partition("==")
    value = json.loads(value)
    if key == "name":
        return name == value
    return labels.get(json.loads(key.removeprefix("labels."))) == value


class FakeContainerd:
    """`async with FakeContainerd(directory)`; what it keeps is in `state`, and outlives `stop` and `start`."""

    def __init__(self, base: Path) -> None:
        self.socket, self.root = base / "c.sock", base / "containerd"
        self.root.mkdir(parents=True)
        self.state = State(self.root)
        self.calls: list[str] = []
        self.fails: dict[str, grpc.StatusCode] = {}
        self.hung: set[str] = set()
        self.blind = False
        self.other_mounts = False
        self.collects_at_once = 0
        self.moved: dict[str, list[str]] = {}
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        server = self._server = grpc.aio.server()
        leases_pb2_grpc.add_LeasesServicer_to_server(_Leases(self), server)
        content_pb2_grpc.add_ContentServicer_to_server(_Content(self), server)
        snapshots_pb2_grpc.add_SnapshotsServicer_to_server(_Snapshots(self), server)
        images_pb2_grpc.add_ImagesServicer_to_server(_Images(self), server)
        version_pb2_grpc.add_VersionServicer_to_server(_Version(self), server)
        api_pb2_grpc.add_ImageServiceServicer_to_server(_Cri(self), server)
        server.add_insecure_port(f"unix://{self.socket}")
        await server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None
            with contextlib.suppress(FileNotFoundError):
                self.socket.unlink()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_) -> None:
        await self.stop()

    def names(self) -> set[str]:
        return set(self.state.records)
