"""Sets a handler of SIGTERM in the way and at the moment that WHERE says; it leaves a file behind."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

WHERE = os.environ.get("WHERE", "")


def heard(*_: Any) -> None:
    Path("heard").touch()


def and_exits(*_: Any) -> None:
    heard()
    raise SystemExit(7)


def set_handler(where: str) -> None:
    moment, _, way = WHERE.partition(", ")
    if moment == where:
        if way == "loop":
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, heard)
        elif way == "removed":
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, heard)
            asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        elif way == "ignored":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        else:
            signal.signal(signal.SIGTERM, and_exits if way == "exits" else heard)


set_handler("import")


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                set_handler("lifespan")
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    set_handler("request")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
