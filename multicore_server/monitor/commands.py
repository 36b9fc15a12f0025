"""Checks the commands of operators, sends them to the arbiter and waits for its answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import NamedTuple

from multicore_server.ipc.messages import (
    MAX_MESSAGE,
    Answer,
    Command,
    MessageError,
    ReloadCommand,
    ResetCommand,
    RestartCommand,
    ScaleCommand,
    StopCommand,
    decode,
    encode,
)

PATIENCE = 10.0  # seconds that the arbiter has to begin what a command asks for
ON_ITS_WAY = 1.0  # seconds more for the answer
_CHANGE = re.compile(r"[+-][1-9]\d{0,5}", re.ASCII)
NO_ID = 0  # of a command that is not sent yet
MOST = 1_000_000  # workers, and instances: nothing is that large


class ArbiterError(Exception):
    """The arbiter cannot be asked, or does not answer. The text is one line."""


# --- what an operator has sent ---


def parse(name: str, body: bytes) -> Command:
    """The command with this name of `COMMANDS`, of a JSON object with its arguments; an empty body is an
    empty object. `ArbiterClient.ask` gives the command its id and its deadline. Raises ValueError with one
    line."""
    try:
        given = json.loads(body) if body.strip() else {}
    except ValueError:  # also of what is no UTF-8
        raise ValueError("the body is not JSON") from None
    except RecursionError:
        raise ValueError("the body is nested too deeply") from None
    if not isinstance(given, dict):
        raise ValueError('the body is not a JSON object such as {"workers": 4}')
    parser = COMMANDS[name]
    if strange := sorted(given.keys() - set(parser.arguments)):
        accepted = ", ".join(parser.arguments) or "nothing"
        raise ValueError(f"{name} takes {accepted}, not {_shown(strange[0])}")
    return parser.make(given.get)


def _shown(name: str) -> str:
    return json.dumps(name if len(name) <= 40 else name[:40] + "...")


def instances_of(value: object) -> list[int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(_is_whole(it) and 0 <= it < MOST for it in value):
        raise ValueError("instances: give a list of instance numbers such as [0, 2], or leave it out for all")
    return sorted(set(value))


def _workers(value: object) -> int | str:
    if isinstance(value, str):
        text = value.strip().lower()
        if text == "max" or _CHANGE.fullmatch(text):
            return text
        if re.fullmatch(r"\d{1,6}", text, re.ASCII):
            value = int(text)
    if isinstance(value, int) and _is_whole(value) and 1 <= value < MOST:
        return value
    raise ValueError('workers: give a number from 1, a change such as "+2" or "-1", or "max"')


def _graceful(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, bool):
        raise ValueError("graceful: give true or false")
    return value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class Parser(NamedTuple):
    """``make`` gets a function that returns the value of an argument, None where it was not given."""

    arguments: tuple[str, ...]
    make: Callable[[Callable[[str], object]], Command]


COMMANDS = {
    "reload": Parser((), lambda _: ReloadCommand(NO_ID)),
    "restart": Parser(("instances",), lambda given: RestartCommand(NO_ID, instances_of(given("instances")))),
    "scale": Parser(("workers",), lambda given: ScaleCommand(NO_ID, _workers(given("workers")))),
    "stop": Parser(("graceful",), lambda given: StopCommand(NO_ID, _graceful(given("graceful")))),
    "reset": Parser((), lambda _: ResetCommand(NO_ID)),
}


# --- the way to the arbiter ---


class ArbiterClient:
    """The monitor's end of the channel. Answers may come in any order."""

    def __init__(self, channel: socket.socket, patience: float = PATIENCE) -> None:
        self._channel = channel
        self._patience = patience
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}

    def listen(self) -> None:
        """Read answers in the running loop from now on."""
        asyncio.get_running_loop().add_reader(self._channel, self._receive)

    async def ask(self, command: Command) -> Answer:
        """Give a command an id and a deadline, send it, and return the arbiter's answer.

        Raises ArbiterError, and TimeoutError where none comes in time: then the command was not begun, and is
        not begun later.
        """
        number = next(self._numbers)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._send(replace(command, id=number, deadline=time.monotonic() + self._patience))
            return await asyncio.wait_for(answer, self._patience + ON_ITS_WAY)
        except asyncio.TimeoutError:  # before 3.11 it is no TimeoutError
            raise TimeoutError(f"the arbiter has not answered within {self._patience:g} s") from None
        finally:
            del self._waiting[number]

    def _send(self, command: Command) -> None:
        try:
            self._channel.send(encode(command))
        except ValueError as exc:
            raise ArbiterError(f"the command is too long: {exc}") from None
        except BlockingIOError:
            raise ArbiterError("the arbiter is too busy; try again") from None
        except OSError as exc:
            raise ArbiterError(f"the arbiter cannot be asked: {exc.strerror}") from None

    def _receive(self) -> None:
        try:
            data = self._channel.recv(MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up()
            return
        with contextlib.suppress(MessageError):
            answer = decode(data, Answer)
            waiting = self._waiting.get(answer.id)  # it may have come too late
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)

    def _hang_up(self) -> None:
        asyncio.get_running_loop().remove_reader(self._channel)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ArbiterError("the arbiter has exited"))
