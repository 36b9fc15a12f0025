"""Calls of the app's functions: in order, rescued, named when they do not end, not too many at once."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from multicore_server.cluster import calls as module
from multicore_server.cluster.calls import Calls, Function
from tests.support.coroutines import run, until


def opened(apart: module.Apart | None = None) -> Calls:
    calls = Calls()
    calls.open(asyncio.get_running_loop(), apart)
    return calls


def function(call: Callable[..., Any]) -> Function:
    return Function.of("the message handler", call)


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines, without where a function is defined."""
    return [message.replace(".<locals>", "").rpartition(".")[2] for message in caplog.messages]


async def in_a_thread(call: Callable[[], None]) -> None:
    await asyncio.to_thread(call)


class Turns:
    """An inline app: what is called apart waits for its turn, which may be kept."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.batches = 0

    async def __call__(self, call: Callable[[], None]) -> None:
        async with self.turn:
            self.batches += 1
            call()


every_way = pytest.mark.parametrize("apart", [None, in_a_thread], ids=["loop", "thread"])


# --- how


def test_a_plain_function_is_called_at_once() -> None:
    async def main() -> None:
        seen: list[tuple[Any, ...]] = []
        done: list[Any] = []
        opened().start(
            function(lambda *given: seen.append(given) or "value"),  # type: ignore[func-returns-value]
            1,
            "a",
            done=lambda *result: done.append(result),
        )
        assert seen == [(1, "a")]
        assert done == [("value", None)]

    run(main)


def test_a_coroutine_function_is_a_task_in_the_loop_also_where_others_are_called_apart() -> None:
    async def main() -> None:
        seen: list[Any] = []

        async def handler(value: int) -> int:
            await asyncio.sleep(0)
            seen.append(threading.current_thread() is threading.main_thread())
            return value + 1

        opened(in_a_thread).start(function(handler), 1, done=lambda *result: seen.append(result))
        assert seen == []
        await until(lambda: len(seen) == 2)
        assert seen == [True, (2, None)]

    run(main)


def test_a_plain_function_apart_is_called_in_its_thread() -> None:
    async def main() -> None:
        seen: list[bool] = []
        opened(in_a_thread).start(
            function(lambda: seen.append(threading.current_thread() is threading.main_thread()))
        )
        await until(lambda: seen)
        assert seen == [False]

    run(main)


@every_way
def test_what_returns_something_to_await_has_it_awaited_in_the_loop(apart: module.Apart | None) -> None:
    async def main() -> None:
        seen: list[Any] = []

        async def later() -> str:
            await asyncio.sleep(0)
            seen.append(threading.current_thread() is threading.main_thread())
            return "value"

        opened(apart).start(function(lambda: later()), done=lambda *result: seen.append(result))  # noqa: PLW0108
        await until(lambda: len(seen) == 2)
        assert seen == [True, ("value", None)]

    run(main)


@every_way
def test_calls_begin_in_order(apart: module.Apart | None) -> None:
    async def main() -> None:
        calls, seen = opened(apart), list[int]()
        for number in range(300):
            calls.start(function(seen.append), number)
        await until(lambda: len(seen) == 300)
        assert seen == list(range(300))

    run(main)


def test_coroutine_functions_begin_in_order_and_run_side_by_side() -> None:
    async def main() -> None:
        calls, seen, gate = opened(), list[int](), asyncio.Event()

        async def handler(number: int) -> None:
            seen.append(number)
            await gate.wait()
            seen.append(-number)

        for number in range(1, 100):
            calls.start(function(handler), number)
        await until(lambda: len(seen) == 99)
        assert seen == list(range(1, 100))
        gate.set()
        await until(lambda: len(seen) == 198)

    run(main)


def test_between_two_requests_only_some_are_called() -> None:
    async def main() -> None:
        turns, seen = Turns(), list[int]()
        calls = opened(turns)
        await turns.turn.acquire()  # a request is in progress
        for number in range(120):
            calls.start(function(seen.append), number)
        await asyncio.sleep(0.02)
        assert seen == []
        turns.turn.release()
        await until(lambda: len(seen) == 120)
        assert seen == list(range(120))
        assert turns.batches == 3 == -(-120 // module.AT_ONCE)

    run(main)


@pytest.mark.parametrize("count", [4, 5])
def test_one_that_comes_when_the_others_have_just_been_called_is_called_too(count: int) -> None:
    async def main() -> None:
        turns, seen = Turns(), list[int]()
        calls = opened(turns)
        for number in range(count):
            calls.start(function(seen.append), number)
            await asyncio.sleep(0)  # in this turn of the loop it was called
        await asyncio.sleep(0.02)
        assert seen == list(range(count))

    run(main)


@pytest.mark.parametrize("turns", range(5))
def test_none_is_forgotten_whenever_it_comes(turns: int) -> None:
    async def main() -> None:
        calls, seen = opened(in_a_thread), list[int]()
        for number in range(50):
            calls.start(function(seen.append), number)
            for _ in range(turns):
                await asyncio.sleep(0)
        await until(lambda: len(seen) == 50)
        assert seen == list(range(50))

    run(main)


# --- what fails


async def _fails() -> None:
    raise ValueError("no luck")


def fails() -> None:
    raise ValueError("no luck")


def leaves_it() -> Coroutine[Any, Any, None]:
    return _fails()


async def fails_later() -> None:
    await asyncio.sleep(0)
    raise ValueError("no luck")


@every_way
@pytest.mark.parametrize("broken", [fails, fails_later, leaves_it], ids=["at once", "later", "left"])
def test_one_that_fails_is_named_and_the_others_are_called(
    apart: module.Apart | None, broken: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        calls, seen = opened(apart), list[Any]()
        calls.start(function(broken), done=lambda *result: seen.append(result))
        calls.start(function(seen.append), "next")
        await until(lambda: len(seen) == 2)
        seen.remove("next")
        ((value, exc),) = seen
        assert value is None
        assert isinstance(exc, ValueError)

    run(main)
    (record,) = caplog.records
    name = getattr(broken, "__qualname__", "")
    assert record.getMessage() == f"the message handler {name} failed"
    assert record.levelno == logging.ERROR
    assert "no luck" in caplog.text


def test_what_has_no_name_is_shown_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    class Nameless:
        def __repr__(self) -> str:
            return "<nameless>"

        def __call__(self) -> None:
            raise ValueError

    async def main() -> None:
        opened().start(function(Nameless()))

    run(main)
    assert caplog.messages == ["the message handler <nameless> failed"]


def test_one_that_is_cancelled_from_elsewhere_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        calls, seen = opened(), list[str]()

        async def gives_up() -> None:
            raise asyncio.CancelledError

        calls.start(function(gives_up))
        calls.start(function(seen.append), "next")
        await until(lambda: not calls._tasks)
        assert seen == ["next"]

    run(main)
    assert caplog.messages == []


# --- what does not end


async def endless() -> None:
    await asyncio.sleep(3600)


def test_one_that_never_ends_does_not_stop_the_others_and_is_named_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        calls, seen = opened(), list[str]()
        calls.start(function(endless))
        calls.start(function(seen.append), "next")
        assert seen == ["next"]
        await calls.settle(0.05)
        await until(lambda: not calls._tasks)

    run(main)
    assert caplog.messages == ["the message handler endless has not ended; it is cancelled"]


def test_those_that_end_in_time_are_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        calls, seen = opened(), list[str]()

        async def short() -> None:
            await asyncio.sleep(0.05)
            seen.append("done")

        for _ in range(5):
            calls.start(function(short))
        await calls.settle(10)
        assert seen == ["done"] * 5

    run(main)
    assert caplog.messages == []


@every_way
def test_what_a_call_has_left_to_be_awaited_is_waited_for_too(
    apart: module.Apart | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A call in a thread, say, whose result is to be awaited."""

    async def main() -> None:
        calls, seen = opened(apart), list[str]()

        async def later() -> None:
            await asyncio.sleep(0.05)
            seen.append("done")

        calls.start(function(lambda: later()))  # noqa: PLW0108 - no coroutine function
        await calls.settle(10)
        assert seen == ["done"]

    run(main)
    assert caplog.messages == []


def test_what_is_begun_while_the_others_end_is_waited_for_too(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        calls, seen = opened(), list[str]()

        async def second() -> None:
            await asyncio.sleep(0.05)
            seen.append("second")

        async def first() -> None:
            await asyncio.sleep(0.05)
            calls.start(function(second))

        calls.start(function(first))
        await calls.settle(10)
        assert seen == ["second"]

    run(main)
    assert caplog.messages == []


def test_one_that_takes_long_is_named_once_while_it_runs(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        calls = opened()
        calls.look()
        calls.start(function(endless))
        calls.look()
        assert caplog.messages == []
        monkeypatch.setattr(module, "SLOW", 0.01)
        await asyncio.sleep(0.02)
        for _ in range(3):
            calls.look()
        assert caplog.messages == ["the message handler endless has not ended after 0 s"]
        await calls.settle(0)

    run(main)


def test_a_thread_that_takes_long_is_named_too(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLOW", 0.01)
    gate = threading.Event()

    def waits() -> None:
        gate.wait(20)

    async def main() -> None:
        calls = opened(in_a_thread)
        calls.start(function(waits))
        while not caplog.messages:
            await asyncio.sleep(0.001)
            calls.look()
        await asyncio.sleep(0.02)
        calls.look()
        assert warned(caplog) == ["waits has not ended after 0 s"]
        gate.set()
        await calls.settle(10)
        assert not calls._named
        assert not calls._running

    run(main)


def test_seconds_that_are_spent_in_calls_are_told() -> None:
    async def main() -> None:
        calls, spent = opened(), list[float]()
        calls.spent = spent.append

        async def short() -> None:
            await asyncio.sleep(0.05)

        calls.start(function(short))
        await calls.settle(10)
        await until(lambda: len(spent) >= 2)
        assert 0.04 < sum(spent) < 10

    run(main)


# --- how many


def filled(calls: Calls, call: Callable[..., Any]) -> int:
    """Begin calls until there are too many; how many there are."""
    count = 0
    while not calls.is_full:
        calls.start(function(call))
        count += 1
    return count


def test_a_thousand_in_progress_are_the_most(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        calls, gate, room = opened(), asyncio.Event(), list[bool]()
        calls.on_room = lambda: room.append(calls.is_full)

        async def waits() -> None:
            await gate.wait()

        assert filled(calls, waits) == module.MOST == 1000
        await asyncio.sleep(0.01)
        assert calls.is_full
        assert room == []
        gate.set()
        await until(lambda: not calls._tasks)
        assert room == [False] * len(room) != []

    run(main)


def test_those_that_wait_for_an_inline_app_are_counted_and_room_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        turns, room, seen = Turns(), list[bool](), list[int]()
        calls = opened(turns)
        calls.on_room = lambda: room.append(calls.is_full)
        await turns.turn.acquire()  # a response is in progress
        most = filled(calls, lambda: seen.append(1))
        assert module.MOST - 1 <= most <= module.MOST
        turns.turn.release()
        await until(lambda: len(seen) == most)
        await until(lambda: room)
        assert not any(room)

    run(main)


def test_those_that_wait_for_a_thread_are_counted_and_room_is_told() -> None:
    async def main() -> None:
        gate, room, seen = threading.Event(), list[bool](), list[int]()
        calls = opened(in_a_thread)
        calls.on_room = lambda: room.append(calls.is_full)

        def waits() -> None:
            gate.wait(20)
            seen.append(1)

        most = filled(calls, waits)
        gate.set()
        await until(lambda: len(seen) == most)
        await until(lambda: room)
        assert not any(room)

    run(main)
