"""Answers with the value of the expression in the query, as JSON. What follows this file in a test's copy
may replace ``start``, which runs in the lifespan's startup, and ``version``."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import stat
import sys
import time
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

FOR_EXPRESSIONS = (asyncio, gc, stat, sys, time)

imported_by = os.getpid()
version = 1


async def start() -> None:
    pass


async def lifespan(receive: Receive, send: Send) -> None:
    await receive()
    try:
        await start()
    except RuntimeError as exc:
        await send({"type": "lifespan.startup.failed", "message": str(exc)})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    body = json.dumps(eval(unquote(scope["query_string"].decode()))).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
