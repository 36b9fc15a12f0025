"""Actions: functions of the app that an operator calls in its workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from multicore_server.cluster.calls import Calls, Done, Function

BUILT_IN = frozenset({"gc", "memory", "stacks", "tracemalloc"})  # names that every worker has


class NoActionError(LookupError):
    """No action has this name. The message is one line."""


class Actions:
    """The actions by name. PM2: ``pmx.action`` and ``pm2 trigger``."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._actions: dict[str, Function] = {}

    def add(self, name: str, function: Callable[..., Any]) -> None:
        """Add an action of the app. Raises TypeError, and ValueError for the name of a built-in action."""
        if not isinstance(name, str) or not name.strip():
            raise TypeError(f"the name of an action must be a string, not {name!r}")
        if name in BUILT_IN:
            raise ValueError(f"the action {name!r} is built in; give yours another name")
        self._register(name, function)

    def build_in(self, functions: Iterable[tuple[str, Callable[..., Any]]]) -> None:
        """Add the actions with the names of `BUILT_IN`."""
        for name, function in functions:
            self._register(name, function)

    def _register(self, name: str, function: Callable[..., Any]) -> None:
        self._actions[name] = Function.of(f"the action {name!r}:", function)

    def names(self) -> list[str]:
        return sorted(self._actions)

    def start(self, name: str, given: Any, done: Done) -> None:
        """Start an action, in the loop's thread; never raises.

        ``given`` has the arguments: an object by name, a list by position. None means no argument; any other
        value is the only argument.
        """
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
