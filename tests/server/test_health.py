"""Health, over gRPC and over HTTP."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import asynccontextmanager

import grpc
import pytest

from cri_shim.pb import health_pb2, health_pb2_grpc
from cri_shim.server import health as health_module
from cri_shim.server.health import SERVICES, Health, Readiness, alive_page, ready_page
from cri_shim.server.methods import methods_of
from cri_shim.server.rpc import Gate

Code = grpc.StatusCode
Status = health_pb2.HealthCheckResponse.ServingStatus
# A process of its own: two declarations of one package cannot be in one.
OTHERS_CLIENT = """
import sys, grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = health_pb2_grpc.HealthStub(channel)
    print(stub.Check(health_pb2.HealthCheckRequest(service="runtime.v1.ImageService"), timeout=30))
    print(next(stub.Watch(health_pb2.HealthCheckRequest(service="no.Such"), timeout=30)))
"""


class Root(Readiness):
    """A root whose disk the test breaks."""

    writable = True

    async def lacks(self):
        return await super().lacks() or ("" if self.writable else "the disk cannot be written")


def ask(service: str = "") -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


@asynccontextmanager
async def served(tmp_path):
    gate = Gate()
    root = Root(gate, str(tmp_path))
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((methods_of(Health(root)),))
    server.add_insecure_port(f"unix:{tmp_path}/s")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
            yield gate, root, health_pb2_grpc.HealthStub(channel)
    finally:
        await server.stop(grace=None)


async def test_check_and_list(tmp_path):
    async with served(tmp_path) as (gate, root, stub):
        assert [(await stub.Check(ask(service))).status for service in SERVICES] == [Status.SERVING] * 3
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Check(ask("runtime.v1.Nothing"))
        assert (error.value.code(), error.value.details()) == (
            Code.NOT_FOUND,
            "there is no service runtime.v1.Nothing here",
        )
        root.writable = False
        assert (await stub.Check(ask())).status == Status.NOT_SERVING
        root.writable = True
        await gate.drain(0, asyncio.Event())
        statuses = (await stub.List(health_pb2.HealthListRequest())).statuses
        assert {name: one.status for name, one in statuses.items()} == dict.fromkeys(SERVICES, Status.NOT_SERVING)


async def test_what_is_no_request_is_refused(tmp_path):
    async with served(tmp_path), grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await channel.unary_unary("/grpc.health.v1.Health/Check")(b"\x0a\xff")
        assert error.value.code() is Code.INVALID_ARGUMENT


async def test_watch_tells_every_change_and_ends_with_the_daemon(tmp_path, monkeypatch):
    monkeypatch.setattr(health_module, "LOOK_SECONDS", 0.01)
    async with served(tmp_path) as (gate, root, stub):
        watching = stub.Watch(ask())
        assert (await watching.read()).status == Status.SERVING
        root.writable = False
        assert (await watching.read()).status == Status.NOT_SERVING
        root.writable = True
        assert (await watching.read()).status == Status.SERVING
        await gate.drain(0, asyncio.Event())
        assert (await watching.read()).status == Status.NOT_SERVING
        assert await watching.read() is grpc.aio.EOF


async def test_watchers_are_bounded_and_leave_room_when_they_go(tmp_path, monkeypatch):
    monkeypatch.setattr(health_module, "MOST_WATCHERS", 1)
    async with served(tmp_path) as (_gate, _root, stub):
        first = stub.Watch(ask("no.Such"))
        assert (await first.read()).status == Status.SERVICE_UNKNOWN
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Watch(ask()).read()
        assert error.value.code() is Code.RESOURCE_EXHAUSTED
        first.cancel()
        while (outcome := await status_or_code(stub)) is Code.RESOURCE_EXHAUSTED:
            pass  # the server has not heard yet that the first has left
        assert outcome == Status.SERVING


async def status_or_code(stub):
    watching = stub.Watch(ask())
    try:
        return (await watching.read()).status
    except grpc.aio.AioRpcError as refused:
        return refused.code()
    finally:
        watching.cancel()


async def test_a_client_of_others_understands_the_answers(tmp_path):
    async with served(tmp_path):
        command = [sys.executable, "-c", OTHERS_CLIENT, f"unix:{tmp_path}/s"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["status:", "SERVING", "status:", "SERVICE_UNKNOWN"], "")


async def test_the_pages_for_http(tmp_path):
    assert (alive_page().content, alive_page().status) == ("ok\n", "200 OK")
    gate = Gate()
    readiness = Readiness(gate, os.fspath(tmp_path))
    assert (await ready_page(readiness)).status == "200 OK"
    gone = Readiness(gate, os.fspath(tmp_path / "gone"))
    page = await ready_page(gone)
    assert page.status == "503 Service Unavailable"
    assert page.content.startswith(f"{tmp_path}/gone cannot be written; ")
    await gate.drain(0, asyncio.Event())
    assert (await ready_page(readiness)).content == "cri-shim is stopping\n"
