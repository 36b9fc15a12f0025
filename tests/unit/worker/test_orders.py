"""The arbiter's orders, and signals beside those of the app."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from multicore_server.ipc.channel import WorkerChannel
from multicore_server.ipc.messages import EndOrder, RetireRequest
from multicore_server.settings.table import Settings
from multicore_server.worker.orders import Orders
from multicore_server.worker.signals import HANDLED, LoopSignals
from tests.unit.worker.hired import Hire, Hired


@pytest.fixture
def channel() -> Iterator[WorkerChannel]:
    made = WorkerChannel()
    yield made
    made.close()


# --- orders


def test_the_harshest_order_counts_and_each_is_taken_once(channel: WorkerChannel) -> None:
    orders = Orders(channel)
    assert orders.read() is orders.take() is None
    channel.order_end(quick=False)
    assert orders.read() == orders.take() == EndOrder(quick=False)
    assert orders.take() is None
    channel.order_end(quick=True)
    channel.order_end(quick=False)
    assert orders.take() == EndOrder(quick=True)
    assert orders.take() is None
    assert not orders.ended


def test_an_order_that_nobody_understands_costs_nothing(
    channel: WorkerChannel, caplog: pytest.LogCaptureFixture
) -> None:
    channel.arbiter_end.send(b"{")
    channel.order_end(quick=False)
    orders = Orders(channel)
    assert orders.read() is None
    assert "cannot be read" in caplog.text
    assert orders.read() == EndOrder(quick=False)


def test_the_end_of_the_arbiter_is_noted(channel: WorkerChannel) -> None:
    channel.order_end(quick=False)
    channel.arbiter_end.close()
    orders = Orders(channel)
    assert orders.take() == EndOrder(quick=False)
    assert orders.ended
    channel.order_end(quick=True)  # to nobody: no exception


class Stopped:
    """In a server's place, and in that of its signals."""

    def __init__(self) -> None:
        self.stops: list[bool] = []
        self.told: list[int] = []
        self.signals = self

    def tell_ahead(self, number: int) -> None:
        self.told.append(number)

    def stop(self, *, quick: bool = False) -> None:
        self.stops.append(quick)


def stopped(hired: Hired, **settings: Any) -> list[bool]:
    server = Stopped()
    hired.worker.server = server  # type: ignore[assignment]
    values = Settings(workers=1, **settings)
    hired.worker.context = dataclasses.replace(hired.worker.context, settings=values)
    return server.stops


def test_an_order_ends_a_worker_that_no_signal_reaches(hire: Hire) -> None:
    hired = hire()
    stops = stopped(hired)
    server: Any = hired.worker.server

    async def main() -> None:
        hired.worker.watch(asyncio.get_running_loop())
        hired.channel.order_end(quick=False)
        while not stops:
            await asyncio.sleep(0.001)
        hired.worker.on_signal(signal.SIGTERM)  # the arbiter's, which comes too
        hired.channel.arbiter_end.close()
        while not hired.worker.orders.ended:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        assert not asyncio.get_running_loop().remove_reader(hired.channel.child_end)

    asyncio.run(asyncio.wait_for(main(), 10))
    assert stops == [False]
    assert server.told == [signal.SIGTERM]


def test_a_quick_order_is_told_to_the_app_as_the_signal_that_comes_with_it(hire: Hire) -> None:
    hired = hire()
    stopped(hired)
    server: Any = hired.worker.server
    hired.channel.order_end(quick=True)
    hired.worker.on_signal(signal.SIGQUIT)
    assert server.told == [signal.SIGQUIT]


@pytest.mark.parametrize(
    ("delay", "stops", "heard"),
    [
        (0.0, [False], RetireRequest("manual", draining=True)),
        (5.0, [], RetireRequest("manual", draining=False)),
    ],
)
def test_a_term_of_somebody_elses(hire: Hire, delay: float, stops: list[bool], heard: RetireRequest) -> None:
    hired = hire()
    found = stopped(hired, shutdown_delay=delay)
    assert hired.worker.is_told_to_end() is not bool(delay)
    hired.worker.on_signal(signal.SIGTERM)
    assert (found, hired.heard()) == (stops, [heard])


def test_the_arbiters_term_ends_it_whatever_the_delay(hire: Hire) -> None:
    hired = hire()
    found = stopped(hired, shutdown_delay=5.0)
    hired.channel.order_end(quick=True)
    assert hired.worker.is_told_to_end()
    hired.worker.on_signal(signal.SIGTERM)
    assert (found, hired.heard(), hired.hooks) == ([True], [], ["int"])


# --- signals


@pytest.fixture
def heard() -> Iterator[list[str]]:
    before = {number: signal.getsignal(number) for number in HANDLED}
    yield []
    for number, handler in before.items():
        signal.signal(number, handler)


def raise_in_loop(number: signal.Signals) -> Any:
    os.kill(os.getpid(), number)
    return asyncio.sleep(0.01)


def test_the_apps_callbacks_stand_beside_ours(heard: list[str]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        signals = LoopSignals(loop)
        loop.add_signal_handler(signal.SIGTERM, heard.append, "early")
        await raise_in_loop(signal.SIGTERM)
        signals.take(signal.SIGTERM, lambda number: heard.append(f"ours {number.name}"))
        await raise_in_loop(signal.SIGTERM)
        loop.add_signal_handler(signal.SIGTERM, heard.append, "late")
        await raise_in_loop(signal.SIGTERM)
        assert loop.remove_signal_handler(signal.SIGTERM)
        assert not loop.remove_signal_handler(signal.SIGTERM)
        await raise_in_loop(signal.SIGTERM)
        signals.ignore()
        await raise_in_loop(signal.SIGTERM)

    asyncio.run(main())
    assert heard == ["early", "ours SIGTERM", "early", "ours SIGTERM", "late", "ours SIGTERM"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
@pytest.mark.parametrize("arrives", ["before", "after", "never"])
def test_the_app_hears_once_what_the_arbiter_says_by_a_signal_and_by_an_order(
    heard: list[str], number: signal.Signals, arrives: str
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        signals = LoopSignals(loop)
        signal.signal(number, lambda *_: heard.append("plain"))
        signals.take(number, lambda _: heard.append("ours"))
        if number is signal.SIGTERM:  # as the server does
            loops: Any = signal.getsignal(number)

            def on_term(number: int, frame: Any) -> None:
                loops(number, frame)
                signals.tell_app(number, frame)

            signal.signal(number, on_term)
        loop.add_signal_handler(number, heard.append, "loop's")
        if arrives == "before":
            await raise_in_loop(number)
        signals.tell_ahead(number)
        signals.tell_ahead(number)
        assert heard.count("plain") == heard.count("loop's") == 1
        if arrives == "after":
            await raise_in_loop(number)
        signals.ignore()

    asyncio.run(main())
    assert sorted(heard) == ["loop's", *["ours"] * (arrives != "never"), "plain"]


def test_signals_that_are_not_ours_are_the_apps_alone(heard: list[str]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        LoopSignals(loop)
        loop.add_signal_handler(signal.SIGWINCH, heard.append, "winch")
        await raise_in_loop(signal.SIGWINCH)
        assert loop.remove_signal_handler(signal.SIGWINCH)
        assert not loop.remove_signal_handler(signal.SIGWINCH)

    asyncio.run(main())
    assert heard == ["winch"]


def test_a_handler_from_before_is_called_too_whatever_it_raises(
    heard: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    def exits(*_: Any) -> None:
        heard.append("exits")
        raise SystemExit(3)

    def fails(*_: Any) -> None:
        heard.append("fails")
        raise RuntimeError("no")

    async def main() -> None:
        signals = LoopSignals(asyncio.get_running_loop())
        signal.signal(signal.SIGINT, exits)
        signal.signal(signal.SIGQUIT, fails)
        for number in (signal.SIGINT, signal.SIGQUIT):
            signals.take(number, lambda number: heard.append(number.name))
            await raise_in_loop(number)
        signals.ignore()

    asyncio.run(main())
    assert heard == ["SIGINT", "exits", "SIGQUIT", "fails"]
    assert "the app's handler of a signal has failed" in caplog.text
