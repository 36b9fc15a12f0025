"""A running server that says what a test has written down."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from multicore_server.cli.servers import Begun, GoneError, RunningServer, Trouble
from multicore_server.ipc.report import EventReport, Status


class ScriptedServer(RunningServer):
    """``history`` is what /status says, one after the other; the last one stays. ``asked`` are the commands,
    ``begun`` is the answer to each."""

    def __init__(self, *history: Status | Trouble, pid: int | None = None) -> None:
        super().__init__(Path(f"{pid or os.getpid()}.sock"))
        self.history = list(history)
        self.asked: list[tuple[str, dict[str, object]]] = []
        self.begun: Begun | Trouble = Begun("begun", None)
        self.streams: list[list[EventReport] | Trouble] = []
        self.text = b"multicore_workers 2\n"

    def status(self) -> Status:
        found = self.history.pop(0) if len(self.history) > 1 else self.history[0]
        if isinstance(found, Trouble):
            raise found
        return found

    def metrics(self) -> bytes:
        return self.text

    def command(self, name: str, **arguments: object) -> Begun:
        self.asked.append((name, arguments))
        if isinstance(self.begun, Trouble):
            raise self.begun
        return self.begun

    def events(self, last: int) -> Iterator[EventReport]:
        stream = self.streams.pop(0) if self.streams else GoneError("gone")
        if isinstance(stream, Trouble):
            raise stream
        yield from stream

    def lives(self) -> bool:
        """While there is something left to be said."""
        return bool(self.streams) or len(self.history) > 1

    def __str__(self) -> str:
        return "the server with pid 4000"
