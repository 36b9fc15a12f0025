"""Shows what every thread and every task of a worker is doing, without stopping any of them."""

from __future__ import annotations

import asyncio
import linecache
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, TypedDict

from multicore_server.worker.standstill import awaited, frames

MOST_THREADS = 64
MOST_TASKS = 200
MOST_LINES = 40  # of a stack: the innermost ones
MOST = 48 * 1024  # characters in all: the answer is one message


class Stack(TypedDict):
    """``lines``: the innermost last, as in a traceback."""

    name: str
    lines: list[str]


class Stacks(TypedDict):
    threads: list[Stack]
    tasks: list[Stack] | None
    left_out: int  # threads and tasks there was no room for


def take(loop: asyncio.AbstractEventLoop | None, *, tasks: bool = False) -> Stacks:
    """May be called by any thread: the loop's own while it runs, another one while it is blocked."""
    room = Room()
    threads = [it for it in _threads() if room.has(it, MOST_THREADS)]
    room.number = 0
    found = [it for it in _tasks(loop) if room.has(it, MOST_TASKS)] if tasks and loop is not None else None
    return {"threads": threads, "tasks": found, "left_out": room.left_out}


class Room:
    """For what fits into one message."""

    def __init__(self) -> None:
        self.number = 0
        self.left_out = 0
        self._left = MOST

    def has(self, stack: Stack, most: int) -> bool:
        size = len(stack["name"]) + sum(len(line) + 8 for line in stack["lines"]) + 40
        if size > self._left or self.number >= most:
            self.left_out += 1
            return False
        self.number += 1
        self._left -= size
        return True


def _threads() -> Iterator[Stack]:
    """The main thread first."""
    tops = sys._current_frames()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident in sorted(tops, key=lambda it: it != threading.main_thread().ident):
        lines = [_line(frame) for frame in frames(tops[ident])]
        yield {"name": names.get(ident, f"{ident:#018x}"), "lines": _shown(lines)}


def _tasks(loop: asyncio.AbstractEventLoop) -> Iterator[Stack]:
    for task in sorted(asyncio.all_tasks(loop), key=lambda it: it.get_name()):
        coroutine: Any = task.get_coro()
        name = f"{task.get_name()} {getattr(coroutine, '__qualname__', coroutine)}"
        yield {"name": name, "lines": [_told(step) for step in awaited(coroutine)][-MOST_LINES:]}


def _told(step: Any) -> str:
    """The line at which it waits for the next step; the last one may be something without a frame."""
    if isinstance(step, FrameType):
        return _line(step)
    text = repr(step)
    return text if len(text) < 200 else f"{text[:200]}..."


def _line(frame: FrameType) -> str:
    code, number = frame.f_code, frame.f_lineno
    source = linecache.getline(code.co_filename, number or 0).strip()
    return f"{code.co_filename}:{number} in {code.co_name}" + (f": {source}" if source else "")


def _shown(innermost_first: list[str]) -> list[str]:
    return innermost_first[:MOST_LINES][::-1]
