"""Handles the signals of a worker that serves: with its own handlers, and also with those of its app.

A process has one handler for a signal, and an event loop has one callback. Apps and their libraries set some,
at import, at startup or later. They want to be called too, but a worker that ignores the signal is no use to
them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
HANDLED = (*ENDING, signal.SIGUSR1)

Callback = Callable[..., object]

logger = logging.getLogger("gunicorn.error")


class LoopSignals:
    """Stands before a loop's ``add_signal_handler`` and ``remove_signal_handler``, which apps call."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._add: Callback = loop.add_signal_handler
        self._remove: Callback = loop.remove_signal_handler
        self._ours: dict[int, Callback] = {}
        self._apps: dict[int, Callback] = {}  # callbacks of the loop
        self._plain: dict[int, Callback] = {}  # handlers of the process
        self._arrived: set[int] = set()  # the app was told, or is about to be
        self._told_ahead: set[int] = set()  # told to the app before they arrived
        self._put("add_signal_handler", self.add)
        self._put("remove_signal_handler", self.remove)

    def _put(self, name: str, function: Callback) -> None:
        with contextlib.suppress(AttributeError):  # a loop of another kind: its apps replace ours
            setattr(self._loop, name, function)

    # --- what the app calls

    def add(self, number: int, callback: Callback, *args: Any) -> None:
        if number not in self._ours:
            self._add(number, callback, *args)
        if number in HANDLED:
            self._apps[number] = partial(callback, *args)

    def remove(self, number: int) -> bool:
        theirs = self._apps.pop(number, None) is not None
        return theirs if number in self._ours else bool(self._remove(number))

    # --- what the worker calls

    def take(self, number: int, callback: Callback) -> None:
        """Call this one from now on, and then the app's."""
        before = signal.getsignal(number)
        if number in ENDING and number not in self._apps and callable(before):
            self._plain[number] = before
        self._ours[number] = callback
        self._add(number, self._heard, number)

    def _heard(self, number: int) -> None:
        self._arrived.add(number)
        self._ours[number](signal.Signals(number))
        if number != signal.SIGTERM:  # that one's handler is the server's, which tells the app
            self.tell_app(number, None)
        if number in self._told_ahead:
            self._told_ahead.discard(number)
        else:
            self._tell_loops_callback(number)

    def tell_app(self, number: int, frame: Any) -> None:
        """Of a signal that has arrived, or of what it will say: call the handler that the app had set before
        ours was."""
        self._arrived.add(number)
        if number in self._plain and number not in self._told_ahead:
            _call(partial(self._plain[number], number, frame), "the app's handler of a signal")

    def tell_ahead(self, number: int) -> None:
        """The arbiter has said what its signal is to say. That may arrive when the worker handles none any
        more: tell the app now, unless it has arrived."""
        if number not in self._arrived:
            self.tell_app(number, None)
            self._tell_loops_callback(number)
            self._told_ahead.add(number)

    def _tell_loops_callback(self, number: int) -> None:
        if number in self._apps:
            _call(self._apps[number], "a signal handler of the app's event loop")

    def release(self) -> None:
        """Give the loop its own methods back: when it is closed it removes what it has by these."""
        for name in ("add_signal_handler", "remove_signal_handler"):
            with contextlib.suppress(AttributeError):
                delattr(self._loop, name)
        for number in HANDLED:
            self._remove(number)

    def ignore(self) -> None:
        """The worker ends: a signal has nothing more to say, and may not kill it.

        A loop that is closed, and Python when it finalizes, put back the default action of what they
        handled, which is the end of the process; what is ignored stays so. They are blocked while they have
        no handler.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        try:
            self.release()
            for number in HANDLED:
                signal.signal(number, signal.SIG_IGN)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _call(handler: Callback, what: str) -> None:
    """Most handlers that raise SystemExit are there for processes that nothing else would end."""
    try:
        handler()
    except (KeyboardInterrupt, SystemExit):
        pass
    except Exception:
        logger.exception("%s has failed", what)
