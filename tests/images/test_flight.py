from __future__ import annotations

import asyncio

import pytest

from cri_shim.images.flight import Flights, all_of


async def test_five_callers_one_run() -> None:
    flights: Flights[str, int] = Flights()
    gate = asyncio.Event()
    runs = []

    async def work() -> int:
        runs.append(1)
        await gate.wait()
        return 7

    callers = [asyncio.create_task(flights.join("k", work)) for _ in range(5)]
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*callers) == [7] * 5
    assert runs == [1]
    assert len(flights) == 0


async def test_a_cancelled_caller_never_hurts_another() -> None:
    flights: Flights[str, int] = Flights()
    gate = asyncio.Event()

    async def work() -> int:
        await gate.wait()
        return 1

    leader = asyncio.create_task(flights.join("k", work))
    await asyncio.sleep(0)
    follower = asyncio.create_task(flights.join("k", work))
    await asyncio.sleep(0)
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    gate.set()
    assert await follower == 1


async def test_the_last_to_leave_ends_the_work_and_waits_for_its_end() -> None:
    flights: Flights[str, int] = Flights()
    ended = []

    async def work() -> int:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(1)
        return 1

    caller = asyncio.create_task(flights.join("k", work))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended == [1]
    assert "k" not in flights


async def test_an_error_reaches_every_rider_and_the_next_starts_anew() -> None:
    flights: Flights[str, int] = Flights()
    gate = asyncio.Event()

    async def fails() -> int:
        await gate.wait()
        raise ValueError("once")

    async def works() -> int:
        return 2

    callers = [asyncio.create_task(flights.join("k", fails)) for _ in range(3)]
    await asyncio.sleep(0)
    gate.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [str(result) for result in results] == ["once"] * 3
    assert await flights.join("k", works) == 2


async def test_all_of_raises_the_first_error_itself_and_cancels_the_rest() -> None:
    cancelled = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    async def fails() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await all_of([waits(), fails(), waits()])
    assert cancelled == [1, 1]
