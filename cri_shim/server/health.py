"""Whether this daemon is there, and whether it is ready: for probes over HTTP, and over gRPC (`grpc.health.v1`).

It is there as long as it answers. It is ready when it takes calls and may write to its root: a disk that became
read-only lists and finds images still, but no pull can succeed.
"""
# ruff: noqa: N802 (the methods are named in the interface)

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from cri_shim.errors import LimitExceeded, NotFound
from cri_shim.executor import in_thread
from cri_shim.pb import health_pb2, health_pb2_grpc
from cri_shim.server.admin import Text
from cri_shim.server.describe import shown
from cri_shim.server.rpc import Gate, rpc, rpc_stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SERVICES: Final = ("", "runtime.v1.ImageService", "runtime.v1.RuntimeService")
"""What can be asked about; the empty name is the server as a whole."""

MOST_WATCHERS: Final = 64
LOOK_SECONDS: Final = 5.0
"""How long a watcher waits at most to be told that the disk is not what it was."""

_Status = health_pb2.HealthCheckResponse.ServingStatus


class Readiness:
    """Whether the daemon behind *gate* can do what it is for with its *root*."""

    def __init__(self, gate: Gate, root: str) -> None:
        self.stopping = gate.stopping
        self._root = root

    async def lacks(self) -> str:
        """Return why it is not ready, in a sentence, or ""."""
        if self.stopping.is_set():
            return "cri-shim is stopping"
        if not await in_thread(os.access, self._root, os.W_OK):
            return f"{self._root} cannot be written; see what the kernel says of its filesystem"
        return ""


def alive_page() -> Text:
    """Return the page `/healthz`: who reads it knows that the event loop runs."""
    return Text("ok\n")


async def ready_page(readiness: Readiness) -> Text:
    """Return the page `/readyz`: 200, or 503 and why."""
    if lack := await readiness.lacks():
        return Text(f"{lack}\n", status="503 Service Unavailable")
    return Text("ok\n")


class Health(health_pb2_grpc.HealthServicer):
    """`grpc.health.v1.Health`. It has a gate of its own, which never closes: also who is stopping can say so."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self._watchers = 0
        self.gate = Gate()

    @rpc
    async def Check(self, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:
        """Answer how a service is."""
        if request.service not in SERVICES:
            raise NotFound(f"there is no service {shown(request.service)} here")
        return health_pb2.HealthCheckResponse(status=await self._status())

    @rpc
    async def List(self, _request: health_pb2.HealthListRequest) -> health_pb2.HealthListResponse:
        """Answer how each service is."""
        answer = health_pb2.HealthCheckResponse(status=await self._status())
        return health_pb2.HealthListResponse(statuses=dict.fromkeys(SERVICES, answer))

    @rpc_stream
    async def Watch(self, request: health_pb2.HealthCheckRequest) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Answer how a service is, now and whenever it changes, until it stops."""
        if self._watchers == MOST_WATCHERS:
            raise LimitExceeded(f"{MOST_WATCHERS} clients watch already; ask with Check")
        self._watchers += 1
        try:
            async for status in self._changes(known=request.service in SERVICES):
                yield health_pb2.HealthCheckResponse(status=status)
        finally:
            self._watchers -= 1

    async def _changes(self, *, known: bool) -> AsyncIterator[_Status]:
        told = None
        while True:
            last = self._readiness.stopping.is_set()  # seen before the status, which is then that of the end
            status = await self._status() if known else _Status.SERVICE_UNKNOWN
            if status != told:
                yield status
                told = status
            if last:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._readiness.stopping.wait(), LOOK_SECONDS)

    async def _status(self) -> _Status:
        return _Status.NOT_SERVING if await self._readiness.lacks() else _Status.SERVING
