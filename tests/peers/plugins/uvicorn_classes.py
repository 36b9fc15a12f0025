"""A pytest plugin: our connections, requests and their shared state in the place of uvicorn's.

What uvicorn's tests import by its name is ours from then on. $PEERS_LOOP is the event loop.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import uvicorn.server
from uvicorn.protocols.http import auto_zttp_impl, h11_impl, httptools_impl, zttp_h2_impl, zttp_impl

from multicore_server.connections.factory import movable
from multicore_server.connections.inline import OpenGate
from multicore_server.connections.state import ConnectionsState
from multicore_server.ipc.scoreboard import Scoreboard
from multicore_server.worker import cycle, meter

from .fixtures import Replacing  # these plugins' folder is not called `tests` there: uvicorn's own is

PROTOCOLS: tuple[tuple[Any, str], ...] = (
    (h11_impl, "H11Protocol"),
    (httptools_impl, "HttpToolsProtocol"),
    (auto_zttp_impl, "AutoZttpProtocol"),  # before the two that it makes: it is told of theirs
    (zttp_impl, "ZttpProtocol"),
    (zttp_h2_impl, "ZttpH2Protocol"),
)
BOARD = Scoreboard(1)


class State(ConnectionsState):
    """Made as uvicorn's ServerState is: of nothing."""

    def __init__(self) -> None:
        super().__init__(BOARD.row(0), OpenGate())


def place() -> None:
    cycle.install(BOARD.row(0), modules=meter.modules_of(zttp_impl.ZttpProtocol))
    for module, name in PROTOCOLS:
        ours = movable(getattr(module, name))
        ours.__name__ = name  # tests ask for it, to skip what its parser cannot do
        setattr(module, name, ours)
    uvicorn.server.ServerState = State  # type: ignore[misc]  # that is what this is for


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": os.environ["PEERS_LOOP"] == "uvloop"}


def pytest_configure(config: pytest.Config) -> None:
    place()
    config.pluginmanager.register(Replacing({"anyio_backend": anyio_backend}))


def pytest_collection_finish(session: pytest.Session) -> None:
    """uvicorn's mocks have what uvicorn asks of a loop and of a transport: ours ask for more."""
    for module in {item.getparent(pytest.Module).obj for item in session.items}:  # type: ignore[union-attr]
        if hasattr(module, "MockLoop") and hasattr(module, "MockTransport"):
            extend_loop(module.MockLoop)
            module.MockTask.done = lambda _: False
            extend_transport(module.MockTransport)


def extend_loop(mock: Any) -> None:
    """With a clock that `run_later` moves on."""

    def call_at(loop: Any, when: float, callback: Any, *args: Any) -> Any:
        return loop.call_later(when - loop.now, callback, *args)

    def run_later(loop: Any, with_delay: float) -> None:
        loop.now += with_delay
        due = [timer for timer in loop._later if timer.delay <= with_delay]
        loop._later = [timer for timer in loop._later if timer not in due]
        for timer in due:
            timer.cancelled = True  # it is not in the list that `cancel` takes it out of
            timer.callback(*timer.args)

    def call_soon(loop: Any, callback: Any, *args: Any) -> Any:
        return loop.call_later(0, callback, *args)

    mock.now = 1000.0
    mock.time = lambda loop: loop.now
    mock.call_at, mock.run_later, mock.call_soon = call_at, run_later, call_soon


def extend_transport(mock: Any) -> None:
    """One whose client takes everything at once."""

    def writelines(transport: Any, parts: Any) -> None:
        transport.write(b"".join(parts))

    mock.get_write_buffer_size = lambda _: 0
    mock.can_write_eof = lambda _: False
    mock.writelines = writelines
    mock.abort = mock.close
