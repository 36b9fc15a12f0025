"""Makes the protocols of a worker's connections."""

from __future__ import annotations

import functools
import inspect
import sys
from collections import deque
from functools import partial
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from multicore_server.connections.begin import BeginningHttpTools
from multicore_server.connections.cycles import make_by_uvicorn, maker
from multicore_server.connections.http2 import Http2, Sniffing
from multicore_server.connections.known_heads import AT_BEGIN, KnownHeads
from multicore_server.connections.lean import ATTRIBUTES, LeanHttpTools
from multicore_server.connections.protocol import MovableH11, MovableHttpTools, MovableProtocol
from multicore_server.connections.room import make_room
from multicore_server.connections.strict_events import by_events, strict_h11
from multicore_server.connections.strict_httptools import strict_httptools
from multicore_server.connections.zttp import MovableZttp, StrictZttp
from multicore_server.hosts import ZTTP, Feature, lacks, missing

BESIDE = "uvicorn.protocols.http"
OWN = {"parser", "pipeline"}  # what uvicorn's constructor makes for each connection anew
PARSED = ("on_message_begin", "on_url")  # called by the parser, and ours call no other


@functools.cache
def movable(protocol: Any) -> Any:
    """The movable form of one of uvicorn's HTTP protocols; any other class as it is."""
    if not inspect.isclass(protocol):
        return protocol
    if issubclass(protocol, H11Protocol):
        mixin: type[MovableProtocol] = MovableH11
        moves, strict = Feature.H11_MOVES, strict_h11
    elif hasattr(protocol, "on_message_begin"):
        mixin, moves, strict = _for_httptools(protocol), Feature.HTTPTOOLS_MOVES, strict_httptools
    else:
        return _of_zttp(protocol)
    if lacks(moves):
        return protocol
    suffix = "_by_uvicorn" if mixin is LeanHttpTools else ""
    return _with(mixin, strict(protocol), protocol.__name__, suffix)


def is_movable(protocol: Any) -> bool:
    """Whether an HTTP protocol is one that this package knows: its connections are counted, and can move."""
    return inspect.isclass(protocol) and issubclass(protocol, MovableProtocol)


def _with(mixin: type, protocol: Any, name: str, suffix: str = "", **own: Any) -> Any:
    own |= {
        f"_made{suffix}": protocol.connection_made,
        f"_lost{suffix}": protocol.connection_lost,
        "_receive": protocol.data_received,
        "_complete": protocol.on_response_complete,
    }
    return type(f"Movable{name}", (mixin, protocol), own)


def _of_zttp(protocol: Any) -> Any:
    """uvicorn has imported what it is to serve with, if that is zttp."""
    name = protocol.__name__
    if any(missing(ZTTP)):
        return protocol
    if _is(protocol, "zttp_impl", "ZttpProtocol"):
        return _with(MovableZttp, by_events(StrictZttp, protocol), name)
    if _is(protocol, "zttp_h2_impl", "ZttpH2Protocol"):
        return _with(Http2, protocol, name, _handle_request=protocol.handle_request, _events=protocol.events)
    if _is(protocol, "auto_zttp_impl", "AutoZttpProtocol"):
        module: Any = sys.modules[f"{BESIDE}.auto_zttp_impl"]
        forms = movable(module.ZttpProtocol), movable(module.ZttpH2Protocol)
        return type(f"Movable{name}", (Sniffing, protocol), {"forms": forms})
    return protocol


def _is(protocol: Any, module: str, name: str) -> bool:
    theirs = getattr(sys.modules.get(f"{BESIDE}.{module}"), name, None)
    return theirs is not None and issubclass(protocol, theirs)


def _for_httptools(protocol: Any) -> type[MovableProtocol]:
    """A subclass of uvicorn's may have its own way with what the lean form does."""
    taken = ("connection_made", "connection_lost", "on_response_complete", "timeout_keep_alive_handler",
             "resume_writing", "_unset_keepalive_if_required")  # fmt: skip
    same = all(getattr(protocol, name, None) is getattr(HttpToolsProtocol, name, None) for name in taken)
    return LeanHttpTools if same else MovableHttpTools


class ProtocolFactory:
    """Called for each connection. ``given`` is what uvicorn's constructor gets.

    That finds out, for each connection, what is the same for all of them. Two instances show what is not: if
    that is what was known when this was written, the rest becomes the class's. But what each request asks for
    is set on the instance: before Python 3.12 an attribute of the class is slow to read.
    """

    def __init__(self, protocol: Any, **given: Any) -> None:
        self._make = partial(protocol, **given)
        self._class: Any = None
        self._first: Any = None
        self._pipeline: Any = deque
        if inspect.isclass(protocol) and issubclass(protocol, LeanHttpTools):
            self._first = first = self._make()
            one, other = vars(first), vars(self._make())
            if {name for name in one if one[name] is not other.get(name)} == OWN:
                self._class = self._make_class(
                    protocol, {name: _fixed(one[name]) for name in one.keys() - OWN}
                )

    def _make_class(self, protocol: Any, shared: dict[str, Any]) -> Any:
        shared.pop("app")  # a function would be a method in a class
        shared["make_cycle"] = make = maker(self._first)
        if protocol.begin is BeginningHttpTools.begin and not self._first.asks_for_more:
            shared["begin"] = protocol.begin_here
            self._pipeline = tuple  # until there is something in it
            if make is not make_by_uvicorn and self._begins_as_known(protocol):
                shared |= {
                    "heads": KnownHeads(self._first.loop),
                    "_parse": protocol._receive,
                    "_receive": protocol.recall,
                }
        made: Any = type(protocol.__name__, (protocol,), shared)
        make_room(made.__new__(made), ATTRIBUTES)
        return made

    def _begins_as_known(self, protocol: Any) -> bool:
        """Whether a request begins as it did when `known_heads` was written."""
        same = all(getattr(protocol, name) is getattr(HttpToolsProtocol, name) for name in PARSED)
        if not same or protocol._complete_message is not HttpToolsProtocol.on_message_complete:
            return False
        self._first.on_message_begin()
        return bool(self._first.scope.keys() == AT_BEGIN)

    def __call__(self) -> Any:
        if self._class is None:
            return self._make()
        made, first = self._class.__new__(self._class), self._first
        made.app = first.app
        made.server_state = first.server_state
        made.loop = first.loop
        made.tasks = first.tasks
        made.root_path = first.root_path
        made.timeout_keep_alive = first.timeout_keep_alive
        made.parser = None  # until there is something to parse
        made.pipeline = self._pipeline()
        return made


def _fixed(value: Any) -> Any:
    """In a class, a function would be a method."""
    return staticmethod(value) if inspect.isfunction(value) else value
