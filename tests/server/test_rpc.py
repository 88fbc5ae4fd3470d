"""Deadlines, cancellation, draining."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import grpc
import pytest

from cri_shim.errors import DeadlineExceeded, NotFound
from cri_shim.pb import api_pb2, api_pb2_grpc
from cri_shim.server import rpc as rpc_module
from tests.server.conftest import FakeImages, make_image, served

Code = grpc.StatusCode
PULL = api_pb2.PullImageRequest(image=api_pb2.ImageSpec(image="reg.io/app:1"))


@pytest.fixture
def slow():
    images = FakeImages()
    images.pulls_as = asyncio.Event()
    return images


async def began(gate) -> None:
    async with asyncio.timeout(60):
        while not gate.running:
            await asyncio.sleep(0.001)


async def nothing_runs(gate) -> None:
    async with asyncio.timeout(60):
        while gate.running:
            await asyncio.sleep(0.001)


async def test_a_deadline_reaches_the_work(tmp_path, slow):
    async with served(tmp_path / "s", slow) as (gate, stub, _runtime):
        seconds = 0.05
        while not slow.pulled:  # on a machine that is too busy for this deadline the work has not begun
            seconds *= 2
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.PullImage(PULL, timeout=seconds)
            assert error.value.code() is Code.DEADLINE_EXCEEDED
            await nothing_runs(gate)
        assert slow.cancelled == len(slow.pulled) == 1


@pytest.mark.parametrize("answers", ["never", "at once", "with an error"])
async def test_a_deadline_of_a_millisecond_begins_no_pull(tmp_path, slow, answers):
    """critest wants this code, and neither an error nor an image that is here may come before the deadline."""
    slow.pulls_as = {"never": slow.pulls_as, "at once": make_image(), "with an error": NotFound("x")}[answers]
    async with served(tmp_path / "s", slow) as (gate, stub, _runtime):
        for _ in range(20):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.PullImage(PULL, timeout=0.001)
            assert error.value.code() is Code.DEADLINE_EXCEEDED
        await nothing_runs(gate)
    assert slow.pulled == []


async def test_a_call_whose_deadline_passed_before_its_turn_is_not_begun(tmp_path, slow):
    """The client lives in a thread; the event loop of the server stands still until the deadline is over."""
    over = threading.Event()

    def call_once_too_late() -> Code:
        with grpc.insecure_channel(f"unix:{tmp_path}/s") as channel:
            stub = api_pb2_grpc.ImageServiceStub(channel)
            stub.ImageFsInfo(api_pb2.ImageFsInfoRequest())
            ready.set()
            try:
                stub.PullImage(PULL, timeout=0.02)
            except grpc.RpcError as error:
                return error.code()
            finally:
                over.set()

    async with served(tmp_path / "s", slow) as (gate, _stub, _runtime):
        ready = threading.Event()
        client = asyncio.ensure_future(asyncio.to_thread(call_once_too_late))
        while not ready.is_set():
            await asyncio.sleep(0)
        over.wait(30)
        assert await client is Code.DEADLINE_EXCEEDED
        await nothing_runs(gate)
    assert slow.cancelled == len(slow.pulled)


def test_a_deadline_that_has_passed_is_refused_before_the_handler():
    class Late:
        def time_remaining(self):
            return 0.0

    with pytest.raises(DeadlineExceeded):
        rpc_module._check(PULL, Late())


async def test_a_cancelled_caller_cancels_the_work(tmp_path, slow):
    async with served(tmp_path / "s", slow) as (gate, stub, _runtime):
        call = stub.PullImage(PULL)
        await began(gate)
        call.cancel()
        await nothing_runs(gate)
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
        await asyncio.wait_for(gate.drain(3600, asyncio.Event()), 60)


async def test_a_stream_that_is_given_up_leaves_the_gate(tmp_path):
    async with served(tmp_path / "s", FakeImages()) as (gate, stub, _runtime):
        call = stub.StreamImages(api_pb2.StreamImagesRequest())
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call.read()
        await gate.drain(60, asyncio.Event())
        assert gate.running == 0
