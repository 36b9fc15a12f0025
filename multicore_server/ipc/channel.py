"""A channel between the arbiter and one of its children: a socket pair that keeps message boundaries.

Pure: the standard library alone. Neither side ever waits for the other or gets an exception from it.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Generic, NamedTuple

from multicore_server.ipc.messages import (
    MAX_MESSAGE,
    MAX_TRACE,
    MAX_WORDS,
    Answer,
    Command,
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
)
from multicore_server.ipc.names import Interface, Reason

# macOS has no SOCK_SEQPACKET for Unix sockets.
KIND = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM
MOST_AT_ONCE = 64  # messages of one child that are read before the others get a turn


class Unreadable(NamedTuple):
    """Something has arrived that is not a message; it is dropped."""

    why: str


class Channel(Generic[M]):
    """Both ends, before the fork; each process then closes the other's end.

    ``accepted`` are the classes of messages that the arbiter takes from this child.
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
        """The messages that have arrived, at most so many. What cannot be read is told once."""
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
    """A worker's: it tells its arbiter that it is ready, that it wants to be replaced, and its last words.

    The arbiter talks back by signals alone.
    """

    def __init__(self) -> None:
        super().__init__(WorkerReady, RetireRequest, LastWords)

    def ready(self, interface: Interface) -> None:
        _send(self.child_end, WorkerReady(interface))

    def retire(self, reason: Reason, *, draining: bool = False) -> None:
        _send(self.child_end, RetireRequest(reason, draining))

    def last_words(self, words: str, trace: str = "") -> None:
        _send(self.child_end, LastWords(words[:MAX_WORDS], trace[-MAX_TRACE:]))


class MonitorChannel(Channel[Command]):
    """The monitor's: it passes on the commands of operators."""

    def __init__(self) -> None:
        super().__init__(ReloadCommand, RestartCommand, ScaleCommand, StopCommand, ResetCommand)

    def answer(self, answer: Answer) -> None:
        """To the monitor. If its end is full or closed, the answer is lost: who waits has a time limit."""
        _send(self.arbiter_end, replace(answer, text=answer.text[:MAX_WORDS]))


def _send(end: socket.socket, message: Message) -> None:
    # OSError: the other process is gone or stopped; lifeline, reaping and time limits find that out.
    # ValueError: the message is too long, or the end is closed (a negative descriptor).
    with contextlib.suppress(OSError, ValueError):
        end.send(encode(message))
