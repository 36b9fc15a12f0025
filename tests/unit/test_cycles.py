"""uvicorn's cycles are made as its constructor makes them, and by it where it does more than is known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given as given_by
from hypothesis import strategies as st
from uvicorn.protocols.http import httptools_impl

from multicore_server.connections.cycles import ADDED, make_by_uvicorn, maker
from multicore_server.connections.flow import Flow
from multicore_server.connections.message_event import UNAWAITED
from multicore_server.ipc.scoreboard import Scoreboard
from multicore_server.worker.cycle import installed

THEIRS: Any = httptools_impl.RequestResponseCycle


def connection(*, expects: bool = False) -> Any:
    return SimpleNamespace(
        scope={"type": "http"},
        transport=object(),
        flow=object(),
        logger=object(),
        access_logger=object(),
        access_log=True,
        server_state=SimpleNamespace(default_headers=[]),
        expect_100_continue=expects,
        on_response_complete=print,
    )


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "uvicorn's"])
@pytest.mark.parametrize("expects", [True, False])
def test_a_cycle_is_as_the_constructor_makes_it(ours: bool, expects: bool) -> None:
    given = connection(expects=expects)
    with installed(Scoreboard(1).row(0)):
        if not ours:
            httptools_impl.RequestResponseCycle = THEIRS  # type: ignore[misc]
        make = maker(given)
        made, expected = make(given, False), make_by_uvicorn(given, False)
    assert make is not make_by_uvicorn
    assert isinstance(made, type(expected))
    for name, value in vars(expected).items():
        if name == "message_event":
            assert made.message_event is UNAWAITED  # `receive` makes one
        else:
            assert getattr(made, name) == value, name
    if ours:
        for name, value in ADDED.items():
            assert getattr(made, name) == getattr(type(expected), name) == value, name


def gets_body(cycle: Any) -> None:
    cycle.body += b"part"
    cycle.message_event.set()


def is_complete(cycle: Any) -> None:
    cycle.more_body = False
    cycle.message_event.set()


def client_leaves(cycle: Any) -> None:
    cycle.disconnected = True
    cycle.message_event.set()


def is_answered(cycle: Any) -> None:
    cycle.response_complete = True
    cycle.message_event.set()


STEPS: dict[str, Callable[[Any], None] | None] = {
    "body": gets_body, "complete": is_complete, "leaves": client_leaves, "answered": is_answered,
    "receive": None, "turn": None,
}  # fmt: skip


async def messages_of(cycle: Any, steps: list[str]) -> list[Any]:
    """What an app receives, and after which steps."""
    received: list[Any] = []

    async def receive() -> None:
        received.append(await cycle.receive())

    tasks = []
    for number, step in enumerate(steps):
        do = STEPS[step]
        if do is not None:
            do(cycle)
        elif step == "receive":
            tasks.append(asyncio.create_task(receive()))
        else:
            await asyncio.sleep(0)
            received.append(number)
    for _ in range(3):
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return received


@given_by(st.lists(st.sampled_from(sorted(STEPS)), max_size=12))
def test_an_app_receives_what_it_does_with_an_event_from_the_start(steps: list[str]) -> None:
    given = connection()
    given.flow = SimpleNamespace(resume_reading=lambda: None)
    given.transport = SimpleNamespace(is_closing=lambda: False)
    make = maker(given)
    ours, theirs = make(given, True), make_by_uvicorn(given, True)
    assert asyncio.run(messages_of(ours, steps)) == asyncio.run(messages_of(theirs, steps))


class WithMore(THEIRS):  # type: ignore[misc]  # it is Any
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.notes: list[str] = []


class WithOneMore(THEIRS):  # type: ignore[misc]  # it is Any
    def __init__(self, *args: Any, again: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)


@pytest.mark.parametrize("cycle", [WithMore, WithOneMore])
def test_uvicorn_makes_those_that_have_more(cycle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httptools_impl, "RequestResponseCycle", cycle)
    make = maker(connection())
    assert make is make_by_uvicorn
    assert type(make(connection(), True)) is cycle


def test_who_sends_waits_while_writing_is_paused() -> None:
    async def main() -> None:
        flow = Flow(None)
        await asyncio.wait_for(flow.drain(), 1)
        for _ in range(2):
            flow.pause_writing()
            flow.pause_writing()
            waiting = [asyncio.ensure_future(flow.drain()) for _ in range(2)]
            await asyncio.sleep(0)
            assert not any(each.done() for each in waiting)
            flow.resume_writing()
            await asyncio.wait_for(asyncio.gather(*waiting), 1)
            flow.resume_writing()
            assert not flow.write_paused

    asyncio.run(main())
