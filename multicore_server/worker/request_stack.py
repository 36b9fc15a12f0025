"""Finds where a request waits: the frames of its task, or of the thread that its task waits for.

Pure, except for reading the source of the lines.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from multicore_server.worker.standstill import LOOPS, OURS, SERVERS, awaited, frames
from multicore_server.wsgi.exchange import Exchange

DEEPEST = 30  # frames that are shown
LEAST = 5  # frames that are shown where none is the app's
# What calls the app in a thread.
AROUND = SERVERS | {"threading", "concurrent", "contextvars", "anyio", "asyncio"}


def tasks_of_cycles(loop: asyncio.AbstractEventLoop) -> dict[Any, asyncio.Task[Any]]:
    """The tasks in which uvicorn's cycles run an app."""
    found = {}
    for task in asyncio.all_tasks(loop):
        frame = getattr(task.get_coro(), "cr_frame", None)
        if frame is not None and frame.f_code.co_name == "run_asgi":
            found[frame.f_locals.get("self")] = task
    return found


def stack_of(task: asyncio.Task[Any] | None, loops: int) -> str:
    """The lines of a request's stack, the innermost last, as in a traceback; "" where there are none.
    ``loops`` is the event loop's thread: without a task the app runs there, and so does a task that runs now.
    To be called from there, or from another thread while that thread runs the app."""
    if task is None or getattr(task.get_coro(), "cr_running", False):
        found = _within_loop(_of_thread(loops))
    else:
        found = list(_frames_of(task))
        if (thread := _thread_in(found)) is not None:
            found = _of_thread(thread) or found
    shown = _without_servers(found)[-DEEPEST:]
    summary = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in shown)
    return "".join(summary.format()).rstrip()


def _of_thread(number: int) -> list[FrameType]:
    return list(frames(sys._current_frames().get(number)))[::-1]


def _within_loop(found: list[FrameType]) -> list[FrameType]:
    """Without the event loop's own frames, and what is around it. An app that runs inline may run another
    loop: that one is its own affair."""
    is_loop = [frame.f_code.co_filename.endswith(LOOPS) for frame in found]
    if True not in is_loop:
        return found
    first = is_loop.index(True)
    return found[is_loop.index(False, first) :] if False in is_loop[first:] else found


def _frames_of(task: Any) -> Iterator[FrameType]:
    """Of a task that is suspended: each coroutine, then what it awaits, also where that is another task."""
    seen: set[Any] = set()
    while isinstance(task, asyncio.Task) and task not in seen:
        seen.add(task)
        yield from (step for step in awaited(task.get_coro()) if isinstance(step, FrameType))
        task = getattr(task, "_fut_waiter", None)


def thread_awaited(task: asyncio.Task[Any]) -> int | None:
    """The thread in which a WSGI app runs, or in which anyio calls a function for this suspended task."""
    return _thread_in(list(_frames_of(task)))


def _thread_in(found: Sequence[FrameType]) -> int | None:
    for frame in reversed(found[-2:]):
        for value in list(frame.f_locals.values()):
            if isinstance(value, Exchange):
                return value.thread
            if isinstance(value, threading.Thread):
                return value.ident
    return None


def _without_servers(found: list[FrameType]) -> list[FrameType]:
    """From the first frame on that neither the server nor what surrounds an app in a thread has."""
    for number, frame in enumerate(found):
        module = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if module not in AROUND and not frame.f_code.co_filename.startswith(OURS):
            return found[number:]
    return found[-LEAST:]
