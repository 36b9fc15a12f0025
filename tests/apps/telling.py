"""Tells who its client is, as JSON and in the log: also as app:wsgi, and over a WebSocket."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


def said(path: str, client: str, scheme: str, root_path: str) -> str:
    seen = {"path": path, "client": client, "scheme": scheme, "root_path": root_path, "pid": os.getpid()}
    text = json.dumps(seen)
    print("SEEN", text, flush=True)
    return text


def wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    path, root = environ["PATH_INFO"], environ["SCRIPT_NAME"]
    body = said(root + path, environ["REMOTE_ADDR"], environ["wsgi.url_scheme"], root).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        raise NotImplementedError
    text = said(scope["path"], (scope["client"] or [""])[0], scope["scheme"], scope["root_path"])
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": text})
        await send({"type": "websocket.close"})
        return
    headers = [(b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
