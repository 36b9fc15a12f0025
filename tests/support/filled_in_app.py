"""The apps that the supervision tests run: one frame, filled in by each test."""

from __future__ import annotations

import textwrap

FRAME = """
import asyncio, os, signal, sys, threading, time
from multicore_server import cluster
{top}

async def app(scope, receive, send):
    path, query = scope.get("path"), scope.get("query_string", b"").decode()
    if scope["type"] == "lifespan":
        await receive()
{startup}
        await send({{"type": "lifespan.startup.complete"}})
        await receive()
        await send({{"type": "lifespan.shutdown.complete"}})
        return
{paths}
    body = str(os.getpid()).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({{"type": "http.response.start", "status": 200, "headers": headers}})
    await send({{"type": "http.response.body", "body": body}})
"""


def make_app(paths: str = "", *, top: str = "", startup: str = "") -> str:
    """An ASGI app that answers with its pid. ``paths`` runs for each request and may look at ``path`` and
    ``query``; ``top`` runs at import, ``startup`` in the lifespan's startup."""
    return FRAME.format(
        top=textwrap.dedent(top),
        startup=textwrap.indent(textwrap.dedent(startup), " " * 8),
        paths=textwrap.indent(textwrap.dedent(paths), " " * 4),
    )
