"""An event stream without an end, by sse-starlette, and what was done with `handle_exit`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from sse_starlette.sse import AppStatus, EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

server: Any = uvicorn.Server
if os.environ.get("PATCH") == "none":  # then it finds the server by its signal handler
    server.handle_exit = AppStatus.original_handler
if os.environ.get("PATCH") == "fails":

    def handle_exit(*_: object) -> None:
        raise RuntimeError

    server.handle_exit = handle_exit


async def events() -> AsyncIterator[str]:
    while True:
        yield "tick"
        await asyncio.sleep(0.1)


async def stream(_: Request) -> EventSourceResponse:
    return EventSourceResponse(events())


app = Starlette(routes=[Route("/", stream)])
