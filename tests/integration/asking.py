"""An app that answers with the value of the expression in the query, and how to ask it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest

from tests.integration.conftest import Server, wait_for

ASK = """
import asyncio, gc, json, os, stat, sys, time
from urllib.parse import unquote

imported_by = os.getpid()
version = 1

async def lifespan(receive, send):
    await receive()
    try:
        await start()
    except Exception as exc:
        await send({"type": "lifespan.startup.failed", "message": str(exc)})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})

async def start():
    pass

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    body = json.dumps(eval(unquote(scope["query_string"].decode()))).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""


def ask(server: Server, expression: str) -> Any:
    return json.loads(server.get(f"/?{quote(expression)}").content)


def ask_over(path: Path, expression: str) -> Any:
    """Ask over a unix socket."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        return json.loads(client.get(f"http://localhost/?{quote(expression)}").content)


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wait_gone(pid: int) -> None:
    wait_for(lambda: gone(pid), f"the end of {pid}")


@pytest.fixture
def ending() -> Iterator[list[int]]:
    """Arbiters that are no children of the test: they are ended after it."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        if not gone(pid):
            for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
                process.kill()


def usr2s_arbiter(server: Server) -> int:
    """The pid of the second arbiter that has started."""
    started = server.wait_logged(r"\[INFO\] Starting gunicorn", 2)
    return int(re.findall(r"\[(\d+)\] \[INFO\]", started[1])[0])
