"""Measures messages between workers, on request: /rate, /latency, /broadcast."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from typing import Any

from multicore_server import cluster

MESSAGE = "x" * 98  # 100 bytes of JSON
LATENCIES = 2000
BROADCASTS = 300

echoed: asyncio.Queue[Any] = asyncio.Queue()
received = 0


@cluster.on_message
def count(message: cluster.Message, sender: Any) -> None:
    global received
    received += 1
    if message.value == "ping":
        cluster.send_sync(sender, "pong")
    elif message.value == "pong":
        echoed.put_nowait(time.perf_counter())
    elif message.value == "count":
        cluster.send_sync(sender, received)
    elif isinstance(message.value, int):
        echoed.put_nowait(message.value)


async def insist(to: int, value: Any) -> None:
    while True:
        try:
            return await cluster.send(to, value)
        except cluster.NotDelivered:
            await asyncio.sleep(0.0005)


async def rate(to: int, number: int) -> dict[str, float]:
    """Messages a second from here to one worker, until it has them all."""
    began = time.perf_counter()
    for _ in range(number):
        await insist(to, MESSAGE)
    await insist(to, "count")
    there = await echoed.get()
    return {"rate": number / (time.perf_counter() - began), "there": there}


async def latency(to: int) -> dict[str, float]:
    """Half of the way to and fro, in seconds."""
    taken = []
    for _ in range(LATENCIES):
        began = time.perf_counter()
        await cluster.send(to, "ping")
        taken.append((await echoed.get() - began) / 2)
        await asyncio.sleep(0.0005)
    return {"median": statistics.median(taken), "p99": statistics.quantiles(taken, n=100)[98]}


async def broadcast() -> dict[str, float]:
    """Seconds that the call takes."""
    taken, took = [], 0
    for _ in range(BROADCASTS):
        began = time.perf_counter()
        took = await cluster.broadcast(MESSAGE)
        taken.append(time.perf_counter() - began)
        await asyncio.sleep(0.01)
    return {"median": statistics.median(taken), "took": took}


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    other = 1 if cluster.instance == 0 else 0
    found: Any = None
    if scope["path"] == "/rate":
        found = await rate(other, int(scope["query_string"]))
    elif scope["path"] == "/latency":
        found = await latency(other)
    elif scope["path"] == "/broadcast":
        found = await broadcast()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(found).encode()})
