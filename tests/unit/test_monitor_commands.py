"""Commands are checked before the arbiter sees them, and the arbiter may be slow, full or gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from multicore_server.ipc.messages import (
    Answer,
    Command,
    ReloadCommand,
    ResetCommand,
    RestartCommand,
    ScaleCommand,
    StopCommand,
    decode,
    encode,
)
from multicore_server.ipc.seqpacket import KIND
from multicore_server.monitor.commands import COMMANDS, ON_ITS_WAY, ArbiterClient, ArbiterError, parse


@pytest.mark.parametrize(
    ("name", "body", "command"),
    [
        ("reload", "", ReloadCommand(0)),
        ("reload", " {} ", ReloadCommand(0)),
        ("reset", "{}", ResetCommand(0)),
        ("restart", "{}", RestartCommand(0, None)),
        ("restart", '{"instances": null}', RestartCommand(0, None)),
        ("restart", '{"instances": [2, 0, 2]}', RestartCommand(0, [0, 2])),
        ("scale", '{"workers": 4}', ScaleCommand(0, 4)),
        ("scale", '{"workers": "4"}', ScaleCommand(0, 4)),
        ("scale", '{"workers": "+2"}', ScaleCommand(0, "+2")),
        ("scale", '{"workers": "-1"}', ScaleCommand(0, "-1")),
        ("scale", '{"workers": " Max "}', ScaleCommand(0, "max")),
        ("stop", "", StopCommand(0, graceful=True)),
        ("stop", '{"graceful": false}', StopCommand(0, graceful=False)),
    ],
)
def test_what_is_right(name: str, body: str, command: Command) -> None:
    assert parse(name, body.encode()) == command


NO_WORKERS: list[Any] = [0, -1, True, 1.5, None, [], "0", "+0", "+", "--1", "many", "1e3", 10**9, "\u0661"]
NO_LISTS: list[Any] = [[], 1, "0", [-1], [True], [1.0], [None], {}, [10**6], [10**30]]


@pytest.mark.parametrize(
    ("command", "body", "text"),
    [
        ("reload", b"{", "the body is not JSON"),
        ("reload", b"\xff\xfe", "the body is not JSON"),
        ("reload", b"[" * 100_000, "the body is nested too deeply"),
        ("reload", b"[]", "the body is not a JSON object"),
        ("reload", b"null", "the body is not a JSON object"),
        ("reload", b'{"x": 1}', 'reload takes nothing, not "x"'),
        ("scale", b'{"worker": 1}', 'scale takes workers, not "worker"'),
        ("scale", b'{"workers": 1, "a\\nb": 1}', r'scale takes workers, not "a\\nb"'),
        ("scale", b"", "workers: give a number from 1"),
        *(("scale", json.dumps({"workers": it}).encode(), "workers: give a number") for it in NO_WORKERS),
        *(("restart", json.dumps({"instances": it}).encode(), "instances: give a list") for it in NO_LISTS),
        ("stop", b'{"graceful": 1}', "graceful: give true or false"),
        ("stop", b'{"graceful": "no"}', "graceful: give true or false"),
    ],
)
def test_what_is_wrong_is_one_line(command: str, body: bytes, text: str) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        parse(command, body)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_every_command_of_the_design_is_there() -> None:
    assert COMMANDS.keys() == {"reload", "restart", "scale", "stop", "reset"}


# --- the channel ---


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The arbiter's end, which waits, and the monitor's."""
    arbiter, monitor = socket.socketpair(socket.AF_UNIX, KIND)
    arbiter.settimeout(20)
    monitor.setblocking(False)
    with arbiter, monitor:
        yield arbiter, monitor


Ends = tuple[socket.socket, socket.socket]


def ask(ends: Ends, *before: Any, patience: float = 20) -> Answer:
    """The answer to one command; ``before`` that, these messages have come."""

    async def asked() -> Answer:
        arbiter = ArbiterClient(ends[1], patience)
        arbiter.listen()
        for message in before:
            ends[0].send(message if isinstance(message, bytes) else json.dumps(message).encode())
        task = asyncio.create_task(arbiter.ask(ScaleCommand(0, 2)))
        await asyncio.sleep(0)
        return await task

    return asyncio.run(asked())


def test_what_the_arbiter_gets(ends: Ends) -> None:
    before = time.monotonic()
    with pytest.raises(TimeoutError, match=r"the arbiter has not answered within 0\.05 s"):
        ask(ends, patience=0.05)
    command = decode(ends[0].recv(65536), ScaleCommand)
    assert replace(command, deadline=None) == ScaleCommand(1, 2)
    assert command.deadline is not None
    assert before + 0.05 <= command.deadline < time.monotonic() - ON_ITS_WAY / 2


def test_an_answer_may_be_on_its_way_when_the_time_is_over(ends: Ends) -> None:
    async def asked() -> Answer:
        arbiter = ArbiterClient(ends[1], 0.05)
        arbiter.listen()
        task = asyncio.create_task(arbiter.ask(ResetCommand(0)))
        await asyncio.sleep(0.1)
        ends[0].send(encode(Answer(1, True, "done")))
        return await task

    assert asyncio.run(asked()) == Answer(1, True, "done")


def test_what_is_no_answer_to_us_is_passed_over(ends: Ends) -> None:
    answer = Answer(1, True, "done")
    noise = [b"{", b"\xff", b"[]", b'{"ok": true}', encode(Answer(7, False, "")), encode(ScaleCommand(1, 2))]

    async def asked() -> Answer:
        arbiter = ArbiterClient(ends[1], 20)
        arbiter.listen()
        task = asyncio.create_task(arbiter.ask(ResetCommand(0)))
        await asyncio.sleep(0)  # it is sent
        for message in (*noise, encode(answer), encode(answer)):
            ends[0].send(message)
        found = await task
        await asyncio.sleep(0.05)  # the second answer comes too late
        return found

    assert asyncio.run(asked()) == answer


def test_an_arbiter_that_is_gone(ends: Ends) -> None:
    ends[0].close()
    with pytest.raises(ArbiterError, match="the arbiter cannot be asked: Broken pipe"):
        ask(ends)


def test_an_arbiter_that_goes_while_it_is_asked(ends: Ends) -> None:
    async def asked() -> None:
        arbiter = ArbiterClient(ends[1], 20)
        arbiter.listen()
        task = asyncio.create_task(arbiter.ask(StopCommand(0, graceful=True)))
        await asyncio.sleep(0)
        ends[0].close()
        await task

    with pytest.raises(ArbiterError, match="the arbiter has exited"):
        asyncio.run(asked())


def test_an_arbiter_that_reads_nothing(ends: Ends) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            ends[1].send(b"x" * 1000)
    with pytest.raises(ArbiterError, match="too busy; try again"):
        ask(ends)


def test_a_command_that_is_too_long_is_one_line(ends: Ends) -> None:
    async def asked() -> Answer:
        return await ArbiterClient(ends[1], 20).ask(RestartCommand(0, list(range(20_000))))

    with pytest.raises(ArbiterError, match="the command is too long"):
        asyncio.run(asked())
