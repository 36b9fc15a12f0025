"""Hides the running event loop from code in its thread, which finds no running loop in any WSGI server.

Otherwise Django's ORM and asgiref refuse to work.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.events import _set_running_loop
from collections.abc import Iterator
from typing import Any


class HiddenLoop:
    """To be made while the loop runs, or with that loop."""

    __slots__ = ("_loop", "_task")

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = None

    def hide_loop(self) -> None:
        """Hide the running loop, so that the app's code finds none and may run one of its own."""
        if sys.version_info >= (3, 14):  # one current task per thread there, not per loop
            self._task = asyncio.current_task(self._loop)
            if self._task is not None:
                asyncio.tasks._leave_task(self._loop, self._task)
        _set_running_loop(None)

    def show_loop(self) -> None:
        """Undo `hide_loop`."""
        _set_running_loop(self._loop)
        if sys.version_info >= (3, 14) and self._task is not None:
            asyncio.tasks._enter_task(self._loop, self._task)

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        self.hide_loop()
        try:
            yield
        finally:
            self.show_loop()
