"""uvicorn's cycles are made as its constructor makes them, and by it where it does more than is known."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from uvicorn.protocols.http import httptools_impl

from multicore_server.connections.cycles import ADDED, make_by_uvicorn, maker
from multicore_server.connections.flow import Flow
from multicore_server.connections.message_event import MessageEvent
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
        parser=SimpleNamespace(should_keep_alive=lambda: False),
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
        made, expected = make(given), make_by_uvicorn(given)
    assert make is not make_by_uvicorn
    assert isinstance(made, type(expected))
    for name, value in vars(expected).items():
        if name == "message_event":
            assert isinstance(made.message_event, MessageEvent)
            assert made.message_event is not value
        else:
            assert getattr(made, name) == value, name
    if ours:
        for name, value in ADDED.items():
            assert getattr(made, name) == getattr(type(expected), name) == value, name


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
    assert type(make(connection())) is cycle


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
