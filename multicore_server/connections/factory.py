"""Makes the protocols of a worker's connections."""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from functools import partial
from typing import Any

from httptools import HttpRequestParser
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from multicore_server.connections.lean import ATTRIBUTES, LeanHttpTools
from multicore_server.connections.protocol import MovableH11, MovableHttpTools, MovableProtocol
from multicore_server.connections.room import make_room
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
    that is what was known when this was written, the rest becomes the class's.
    """

    def __init__(self, protocol: Any, **given: Any) -> None:
        self._make = partial(protocol, **given)
        self._class: Any = None
        self._app: Any = None
        if issubclass(protocol, LeanHttpTools):
            one, other = vars(self._make()), vars(self._make())
            if {name for name in one if one[name] is not other.get(name)} == OWN:
                shared = {name: value for name, value in one.items() if name not in {*OWN, "app"}}
                self._class = type(protocol.__name__, (protocol,), shared)
                self._app = one["app"]  # a function would be a method in a class
                make_room(self._class.__new__(self._class), ATTRIBUTES)

    def __call__(self) -> Any:
        if self._class is None:
            return self._make()
        made = self._class.__new__(self._class)
        made.app = self._app
        made.parser = parser = HttpRequestParser(made)
        with contextlib.suppress(AttributeError):  # httptools before 0.6.3, as in uvicorn
            parser.set_dangerous_leniencies(lenient_data_after_close=True)
        made.pipeline = deque()
        return made
