"""Makes the protocols of a worker's connections."""

from __future__ import annotations

import contextlib
from collections import deque
from functools import partial
from inspect import get_annotations
from typing import Any

from httptools import HttpRequestParser

from multicore_server.connections.protocol import MovableHttpTools

OWN = {
    "parser",
    "pipeline",
}  # what uvicorn's constructor makes for each connection; the rest is the same for all


class ProtocolFactory:
    """Called for each connection. ``given`` is what uvicorn's constructor gets.

    That finds out, for each connection, what is the same for all of them. Two instances show what is not: if
    that is what was known when this was written, the next ones get a copy of the rest. All that is set on an
    instance later is in that copy too: an instance that grows beyond 30 attributes is made anew by Python.
    """

    def __init__(self, protocol: Any, **given: Any) -> None:
        self._class = protocol
        self._make = partial(protocol, **given)
        self._shared: dict[str, Any] = {}
        if issubclass(protocol, MovableHttpTools):
            one, other = vars(self._make()), vars(self._make())
            if {name for name in one if one[name] is not other.get(name)} == OWN:
                self._shared = {**_set_later(protocol), **one}

    def __call__(self) -> Any:
        if not self._shared:
            return self._make()
        made = self._class.__new__(self._class)
        made.__dict__ = self._shared.copy()
        made.parser = parser = HttpRequestParser(made)
        with contextlib.suppress(AttributeError):  # httptools before 0.6.3, as in uvicorn
            parser.set_dangerous_leniencies(lenient_data_after_close=True)
        made.pipeline = deque()
        return made


def _set_later(protocol: Any) -> dict[str, Any]:
    """The plain attributes of our classes, and their defaults."""
    found: dict[str, Any] = {}
    for base in reversed(protocol.__mro__):
        if base.__module__.startswith(f"{__package__}."):
            annotated = get_annotations(base)
            values = list(vars(base).items())
            found |= {name: it for name, it in values if name in annotated or isinstance(it, int | float)}
    return found
