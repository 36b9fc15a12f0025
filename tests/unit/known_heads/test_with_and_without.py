"""Random pieces of requests: nobody can tell whether a head was known."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multicore_server.connections import factory
from multicore_server.connections.known_heads import END
from multicore_server.ipc.scoreboard import Scoreboard
from multicore_server.worker.cycle import installed
from tests.unit.fake_transport import GET, LAST, POST
from tests.unit.known_heads.served import EMPTY, HEAD, LATER, LATER_LAST, NOT_KNOWN, OLD, Worker

UNREAD = b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n"
UNUSUAL = ("100-continue", "line feeds", "an upgrade", "no host", "a tunnel")
PIECES = [GET, HEAD, LAST, EMPTY, POST, OLD, GET + GET, GET + GET[:9], GET + b"\r", GET[:9], GET[9:], b"\r",
          b"\r\n", END, b"body", b"junk\r\n\r\n", LATER, LATER_LAST, UNREAD,
          *(NOT_KNOWN[name] for name in UNUSUAL)]  # fmt: skip
STEPS = st.lists(st.sampled_from([*range(len(PIECES)), "turn", "turn", "next"]), max_size=30)


@contextmanager
def logged() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def outcome(steps: list[Any], *, without: bool) -> Any:
    """What the app has seen, each client got, and the log says, of pieces that come on connections one after
    the other."""
    with pytest.MonkeyPatch.context() as patch, installed(Scoreboard(1).row(0)), logged() as lines:
        if without:
            patch.setattr(factory, "AT_BEGIN", set())
        worker = Worker()
        assert hasattr(worker.connect(), "heads") is not without
        for head in (GET, HEAD, LAST, EMPTY, LATER, LATER_LAST):
            worker.ask(worker.connect(), head)
        connections = [worker.connect()]
        for step in steps:
            if step == "next":
                connections.append(worker.connect())
            elif step == "turn":
                worker.turn()
            else:
                worker.feed(connections[-1], PIECES[step])
        worker.turn(40)
        seen = [(it.transport.written, it.transport.is_closing(), it.phase) for it in connections]
        worker.close()
        return worker.app.scopes, worker.app.bodies, seen, lines


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_nobody_can_tell_whether_a_head_was_known(steps: list[Any]) -> None:
    assert outcome(steps, without=False) == outcome(steps, without=True)
