"""Keeps processes that hooks fork in the arbiter (multiprocessing, os.fork) out of serving.

They inherit every descriptor of the arbiter. If they kept the lifeline's end for writing, workers would not
learn that the arbiter is gone, and serve on without it. If they kept the listeners, they would hold the port.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from multicore_server.machine.descriptors import lead_nowhere


def _nothing() -> None:
    """For most there is nothing to do."""


class _Held(NamedTuple):
    lifeline: int
    others: Callable[[], Iterable[int]]


class Forks:
    """Of the arbiter in this process: there is one at most, and there is no way back from
    `os.register_at_fork`."""

    def __init__(self) -> None:
        self._held: _Held | None = None
        self._is_watching = False
        self._forking = threading.local()  # a thread of a hook may fork at the same moment

    def guard(self, lifeline: int, others: Callable[[], Iterable[int]]) -> None:
        """From now on no child keeps ``lifeline``, and none but the arbiter's own keeps the others."""
        self._held = _Held(lifeline, others)
        if not self._is_watching:
            self._is_watching = True
            os.register_at_fork(after_in_child=self._become_child)

    def release(self) -> None:
        """The arbiter has ended."""
        self._held = None

    @contextlib.contextmanager
    def own(self, first: Callable[[], None] = _nothing) -> Iterator[None]:
        """What this thread forks meanwhile is the arbiter's own, and is given what it needs. ``first`` is
        called in it; within another one of these, that one's is."""
        before = self._first()
        self._forking.first = before or first
        try:
            yield
        finally:
            self._forking.first = before

    def _first(self) -> Callable[[], None] | None:
        """Where this thread forks for the arbiter."""
        return getattr(self._forking, "first", None)

    def _become_child(self) -> None:
        held, self._held = self._held, None  # what a child forks is not the arbiter's
        if held is None:
            return
        lead_nowhere([held.lifeline])
        if first := self._first():
            first()
        else:
            lead_nowhere(held.others())


forks = Forks()
