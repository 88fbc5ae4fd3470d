from __future__ import annotations

import asyncio

import pytest

from cri_shim.images.flight import Flights, Rounds, all_of


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


class Lookup:
    """What rounds are about: it counts how often it was asked, and answers when told."""

    def __init__(self) -> None:
        self.asked = 0
        self.go = asyncio.Event()

    async def __call__(self) -> int:
        self.asked += 1
        mine = self.asked
        await self.go.wait()
        return mine


async def test_a_thousand_questions_at_once_are_one_round() -> None:
    rounds: Rounds[str, int] = Rounds(0)
    lookup = Lookup()
    lookup.go.set()
    assert await asyncio.gather(*(rounds.join("k", lookup) for _ in range(1000))) == [1] * 1000


async def test_who_asks_while_a_round_runs_shares_the_next_and_never_gets_an_old_answer() -> None:
    rounds: Rounds[str, int] = Rounds(0.01)
    lookup = Lookup()
    first = asyncio.create_task(rounds.join("k", lookup))
    while not lookup.asked:
        await asyncio.sleep(0)
    late = [asyncio.create_task(rounds.join("k", lookup)) for _ in range(1000)]
    other = asyncio.create_task(rounds.join("other", lookup))
    while lookup.asked < 2:
        await asyncio.sleep(0)
    lookup.go.set()
    assert (await first, await other) == (1, 2)
    assert await asyncio.gather(*late) == [3] * 1000


async def test_rounds_of_one_key_keep_a_pause_and_leave_nothing_behind() -> None:
    rounds: Rounds[str, int] = Rounds(0.05)
    lookup = Lookup()
    lookup.go.set()
    begun = asyncio.get_running_loop().time()
    assert [await rounds.join("k", lookup) for _ in range(3)] == [1, 2, 3]
    assert asyncio.get_running_loop().time() - begun >= 0.09  # two pauses; a clock may tick early
    while len(rounds):
        await asyncio.sleep(0.01)


async def test_a_round_that_fails_fails_for_its_own_only_and_who_leaves_hurts_nobody() -> None:
    rounds: Rounds[str, int] = Rounds(0)

    async def fails() -> int:
        raise ValueError("once")

    lookup = Lookup()
    lookup.go.set()
    failing = [asyncio.create_task(rounds.join("k", fails)) for _ in range(3)]
    await asyncio.sleep(0)
    failing[0].cancel()
    results = await asyncio.gather(*failing, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError, ValueError, ValueError]
    assert await rounds.join("k", lookup) == 1


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


# A grace for what everybody has left


async def left(flights: Flights[str, int], work) -> None:
    """Start *work* as "k" and leave."""
    caller = asyncio.create_task(flights.join("k", work))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_work_that_everybody_left_goes_on_and_the_next_boards_it() -> None:
    flights: Flights[str, int] = Flights(grace_seconds=3600)
    gate, runs = asyncio.Event(), []

    async def work() -> int:
        runs.append(1)
        await gate.wait()
        return 7

    await left(flights, work)
    await left(flights, work)
    assert "k" in flights
    next_one = asyncio.create_task(flights.join("k", work))
    await asyncio.sleep(0)
    gate.set()
    assert await next_one == 7
    assert (runs, len(flights)) == ([1], 0)


@pytest.mark.parametrize("fails", [False, True])
async def test_it_comes_to_its_own_end(fails, caplog: pytest.LogCaptureFixture) -> None:
    flights: Flights[str, int] = Flights(grace_seconds=3600)
    gate = asyncio.Event()

    async def work() -> int:
        await gate.wait()
        if fails:
            raise ValueError("no such thing")
        return 7

    await left(flights, work)
    gate.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(flights) == 0
    assert ("no such thing" in caplog.text) is fails


async def test_it_ends_when_the_grace_is_over() -> None:
    flights: Flights[str, int] = Flights(grace_seconds=0.01)
    ended = asyncio.Event()

    async def work() -> int:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return 1

    await left(flights, work)
    async with asyncio.timeout(60):
        await ended.wait()
    assert "k" not in flights


async def test_a_close_ends_what_is_left_and_waits() -> None:
    flights: Flights[str, int] = Flights(grace_seconds=3600)
    ended = []

    async def work() -> int:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(1)
        return 1

    await left(flights, work)
    await flights.close()
    await flights.close()
    assert (ended, len(flights)) == ([1], 0)
