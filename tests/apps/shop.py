"""An app whose answers take a while, and fail now and then: for the pictures of the docs."""

from __future__ import annotations

import asyncio
import random
from typing import Any


async def app(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await asyncio.sleep(random.expovariate(1 / 0.012) + (0.12 if random.random() < 0.02 else 0))
    status = 503 if scope["path"] == "/sold-out" and random.random() < 0.3 else 200
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"3")]})
    await send({"type": "http.response.body", "body": b"ok\n"})
