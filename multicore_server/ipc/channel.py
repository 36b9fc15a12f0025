"""A channel between the arbiter and one of its children: a socket pair that keeps message boundaries.

Pure: the standard library alone. Neither side ever waits for the other or gets an exception from it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Generic, NamedTuple

from multicore_server.ipc.messages import (
    MAX_MESSAGE,
    MAX_TRACE,
    MAX_WORDS,
    Answer,
    AppMessage,
    Command,
    EndOrder,
    LastWords,
    M,
    Message,
    MessageError,
    ReloadCommand,
    ResetCommand,
    RestartCommand,
    RetireRequest,
    ScaleCommand,
    StopCommand,
    WorkerMessage,
    WorkerReady,
    decode,
    encode,
    encode_app_message,
)
from multicore_server.ipc.names import Interface, Reason
from multicore_server.ipc.seqpacket import KIND

MOST_AT_ONCE = 64  # messages of one child that are read in one turn of the arbiter's loop


class Unreadable(NamedTuple):
    """Stands for data that is not a message and was dropped."""

    why: str


class Channel(Generic[M]):
    """Has both ends until the fork. Then each process closes the other's end.

    ``accepted`` lists the classes of messages that the arbiter reads from this child.
    """

    def __init__(self, *accepted: type[M]) -> None:
        self.arbiter_end, self.child_end = socket.socketpair(socket.AF_UNIX, KIND)
        self.arbiter_end.setblocking(False)
        self.child_end.setblocking(False)
        self.ended = False  # the child's end is closed: nothing more comes
        self._accepted = accepted
        self._complained = False

    def close(self) -> None:
        self.arbiter_end.close()
        self.child_end.close()

    def received(self, most: int = MOST_AT_ONCE) -> Iterator[M | Unreadable]:
        """Yield up to ``most`` messages that have arrived. The first unreadable one is reported."""
        for _ in range(most):
            try:
                data = self.arbiter_end.recv(MAX_MESSAGE + 1)
            except OSError:
                return
            if not data:
                self.ended = True
                return
            try:
                yield decode(data, *self._accepted)
            except MessageError as exc:
                if not self._complained:
                    self._complained = True
                    yield Unreadable(str(exc))


class WorkerChannel(Channel[WorkerMessage]):
    """A worker's channel: "I am ready", "replace me", why a boot failed, and what the app tells the arbiter.

    The arbiter sends one thing on it, the order to end; a signal wakes the worker, and anybody may send that.
    """

    def __init__(self) -> None:
        super().__init__(WorkerReady, RetireRequest, LastWords, AppMessage)

    def order_end(self, *, quick: bool) -> None:
        _send(self.arbiter_end, EndOrder(quick))

    def orders(self) -> Iterator[EndOrder]:
        """In the worker: the orders that have come. Raises EOFError where the arbiter is gone."""
        while True:
            try:
                data = self.child_end.recv(MAX_MESSAGE)
            except OSError:
                return
            if not data:
                raise EOFError
            yield decode(data, EndOrder)

    def ready(self, interface: Interface) -> None:
        _send(self.child_end, WorkerReady(interface))

    def retire(self, reason: Reason, *, draining: bool = False) -> None:
        _send(self.child_end, RetireRequest(reason, draining))

    def last_words(self, words: str, trace: str = "") -> None:
        _send(self.child_end, LastWords(words[:MAX_WORDS], trace[-MAX_TRACE:]))

    def tell(self, body: bytes) -> None:
        """Pass a message of the app on, as JSON. Raises OSError where the arbiter has too much to read."""
        self.child_end.send(encode_app_message(body))


class MonitorChannel(Channel[Command]):
    """The monitor's channel: it passes on the commands of operators and gets the answers."""

    def __init__(self) -> None:
        super().__init__(ReloadCommand, RestartCommand, ScaleCommand, StopCommand, ResetCommand)

    def answer(self, answer: Answer) -> None:
        """Send an answer. If the channel is full or closed, it is lost: the client has a time limit."""
        _send(self.arbiter_end, replace(answer, text=answer.text[:MAX_WORDS]))


def _send(end: socket.socket, message: Message) -> None:
    # OSError: the other process is gone or stopped; lifeline, reaping and time limits find that out.
    # ValueError: the message is too long, or the end is closed (a negative descriptor).
    with contextlib.suppress(OSError, ValueError):
        end.send(encode(message))
