"""An app that answers with the value of the expression in the query; how to ask, deploy and reload it."""

from __future__ import annotations

import json
import re
import signal
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from tests.integration.conftest import Server, gone, wait_for

LOCAL = "127.0.0.1"

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


def wait_gone(pid: int) -> None:
    wait_for(lambda: gone(pid), f"the end of {pid}")


def usr2s_arbiter(server: Server) -> int:
    """The pid of the second arbiter that has started."""
    started = server.wait_logged(r"\[INFO\] Starting gunicorn", 2)
    return int(re.findall(r"\[(\d+)\] \[INFO\]", started[1])[0])


def deploy(server: Server, version: int, more: str = "") -> None:
    server.write("app.py", f"{ASK}\nversion = {version}\n{more}")


def configure(server: Server, **settings: object) -> str:
    """Write the config file; its text."""
    text = "".join(f"{name} = {value!r}\n" for name, value in settings.items())
    server.write("conf.py", text)
    return text


def hup(server: Server, outcome: str = "reload done") -> str:
    """Reload and wait for the line that says how it went."""
    before = len(server.logged(outcome))
    server.signal(signal.SIGHUP)
    return server.wait_logged(outcome, before + 1)[-1]


def wait_workers(server: Server, count: int) -> None:
    wait_for(lambda: len(server.workers()) == count, f"{count} workers")


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOCAL, port)) != 0
