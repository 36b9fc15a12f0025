"""An app that remembers each request that it gets, by the port of its client; /seen?PORT tells, and
forgets them."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

seen: dict[int, list[dict[str, Any]]] = defaultdict(list)


async def app(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    if scope["path"] == "/seen":
        answer = json.dumps(seen.pop(int(scope["query_string"]), [])).encode()
    else:
        await remember(scope, receive)
        answer = b"ok"
    headers = [(b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


async def remember(scope: Any, receive: Any) -> None:
    request = {
        "method": scope["method"],
        "path": scope["raw_path"].decode("latin-1"),
        "query": scope["query_string"].decode("latin-1"),
        "version": scope["http_version"],
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]],
        "body": "",
    }
    seen[scope["client"][1]].append(request)
    while True:
        message = await receive()
        request["body"] += message.get("body", b"").decode("latin-1")
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
