"""Responses without an end that end when their worker drains, and what is done then, as lines of a file."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multicore_server import cluster


def note(line: str) -> None:
    with Path("notes").open("a") as file:
        file.write(line + "\n")


@cluster.on_drain
def say_that_it_drains() -> None:
    note(f"on_drain {cluster.draining}")


@cluster.on_drain
async def finish_a_job() -> None:
    await asyncio.sleep(1)
    note("the job is finished")


@cluster.on_drain
def fail() -> None:
    raise RuntimeError


@cluster.on_shutdown
async def say_goodbye() -> None:
    note("on_shutdown")


PLACE = {"instance": cluster.instance, "instances": cluster.instances, "is_worker": cluster.is_worker}


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        note("lifespan shutdown")
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/endless":
        await send({"type": "http.response.body", "body": b"begun\n", "more_body": True})
        await cluster.wait_draining()
        await send({"type": "http.response.body", "body": b"goodbye\n"})
    else:
        await send({"type": "http.response.body", "body": json.dumps(PLACE).encode()})


def wsgi(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [])
    yield b"begun\n"
    while not cluster.draining:
        time.sleep(0.02)
    yield b"goodbye\n"
