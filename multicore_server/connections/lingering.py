"""Ends a connection whose client still sends.

If a connection is closed at once with unread bytes, the kernel resets it, and the client may never read its
answer. So this side sends its end, and for a moment it discards what still arrives. (nginx: lingering_close.)
"""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

LINGER = 2.0  # seconds at most


def linger(transport: Any, loop: asyncio.AbstractEventLoop, lingering: set[Any]) -> bool:
    """Close a transport when its client has, or after `LINGER`; whether it was given a protocol for that.
    ``lingering`` has it meanwhile."""
    if not transport.can_write_eof():
        transport.close()
        return False
    transport.write_eof()
    transport.set_protocol(_Discarding(transport, lingering))
    transport.resume_reading()
    loop.call_later(LINGER, transport.abort)
    return True


class _Discarding(asyncio.Protocol):
    def __init__(self, transport: Any, lingering: set[Any]) -> None:
        self._transport = transport
        self._lingering = lingering
        lingering.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lingering.discard(self._transport)


class UploadTransport:
    """The transport of a request whose body has not come in whole: where its response closes the connection
    before that, it lingers. The rest is the transport's own."""

    __slots__ = ("_protocol", "_transport")

    def __init__(self, transport: Any, protocol: Any) -> None:
        self._transport = transport
        self._protocol = weakref.ref(protocol)  # which has us

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        protocol = self._protocol()
        if protocol is not None and protocol.cycle.more_body:
            protocol.loop.call_soon(protocol.linger)  # when uvicorn has done what follows a response
        else:
            self._transport.close()
