"""Hello, and a request whose answer is the longest pause that it has seen, in milliseconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

STEPS, STEP = 20, 0.01  # seconds


async def pause() -> bytes:
    longest = 0.0
    for _ in range(STEPS):
        began = time.monotonic()
        await asyncio.sleep(STEP)
        longest = max(longest, time.monotonic() - began - STEP)
    return b"%d" % (longest * 1000)


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    body = await pause() if scope["path"] == "/pause" else b"0"
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", b"%d" % len(body))]})  # fmt: skip
    await send({"type": "http.response.body", "body": body})


def wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/pause":
        time.sleep(0.01)
    start_response("200 OK", [("Content-Length", "1")])
    return [b"0"]
