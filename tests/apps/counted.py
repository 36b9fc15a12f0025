"""Has a metric of every kind, and answers with the value of the expression in the query, as ASGI and WSGI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

from prometheus_client import REGISTRY, Counter, Enum, Gauge, Histogram, Info, Summary, generate_latest

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from starlette.types import Receive, Scope, Send

FOR_EXPRESSIONS = (Enum, Info, Path, REGISTRY, generate_latest)

Mode = Literal[
    "all", "min", "max", "sum", "mostrecent", "liveall", "livemin", "livemax", "livesum", "livemostrecent"
]
MODES: list[Mode] = [
    "all", "min", "max", "sum", "mostrecent", "liveall", "livemin", "livemax", "livesum", "livemostrecent",
]  # fmt: skip
hits = Counter("hits", "Hits.", ["path"])
seconds = Histogram("seconds", "Seconds.", buckets=(1, 10))
size = Summary("size", "Size.")
levels = {mode: Gauge(f"{mode}_level", "Level.", multiprocess_mode=mode) for mode in MODES}


def note(value: float) -> None:
    hits.labels("/").inc(value)
    seconds.observe(value)
    size.observe(value)
    for level in levels.values():
        level.set(value)


def hit() -> int:
    hits.labels("/").inc()
    return 1


def forked(value: float) -> int:
    """Note a value in a child that is forked; its exit status."""
    if os.fork() == 0:
        note(value)
        os._exit(0)
    return os.wait()[1]


def spawned(value: float) -> int:
    """Note a value in a child that is a new program; its exit status."""
    command = [sys.executable, "-c", f"import app; app.note({value})"]
    return subprocess.run(command, check=False).returncode


def answer(query: str) -> bytes:
    value: Any = eval(unquote(query))
    return json.dumps(value).encode()


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        raise NotImplementedError
    body = answer(scope["query_string"].decode())
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    body = answer(environ["QUERY_STRING"])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
