"""Answers with what the server has told it, and about itself, as JSON."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        raise NotImplementedError
    protocol: Any = send
    classes = type(protocol.__self__).__mro__
    # uvicorn's, which ours is derived from; the access log's stands before it.
    engine = next((it for it in classes if it.__module__.startswith("uvicorn.")), object)
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        message = await receive()
        await send({"type": "websocket.send", "text": engine.__name__ + message["text"]})
        await send({"type": "websocket.close"})
        return
    if scope["path"] == "/raise":
        raise RuntimeError("the app's mistake")
    if scope["path"] == "/print":
        print("said by the app", flush=True)
    if scope["path"] == "/wait":
        while not Path("release").exists():
            await asyncio.sleep(0.01)
    seen = {
        "pid": os.getpid(),
        "loop": type(asyncio.get_running_loop()).__module__,
        "http": engine.__module__,
        "headers": {name.decode(): value.decode() for name, value in scope["headers"]},
        **{name: scope[name] for name in ("scheme", "client", "server", "root_path", "path", "http_version")},
        "asgi": scope["asgi"]["version"],
    }
    body = json.dumps(seen).encode()
    headers = [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
