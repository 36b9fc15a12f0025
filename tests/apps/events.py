"""Server-sent events, one for each file that the test makes; notes that its client has left."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    try:
        for number in range(1000):
            await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
            message = asyncio.ensure_future(receive())
            while not Path(f"event{number}").exists():
                await asyncio.sleep(0.01)
                if message.done() and message.result()["type"] == "http.disconnect":
                    return
    finally:
        Path("left").touch()
