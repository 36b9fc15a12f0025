"""Runs a coroutine on the event loop that uvicorn has chosen, on every supported Python."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

Factory = Callable[[], asyncio.AbstractEventLoop]


def run(main: Coroutine[Any, Any, None], loop_factory: Factory | None) -> None:
    """As ``asyncio.run``, with the loop that ``loop_factory`` makes; None: the event loop policy's."""
    if sys.version_info >= (3, 11):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main)
    else:
        run_by_hand(main, loop_factory)


def run_by_hand(main: Coroutine[Any, Any, None], loop_factory: Factory | None) -> None:
    """What ``asyncio.Runner`` does, for Python 3.10, which has none."""
    loop = asyncio.new_event_loop() if loop_factory is None else loop_factory()
    try:
        if loop_factory is None:
            asyncio.set_event_loop(loop)
        loop.run_until_complete(main)
    finally:
        try:
            _cancel_all_tasks(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            if loop_factory is None:
                asyncio.set_event_loop(None)
            loop.close()


def _cancel_all_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what is left and report what fails in doing so."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    for task in tasks:
        failed = None if task.cancelled() else task.exception()
        if failed is not None:
            text = "unhandled exception during the shutdown of the event loop"
            loop.call_exception_handler({"message": text, "exception": failed, "task": task})
