"""Ends connections whose clients take too long to send a head, to send a body, or to read a response.

One sweep a second checks all connections of a worker, so no request pays for a timer.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from multicore_server.connections.limits import Limits
from multicore_server.connections.strict import StrictProtocol

_NONE = object()


def sweep(connections: Iterable[Any], limits: Limits, now: float) -> bool:
    """Refuse the clients that take too long. To be called about once a second; ``now`` is monotonic.

    Returns whether there are clients that have not taken all of a response.
    """
    some_unsent = False
    for connection in connections:
        if isinstance(connection, StrictProtocol):
            _look(connection, limits, now)
            some_unsent = some_unsent or bool(connection.unsent)
    return some_unsent


def _look(connection: Any, limits: Limits, now: float) -> None:
    transport = connection.transport
    if transport.is_closing() and transport.get_extra_info("ssl_object") is not None:
        return  # its shutdown has a time limit of its own, and asyncio may have taken its parts apart already
    unsent = transport.get_write_buffer_size()
    if unsent and _is_stuck(connection, unsent, limits.send_timeout, now):
        transport.abort()
        return
    connection.unsent = unsent
    cycle = connection.cycle
    if not connection.awaits_head:
        connection.head = _NONE
        if connection.heard or not cycle.more_body or connection.flow.read_paused:  # the app takes its time
            connection.heard, connection.since = False, now
        elif limits.body_timeout and now - connection.since >= limits.body_timeout:
            _end_body(connection)
    elif not connection.phase or not (cycle is None or cycle.response_complete):
        connection.head = _NONE
    elif connection.head is not connection.scope:
        connection.head, connection.since = connection.scope, now
    elif limits.header_timeout and now - connection.since >= limits.header_timeout:
        _end_head(connection)


def _is_stuck(connection: Any, unsent: int, timeout: float, now: float) -> bool:
    if not connection.unsent or unsent < connection.unsent or connection.flowed:
        connection.flowed, connection.stuck_since = False, now
    return bool(timeout) and now - connection.stuck_since >= timeout


def _end_body(connection: Any) -> None:
    if connection.cycle.response_complete:  # it has its answer: another one would be the next request's
        connection.end_lingering("the rest of its body did not come")
    else:
        connection.refuse(HTTPStatus.REQUEST_TIMEOUT)


def _end_head(connection: Any) -> None:
    if connection.idle:  # it has sent nothing: there is nothing to answer
        if not connection.has_unread:
            connection.transport.close()
    else:
        connection.refuse(HTTPStatus.REQUEST_TIMEOUT)
