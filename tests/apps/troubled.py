"""Answers with its pid; each path of `TROUBLES` brings a trouble first. What follows this file in a test's
copy may bring another one at its import, or replace ``startup``, which runs in the lifespan's startup."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from multicore_server import cluster

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

FOR_TESTS = (sys, threading)
kept: list[bytearray] = []


def stuck() -> None:
    time.sleep(60)


async def hang(_: str) -> None:
    stuck()


async def hang_deaf(_: str) -> None:
    """Not even SIGABRT ends it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGABRT})
    stuck()


async def slow(seconds: str) -> None:
    print("SLOW", flush=True)
    await asyncio.sleep(float(seconds))


async def slow_then_hang(seconds: str) -> None:
    await slow(seconds)
    stuck()


async def grow(mebibytes: str) -> None:
    kept.append(bytearray(int(mebibytes) << 20))
    await asyncio.sleep(0)


async def grow_and_wait(mebibytes: str) -> None:
    await grow(mebibytes)
    await asyncio.sleep(60)


async def grow_and_hang(mebibytes: str) -> None:
    kept.append(bytearray(int(mebibytes) << 20))
    stuck()


async def leave(code: str) -> None:
    os._exit(int(code))


async def close_every_descriptor(_: str) -> None:
    os.closerange(3, 1000)
    stuck()


async def raise_in_the_loop(_: str) -> None:
    def interrupt() -> NoReturn:
        raise KeyboardInterrupt

    asyncio.get_running_loop().call_soon(interrupt)


async def leave_a_stranger(_: str) -> None:
    """A child whose parent ends first: PID 1 inherits it."""
    subprocess.run(["sh", "-c", "sleep 0.2 & echo STRANGER"], check=False)


async def no_trouble(_: str) -> None:
    pass


TROUBLES: dict[str, Callable[[str], Awaitable[None]]] = {
    "/": no_trouble,
    "/hang": hang,
    "/hang-deaf": hang_deaf,
    "/slow": slow,
    "/slow-then-hang": slow_then_hang,
    "/grow": grow,
    "/grow-and-wait": grow_and_wait,
    "/grow-and-hang": grow_and_hang,
    "/exit": leave,
    "/close": close_every_descriptor,
    "/interrupt": raise_in_the_loop,
    "/stranger": leave_a_stranger,
}


async def gate() -> None:
    """Ready when the test opens the gate."""
    while not Path("open").exists():
        await asyncio.sleep(0.02)
    cluster.ready()


def gate_in_a_thread() -> None:
    while not Path("open").exists():
        time.sleep(0.02)
    cluster.ready()


def die_soon() -> None:
    """Unless the test has healed it, instance 0 does."""
    if cluster.instance == 0 and not Path("healthy").exists():
        threading.Timer(0.05, os._exit, [9]).start()


async def startup() -> None:
    pass


async def lifespan(receive: Receive, send: Send) -> None:
    await receive()
    try:
        await startup()
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
    await TROUBLES[scope["path"]](scope["query_string"].decode())
    body = str(os.getpid()).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
