"""Remembers each request that it gets, by the port of its client; /seen?PORT tells. As ASGI and as WSGI."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from starlette.types import Receive, Scope, Send

seen: dict[int, list[dict[str, object]]] = defaultdict(list)


async def body_of(receive: Receive) -> bytes | None:
    """None where the client left before its end."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    if scope["path"] == "/seen":
        body = json.dumps(seen[int(scope["query_string"])]).encode()
    else:
        fields = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]
        request = {"method": scope["method"], "path": scope["path"], "fields": fields, "body": None}
        seen[scope["client"][1]].append(request)
        received = await body_of(receive)
        if received is None:
            return
        request["body"] = received.decode("latin-1")
        body = b"ok"
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    if environ["PATH_INFO"] == "/seen":
        body = json.dumps(seen[int(environ["QUERY_STRING"])]).encode()
    else:
        names = {"CONTENT_TYPE": "content-type", "CONTENT_LENGTH": "content-length"}
        names |= {name: name[5:].replace("_", "-").lower() for name in environ if name.startswith("HTTP_")}
        request = {
            "method": environ["REQUEST_METHOD"],
            "path": environ["PATH_INFO"],
            "fields": [[names[name], environ[name]] for name in names if name in environ],
            "body": environ["wsgi.input"].read().decode("latin-1"),
        }
        seen[int(environ["REMOTE_PORT"])].append(request)
        body = b"ok"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
