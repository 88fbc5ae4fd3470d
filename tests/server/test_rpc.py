"""Deadlines, cancellation, draining."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import pytest

from cri_shim.pb import api_pb2
from tests.server.conftest import FakeImages, served

Code = grpc.StatusCode
PULL = api_pb2.PullImageRequest(image=api_pb2.ImageSpec(image="reg.io/app:1"))


@pytest.fixture
def slow():
    images = FakeImages()
    images.pulls_as = asyncio.Event()
    return images


async def began(gate) -> None:
    while not gate.running:
        await asyncio.sleep(0)


async def test_a_deadline_reaches_the_work(tmp_path, slow):
    async with served(tmp_path / "s", slow) as (gate, stub, _runtime):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.PullImage(PULL, timeout=0.05)
        assert error.value.code() is Code.DEADLINE_EXCEEDED
        while gate.running:
            await asyncio.sleep(0)
        assert slow.cancelled == 1


async def test_a_deadline_of_a_millisecond(tmp_path, slow):
    async with served(tmp_path / "s", slow) as (_, stub, _runtime):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.PullImage(PULL, timeout=0.001)
        assert error.value.code() is Code.DEADLINE_EXCEEDED


async def test_a_cancelled_caller_cancels_the_work(tmp_path, slow):
    async with served(tmp_path / "s", slow) as (gate, stub, _runtime):
        call = stub.PullImage(PULL)
        await began(gate)
        call.cancel()
        while gate.running:
            await asyncio.sleep(0)
        assert slow.cancelled == 1


async def test_draining_turns_new_calls_away_and_waits_for_the_running(tmp_path, slow):
    async with served(tmp_path / "s", slow) as (gate, stub, runtime):
        pull = asyncio.ensure_future(stub.PullImage(PULL))
        await began(gate)
        drain = asyncio.ensure_future(gate.drain(60, asyncio.Event()))
        for call in (lambda: stub.PullImage(PULL), lambda: runtime.Version(api_pb2.VersionRequest())):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call()
            assert error.value.code() is Code.UNAVAILABLE
            assert "stopping" in error.value.details()
        assert not drain.done()
        slow.pulls_as.set()
        assert (await pull).image_ref
        await drain


@pytest.mark.parametrize("hurried", [True, False])
async def test_what_still_runs_at_the_end_is_unavailable(tmp_path, slow, hurried):
    hurry = asyncio.Event()
    async with served(tmp_path / "s", slow) as (gate, stub, _runtime):
        pull = asyncio.ensure_future(stub.PullImage(PULL))
        await began(gate)
        drain = asyncio.ensure_future(gate.drain(3600 if hurried else 0, hurry))
        if hurried:
            hurry.set()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await pull
        await drain
    assert error.value.code() is Code.UNAVAILABLE
    assert slow.cancelled == 1


async def test_draining_an_idle_server_takes_no_time(tmp_path, slow):
    async with served(tmp_path / "s", slow) as (gate, _stub, _runtime):
        await asyncio.wait_for(gate.drain(3600, asyncio.Event()), 1)


async def test_a_stream_that_is_given_up_leaves_the_gate(tmp_path):
    async with served(tmp_path / "s", FakeImages()) as (gate, stub, _runtime):
        call = stub.StreamImages(api_pb2.StreamImagesRequest())
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call.read()
        await gate.drain(1, asyncio.Event())
        assert gate.running == 0
