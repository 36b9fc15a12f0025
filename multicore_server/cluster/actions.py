"""Actions: functions of the app that an operator calls in its workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from multicore_server.cluster.calls import Calls, Done, Function

BUILT_IN = frozenset({"gc", "memory", "stacks", "tracemalloc"})  # names that every worker has


class NoActionError(LookupError):
    """There is none of that name: one line."""


class Actions:
    """By name. PM2: ``pmx.action`` and ``pm2 trigger``."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._actions: dict[str, Function] = {}

    def add(self, name: str, function: Callable[..., Any]) -> None:
        """Raises TypeError, and ValueError for the name of an action that is built in."""
        if not isinstance(name, str) or not name.strip():
            raise TypeError(f"the name of an action must be a string, not {name!r}")
        if name in BUILT_IN:
            raise ValueError(f"the action {name!r} is built in; give yours another name")
        self._register(name, function)

    def build_in(self, functions: Iterable[tuple[str, Callable[..., Any]]]) -> None:
        """Those with the names of `BUILT_IN`."""
        for name, function in functions:
            self._register(name, function)

    def _register(self, name: str, function: Callable[..., Any]) -> None:
        self._actions[name] = Function.of(f"the action {name!r}:", function)

    def names(self) -> list[str]:
        return sorted(self._actions)

    def start(self, name: str, given: Any, done: Done) -> None:
        """``given``: an object has the arguments by name, a list by position; what is neither is the only
        one, and None is none. In the loop's thread; never raises."""
        function = self._actions.get(name)
        if function is None:
            done(None, NoActionError(f"there is no action {name!r}; there are {', '.join(self.names())}"))
            return
        positional, named = _arguments(given)
        call = function._replace(call=lambda: function.call(*positional, **named))
        self._calls.start(call, done=done)


def _arguments(given: Any) -> tuple[list[Any], dict[str, Any]]:
    if given is None:
        return [], {}
    if isinstance(given, dict):
        return [], given
    return (given if isinstance(given, list) else [given]), {}
