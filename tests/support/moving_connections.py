"""An app that says who answers whom, in every way a response can take; how to watch connections move."""

from __future__ import annotations

import json
from dataclasses import dataclass

from tests.support.raw_client import Connection, request
from tests.support.server import Server
from tests.support.waiting import wait_for

BIG = 60_000_000

APP = f'''
import asyncio, json, os, pathlib

BIG = bytes({BIG})
''' + '''
async def exists(name):
    while not pathlib.Path(name).exists():
        await asyncio.sleep(0.01)

async def body_of(receive):
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body

async def websocket(receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            pathlib.Path("disconnected").write_text(str(message["code"]))
            return
        await send({"type": "websocket.send", "text": str(os.getpid())})

async def events(send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while not pathlib.Path("release").exists():
        body = f"data: {os.getpid()}\\n\\n".encode()
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await asyncio.sleep(0.02)
    await send({"type": "http.response.body", "body": b""})

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    if scope["type"] == "websocket":
        return await websocket(receive, send)
    path = scope["path"]
    if path == "/events":
        return await events(send)
    if path == "/hold":
        pathlib.Path("held").touch()
        await exists("release")
    seen = {"pid": os.getpid(), "client": scope["client"], "path": path}
    if path == "/echo":
        seen["body"] = (await body_of(receive)).decode()
    body = BIG if path == "/big" else json.dumps(seen).encode()
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})
'''  # fmt: skip

WSGI = """
import json, os, pathlib, time

def app(environ, start_response):
    if environ["PATH_INFO"] == "/hold":
        pathlib.Path("held").touch()
        while not pathlib.Path("release").exists():
            time.sleep(0.01)
    client = [environ["REMOTE_ADDR"], int(environ["REMOTE_PORT"])]
    seen = {"pid": os.getpid(), "client": client, "path": environ["PATH_INFO"]}
    body = json.dumps(seen).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""

APPS = {"asgi": APP, "wsgi": WSGI}
ENGINES = {
    "uvloop": {"UVICORN_LOOP": "uvloop", "UVICORN_HTTP": "httptools"},
    "asyncio": {"UVICORN_LOOP": "asyncio", "UVICORN_HTTP": "h11"},
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What the app has seen of a request, and whether its response was the last."""

    pid: int
    client: tuple[str, int]
    path: str
    is_last: bool
    body: str = ""


def answer(connection: Connection) -> Seen:
    got = connection.answer()
    assert got.status == 200
    seen = json.loads(got.body)
    seen["client"] = tuple(seen["client"])
    return Seen(is_last=got.is_last, **seen)


def ask(connection: Connection, path: str = "/") -> Seen:
    return answer(connection.send(request(path)))


def stays(connection: Connection, path: str = "/") -> Seen:
    """Ask over a connection that is to be the same one still, as both ends see it."""
    seen = ask(connection, path)
    assert not seen.is_last
    assert seen.client == connection.socket.getsockname()
    return seen


def wait_moved(connection: Connection, old: int) -> int:
    """The next request may be there before it has moved; then it is answered by ``old`` once more."""
    return wait_for(lambda: pid if (pid := stays(connection).pid) != old else 0, "it moves")


def wait_drained(server: Server, pid: int) -> str:
    return server.wait_logged(rf"pid={pid} (exited|was killed)")[0]
