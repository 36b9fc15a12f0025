"""Makes the protocols of a worker's connections."""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from functools import partial
from inspect import get_annotations
from typing import Any

from httptools import HttpRequestParser
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from multicore_server.connections.lean import LeanHttpTools
from multicore_server.connections.protocol import MovableH11, MovableHttpTools, MovableProtocol
from multicore_server.connections.strict import strict
from multicore_server.hosts import Feature, lacks

OWN = {"parser", "pipeline"}  # what uvicorn's constructor makes for each connection anew


@functools.cache
def movable(protocol: Any) -> Any:
    """The movable form of one of uvicorn's HTTP protocols; any other class as it is."""
    if issubclass(protocol, H11Protocol):
        mixin: type[MovableProtocol] = MovableH11
        moves = Feature.H11_MOVES
    elif hasattr(protocol, "on_message_begin"):
        mixin, moves = _for_httptools(protocol), Feature.HTTPTOOLS_MOVES
    else:
        return protocol
    if lacks(moves):
        return protocol
    name = f"Movable{protocol.__name__}"
    protocol = strict(protocol)
    own = {
        "_made_by_uvicorn" if mixin is LeanHttpTools else "_made": protocol.connection_made,
        "_lost": protocol.connection_lost,
        "_receive": protocol.data_received,
        "_complete": protocol.on_response_complete,
    }
    return type(name, (mixin, protocol), own)


def _for_httptools(protocol: Any) -> type[MovableProtocol]:
    """A subclass of uvicorn's may have its own way with what the lean form does."""
    taken = ("connection_made", "on_response_complete", "timeout_keep_alive_handler", "resume_writing",
             "_unset_keepalive_if_required")  # fmt: skip
    same = all(getattr(protocol, name, None) is getattr(HttpToolsProtocol, name, None) for name in taken)
    return LeanHttpTools if same else MovableHttpTools


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
        if issubclass(protocol, LeanHttpTools):
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
