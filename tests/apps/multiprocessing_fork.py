"""Starts a child by multiprocessing's fork method in each request, and answers with what `terminate` did."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

context = multiprocessing.get_context("fork")


def sleep() -> None:
    time.sleep(60)


async def terminated() -> int | None:
    child = context.Process(target=sleep)
    child.start()
    child.terminate()
    deadline = time.monotonic() + 10
    while child.is_alive() and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    code = child.exitcode
    child.kill()
    return code


async def pooled() -> int:
    """What a pool's child answers; the pool ends its children."""
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return await loop.run_in_executor(pool, sum, (1, 2, 3))


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise NotImplementedError
    if scope["path"] == "/stays":
        child = context.Process(target=sleep)
        child.start()
        await reply(send, child.pid)
        return
    answer = {"pid": os.getpid(), "code": await terminated(), "pooled": await pooled()}
    await reply(send, answer)


async def reply(send: Any, answer: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})
