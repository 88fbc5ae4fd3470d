"""One piece of work for many threads."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from cri_shim.auth import flights
from cri_shim.auth.flights import ThreadFlights


class Watched(Future[str]):
    """A future that says when somebody waits for it."""

    waiting = threading.Semaphore(0)

    def result(self, timeout: float | None = None) -> str:
        self.waiting.release()
        return super().result(timeout)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[Watched]:
    monkeypatch.setattr(flights, "Future", Watched)
    monkeypatch.setattr(Watched, "waiting", threading.Semaphore(0))
    return Watched


class Work:
    """Work that takes as long as the test wants."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.times = 0
        self.error = error

    def __call__(self) -> str:
        self.times += 1
        self.begun.set()
        assert self.go.wait(20)
        if self.error:
            raise self.error
        return f"result {self.times}"


def test_who_comes_meanwhile_gets_the_same(watched: type[Watched]) -> None:
    together: ThreadFlights[str, str] = ThreadFlights()
    work = Work()
    with ThreadPoolExecutor(8) as pool:
        leader = pool.submit(together.join, "a", work)
        assert work.begun.wait(20)
        riders = [pool.submit(together.join, "a", work) for _ in range(7)]
        for _ in riders:
            assert watched.waiting.acquire(timeout=20)
        work.go.set()
        assert {one.result(20) for one in (leader, *riders)} == {"result 1"}
    assert work.times == 1
    assert together.join("a", work) == "result 2"


def test_keys_do_not_wait_for_each_other() -> None:
    together: ThreadFlights[str, str] = ThreadFlights()
    work = Work()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(together.join, "a", work)
        assert work.begun.wait(20)
        assert together.join("b", lambda: "other") == "other"
        work.go.set()
        assert slow.result(20) == "result 1"


def test_an_exception_reaches_everybody_and_ends_the_flight(watched: type[Watched]) -> None:
    together: ThreadFlights[str, str] = ThreadFlights()
    work = Work(LookupError("no"))
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(together.join, "a", work)
        assert work.begun.wait(20)
        rider = pool.submit(together.join, "a", work)
        assert watched.waiting.acquire(timeout=20)
        work.go.set()
        for one in (leader, rider):
            with pytest.raises(LookupError):
                one.result(20)
    assert together.join("a", lambda: "anew") == "anew"
