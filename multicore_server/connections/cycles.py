"""Makes uvicorn's cycle for each request, without repeating what is the same for all requests."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

from uvicorn.protocols.http import httptools_impl

from multicore_server.connections.message_event import UNAWAITED, MessageEvent
from multicore_server.ipc.request_table import NONE

# The parameters of uvicorn's constructor, and the attributes that they become.
PARAMETERS = {
    "scope": "scope",
    "transport": "transport",
    "flow": "flow",
    "logger": "logger",
    "access_logger": "access_logger",
    "access_log": "access_log",
    "default_headers": "default_headers",
    "message_event": "message_event",
    "expect_100_continue": "waiting_for_100_continue",
    "keep_alive": "keep_alive",
    "on_response": "on_response",
}
# What every cycle begins with.
CONSTANTS = {
    "disconnected": False,
    "more_body": True,
    "response_started": False,
    "response_complete": False,
    "chunked_encoding": None,
    "expected_content_length": 0,
}
# What ours adds to a cycle.
ADDED = {
    "status": 0,
    "head": b"",
    "ends": False,
    "sent_whole": False,
    "began": 0.0,
    "took": 0.0,
    "wrote": 0.0,
    "state": None,
    "task": None,
    "known": None,
    "entry": NONE,
}
SHARED = ("logger", "access_logger", "access_log")  # with all connections of a worker


def make_by_uvicorn(connection: Any, keep_alive: bool) -> Any:
    """The cycle of the request whose head has come on a connection."""
    event: Any = MessageEvent()  # as much of an event as is used
    return httptools_impl.RequestResponseCycle(
        scope=connection.scope,
        transport=connection.transport,
        flow=connection.flow,
        logger=connection.logger,
        access_logger=connection.access_logger,
        access_log=connection.access_log,
        default_headers=connection.server_state.default_headers,
        message_event=event,
        expect_100_continue=connection.expect_100_continue,
        keep_alive=keep_alive,
        on_response=connection.on_response_complete,
    )


def maker(connection: Any) -> Callable[[Any, bool], Any]:
    """As `make_by_uvicorn`, for connections that have the same loggers; it costs a third of that.

    An instance shows what uvicorn's constructor does: where that is not what was known when this was written,
    it does it itself.
    """
    theirs: Any = httptools_impl.RequestResponseCycle
    if list(signature(theirs).parameters) != list(PARAMETERS):
        return make_by_uvicorn
    given = {name: object() for name in PARAMETERS}
    known = {attribute: given[name] for name, attribute in PARAMETERS.items()}
    if vars(theirs(**given)) != {**known, **CONSTANTS, "body": bytearray()}:
        return make_by_uvicorn
    shared = {name: getattr(connection, name) for name in SHARED}
    # An attribute that is new to an instance is slow to set on Python 3.13; a slot is not.
    slots = (known.keys() - shared) | CONSTANTS.keys() | ADDED.keys() | {"body"}
    receive = _receiver(theirs.receive)
    own: Any = type(theirs.__name__, (theirs,), {**shared, "receive": receive, "__slots__": tuple(slots)})
    new = own.__new__

    def make(connection: Any, keep_alive: bool) -> Any:
        cycle: Any = new(own)
        cycle.scope = connection.scope
        cycle.transport = connection.transport
        cycle.flow = connection.flow
        cycle.default_headers = connection.server_state.default_headers
        cycle.message_event = UNAWAITED
        cycle.keep_alive = keep_alive
        cycle.on_response = connection.on_response_complete
        cycle.waiting_for_100_continue = connection.expect_100_continue
        cycle.disconnected = cycle.response_started = cycle.response_complete = cycle.ends = (
            cycle.sent_whole
        ) = False
        cycle.more_body = True
        cycle.body = bytearray()
        cycle.chunked_encoding = cycle.state = cycle.task = cycle.known = None
        cycle.expected_content_length = cycle.status = 0
        cycle.entry = NONE
        cycle.head = b""
        cycle.began = cycle.took = cycle.wrote = 0.0
        return cycle

    return make


def _receiver(theirs: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """uvicorn's ``receive``, for cycles that get their event when it is called for the first time."""

    def receive(self: Any) -> Any:
        if self.message_event is UNAWAITED:
            has_news = bool(self.body) or not self.more_body or self.disconnected or self.response_complete
            self.message_event = MessageEvent(is_set=has_news)
        return theirs(self)

    return receive
