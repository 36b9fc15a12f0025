"""Actions of every kind, for `multicore-server trigger`."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

from multicore_server import cluster


@cluster.action("greet")
def greet(name: str = "nobody", *more: str) -> dict[str, Any]:
    return {"greets": [name, *more], "pid": os.getpid(), "thread": threading.current_thread().name}


@cluster.action("later")
async def later(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@cluster.action("loop")
def running_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@cluster.action("fail")
def fail() -> None:
    raise ValueError("no \x1b[2Jdice")


@cluster.action("what")
def what() -> object:
    return object()


@cluster.action("large")
def large() -> str:
    return "x" * 70_000


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"ok"]
