"""Back-pressure that costs nothing for the many clients that never cause any."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

from multicore_server.connections.message_event import MessageEvent


class Flow(FlowControl):
    """uvicorn's. The event that its ``drain`` waits for is made when writing is paused."""

    was_paused = False  # reading, since somebody looked
    read_paused = False
    write_paused = False
    _is_writable_event: Any = None

    def __init__(self, transport: Any) -> None:  # in place of uvicorn's
        self._transport = transport

    def pause_reading(self) -> None:
        self.was_paused = True
        super().pause_reading()

    def pause_writing(self) -> None:
        if not self.write_paused:
            self.write_paused = True
            self._is_writable_event = MessageEvent()

    async def drain(self) -> None:
        if self.write_paused:
            await self._is_writable_event.wait()
