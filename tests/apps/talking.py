"""Workers that talk: each notes what it hears in files of its own, as lines of JSON.

It does what an expression says, in a request's query, in a message, or at its door: a unix socket of each
process, where a thread of the app's answers. What follows this file in a test's copy may add to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from multicore_server import cluster

FOR_EXPRESSIONS = (socket, sys)

kept: list[Any] = []  # what an expression wants to keep
streaming = 0  # responses that are in progress
loop: asyncio.AbstractEventLoop | None = None  # of the ASGI app
_files: dict[str, int] = {}


def note(name: str, what: Any) -> None:
    """Add a line to this process's file of that name."""
    path = f"{name}.{os.getpid()}"
    if path not in _files:
        _files[path] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(_files[path], json.dumps(what).encode() + b"\n")


def result(expression: str, **names: Any) -> Any:
    """Its value, or what it raises."""
    try:
        return eval(expression, globals(), names)
    except Exception as exc:  # noqa: BLE001 - it is the answer
        return f"{type(exc).__name__}: {exc}"


# --- what it hears


@cluster.on_message
def hear(message: cluster.Message, sender: Any) -> None:
    if isinstance(message.value, dict) and "do" in message.value:
        note("did", result(message.value["do"], message=message, sender=sender))
    else:
        note("got", [sender, message.value])


@cluster.on_message
async def hear_later(message: cluster.Message, sender: Any) -> None:
    if isinstance(message.value, dict) and "later" in message.value:
        await asyncio.sleep(message.value["later"])
        note("later", message.value)


# --- what an expression may use


def where() -> list[Any]:
    """Whether a loop runs here, the name of the thread, and how many responses are in progress."""
    try:
        runs = bool(asyncio.get_running_loop())
    except RuntimeError:
        runs = False
    return [runs, threading.current_thread().name, streaming]


def patiently(send: Callable[[], Any]) -> None:
    """Until there is room."""
    while True:
        try:
            send()
            return
        except cluster.NotDelivered:
            time.sleep(0.002)


def flood(to: int, name: str, count: int) -> None:
    for number in range(count):
        patiently(lambda number=number: cluster.send_sync(to, [name, number]))  # type: ignore[misc]


def by_threads(to: int, names: str, count: int) -> None:
    """Each of these threads sends so many messages."""
    threads = [threading.Thread(target=flood, args=(to, name, count)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def by_tasks(to: int, names: str, count: int) -> None:
    """Tasks of the app's loop."""

    async def send_all(name: str) -> None:
        for number in range(count):
            while True:
                try:
                    await cluster.send(to, [name, number])
                    break
                except cluster.NotDelivered:
                    await asyncio.sleep(0.002)
            if not number % 10:
                await asyncio.sleep(0)

    async def send() -> None:
        await asyncio.gather(*map(send_all, names))

    assert loop is not None
    asyncio.run_coroutine_threadsafe(send(), loop).result(60)


def until_refused(to: int, text: str = "") -> tuple[int, str, float]:
    """Send until there is no room; how many there was room for, what was said, and the longest send."""
    longest = 0.0
    for number in range(1_000_000):
        began = time.monotonic()
        try:
            cluster.send_sync(to, [number, text])
        except cluster.NotDelivered as exc:
            return number, str(exc), longest
        longest = max(longest, time.monotonic() - began)
    raise AssertionError


def in_a_fork(expression: str) -> Any:
    """Its value in a child of this process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, json.dumps(result(expression)).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as answer:  # noqa: PTH123 - a descriptor
        value = json.load(answer)
    os.waitpid(child, 0)
    return value


def keep(value: Any) -> bool:
    kept.append(value)
    return True


def close_kept() -> None:
    while kept:
        kept.pop().close()


def answer_at(descriptor: int) -> None:
    """Answer a client, or all that come to a listener, in a thread."""
    connection = socket.socket(fileno=descriptor)
    connection.setblocking(True)

    def answer(client: socket.socket) -> None:
        with client:
            client.recv(100)
            client.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{os.getpid():<10}".encode())

    def serve() -> None:
        if not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            answer(connection)
            return
        with contextlib.suppress(OSError):
            while True:
                answer(connection.accept()[0])

    threading.Thread(target=serve, daemon=True).start()


# --- the door


class Visit(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(json.dumps(result(self.rfile.readline().decode())).encode())


class Door(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 100


def open_door() -> None:
    path = f"door.{os.getpid()}"
    door = Door(f"{path}.new", Visit)
    threading.Thread(target=door.serve_forever, daemon=True).start()
    Path(f"{path}.new").rename(path)


open_door()

# --- requests


async def app(scope: Any, receive: Any, send: Any) -> None:
    global loop
    if scope["type"] == "lifespan":
        loop = asyncio.get_running_loop()
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/hold":
        while not os.path.exists("release"):  # noqa: ASYNC240, PTH110, RUF100 - it takes no time
            await asyncio.sleep(0.01)
    value = result(unquote(scope["query_string"].decode()), scope=scope)
    if asyncio.iscoroutine(value):
        value = await value
    body = json.dumps(value).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-pid", b"%d" % os.getpid())]})
    await send({"type": "http.response.body", "body": body})


def wsgi(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    global streaming
    start_response("200 OK", [])
    if environ["PATH_INFO"] == "/stream":
        streaming += 1
        try:
            while not os.path.exists("release"):  # noqa: PTH110
                yield b"x"
                time.sleep(0.005)
        finally:
            streaming -= 1
    yield json.dumps(result(unquote(environ["QUERY_STRING"]))).encode()
