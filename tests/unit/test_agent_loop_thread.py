"""A loop in a thread of its own: results, errors, interruption, closing while it is waited for."""

import asyncio
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import pytest

from agent.loop_thread import LoopClosedError, LoopThread
from tests.support.waiting import until_in_thread

SECONDS = 20.0


class Interrupted(Exception):
    """What a signal's handler raises, as Ctrl-C's does."""


async def nothing() -> None:
    """What is left to do at the end."""


async def forty_two() -> int:
    await asyncio.sleep(0)
    return 42


class Endless:
    """Work that ends by being cancelled, and tells."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.cancelled = threading.Event()

    async def run(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    thread = LoopThread("test")
    yield thread
    thread.close(nothing)


def test_work_gives_its_result_or_its_error(loop: LoopThread) -> None:
    async def fail() -> NoReturn:
        raise ZeroDivisionError

    assert loop.run(forty_two()) == 42
    with pytest.raises(ZeroDivisionError):
        loop.run(fail())


async def test_it_works_where_a_loop_is_running(loop: LoopThread) -> None:
    assert loop.run(forty_two()) == 42


def test_work_of_many_threads_runs_beside_each_other(loop: LoopThread) -> None:
    meeting: list[int] = []
    met = asyncio.Event()

    async def meet(number: int) -> int:
        meeting.append(number)
        if len(meeting) == 8:
            met.set()
        await met.wait()
        return number

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: loop.run(meet(n)), range(8), timeout=SECONDS))

    assert found == list(range(8))


def test_who_is_interrupted_while_waiting_cancels_the_work(loop: LoopThread) -> None:
    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise Interrupted

    work = Endless()
    main = threading.get_ident()

    def send() -> None:
        until_in_thread(lambda: bool(loop._waited_for))  # from then on an interruption finds it
        signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(Interrupted):
            loop.run(work.run())
    finally:
        sender.join(SECONDS)
        signal.signal(signal.SIGUSR1, before)

    assert work.cancelled.wait(SECONDS)
    assert loop.run(forty_two()) == 42


def test_closing_gives_up_what_is_waited_for_and_then_does_the_last_thing() -> None:
    loop, work, order = LoopThread("test"), Endless(), list[str]()

    async def last() -> None:
        order.append("after" if work.cancelled.is_set() else "before")

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: loop.run(work.run()))
        assert work.begun.wait(SECONDS)
        loop.close(last)
        with pytest.raises(LoopClosedError, match="meanwhile"):
            waiting.result(SECONDS)

    assert order == ["after"]
    assert not loop._thread.is_alive()


def test_closed_it_refuses_and_closes_no_second_time() -> None:
    loop = LoopThread("test")
    loop.close(nothing)

    loop.close(nothing)

    with pytest.raises(LoopClosedError, match="it is closed"):
        loop.run(forty_two())


def test_a_last_thing_that_fails_is_told_and_the_thread_ends() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    loop = LoopThread("test")

    with pytest.raises(ZeroDivisionError):
        loop.close(fail)

    assert not loop._thread.is_alive()


def test_a_last_thing_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, work = LoopThread("test"), Endless()
    monkeypatch.setattr("agent.loop_thread.CLOSE_SECONDS", 0.05)

    loop.close(work.run)

    assert work.cancelled.wait(SECONDS)
    loop._thread.join(SECONDS)
    assert not loop._thread.is_alive()


def test_its_own_thread_is_refused_instead_of_waiting_for_itself(loop: LoopThread) -> None:
    async def call_itself() -> None:
        loop.run(forty_two())

    async def close_itself() -> None:
        loop.close(nothing)

    for work in (call_itself, close_itself):
        with pytest.raises(RuntimeError, match="wait for itself"):
            loop.run(work())
