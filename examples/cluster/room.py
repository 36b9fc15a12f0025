"""A chat room: WebSocket clients of all workers see each other's lines.

``gunicorn -k multicore_server.Worker -w 4 examples.cluster.room:app``, or with one process
``uvicorn examples.cluster.room:app``. Then open http://localhost:8000 in two windows.

Messages between workers need no broker. Use Redis instead

- for more than one machine: a message reaches the workers of one server,
- for more than about 100 kB/s to each worker,
- if a client that comes later must see what it missed: there is no history here.

When its worker is replaced, a client is disconnected at once (close code 1012, "service restart"), and it
connects again.
"""

import asyncio
import contextlib

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse

from multicore_server import cluster

LONGEST = 4000  # characters of a line; a message may have 64 KiB
MOST_WAITING = 100  # lines for a client that reads too slowly; it misses what comes then

PAGE = """<!doctype html><title>Room</title>
<form><input autofocus></form><pre></pre>
<script>
const input = document.querySelector("input"), pre = document.querySelector("pre")
let socket
function connect() {
  socket = new WebSocket(location.href.replace("http", "ws") + "room")
  socket.onmessage = event => pre.append(event.data + "\\n")
  // Not all clients at the same moment.
  socket.onclose = event => setTimeout(connect, (event.code == 1012 ? 500 : 5000) * Math.random())
}
document.querySelector("form").onsubmit = event => {
  event.preventDefault()
  socket.send(input.value)
  input.value = ""
}
connect()
</script>
"""

app = FastAPI()
clients: set[asyncio.Queue[str]] = set()  # of this worker


@app.get("/")
async def page() -> HTMLResponse:
    return HTMLResponse(PAGE)


@cluster.on_message
def on_message(message: cluster.Message, sender: int | str) -> None:
    match message.value:
        case {"line": line}:
            for lines in clients:
                with contextlib.suppress(asyncio.QueueFull):
                    lines.put_nowait(line)


@app.websocket("/room")
async def room(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(f"welcome, you are on worker {cluster.instance}")
    lines: asyncio.Queue[str] = asyncio.Queue(MOST_WAITING)
    clients.add(lines)
    parts = [
        asyncio.ensure_future(part)
        for part in (hear(websocket), tell(websocket, lines), cluster.wait_draining())
    ]
    try:
        await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
    finally:
        clients.discard(lines)
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
    if cluster.draining:
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # the client has left at the same moment
            await websocket.close(1012)


async def hear(websocket: WebSocket) -> None:
    async for line in websocket.iter_text():
        await cluster.broadcast({"line": line[:LONGEST]}, include_self=True)


async def tell(websocket: WebSocket, lines: asyncio.Queue[str]) -> None:
    while True:
        await websocket.send_text(await lines.get())
