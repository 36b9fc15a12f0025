"""A cache in the memory of each worker. The worker that changes a value tells all others to forget it.

``gunicorn -k multicore_server.Worker -w 4 examples.cluster.cache:app``, or with one process
``uvicorn examples.cluster.cache:app``. Then:

    curl -X PUT "localhost:8000/settings/colour?value=blue"
    curl localhost:8000/settings/colour
"""

import asyncio
import sqlite3
import time
from contextlib import closing

from fastapi import FastAPI, HTTPException

from multicore_server import cluster

DATABASE = "db.sqlite3"
MAX_AGE = 60.0  # seconds: a worker that is too busy to read its messages may miss one

app = FastAPI()
cached: dict[str, tuple[str, float]] = {}  # the value of a key, and when it is too old
changes = 0


def connect() -> sqlite3.Connection:
    return sqlite3.connect(DATABASE, timeout=20)


def create_tables() -> None:
    with closing(connect()) as db, db:
        db.execute("create table if not exists settings (key text primary key, value text)")


cluster.once_sync("create the table of settings", create_tables)


def load(key: str) -> str | None:
    with closing(connect()) as db:
        row = db.execute("select value from settings where key = ?", (key,)).fetchone()
        return row[0] if row else None


def store(key: str, value: str) -> None:
    with closing(connect()) as db, db:
        db.execute("insert or replace into settings values (?, ?)", (key, value))


def forget(key: str) -> None:
    global changes
    changes += 1
    cached.pop(key, None)


@cluster.on_message
def on_message(message: cluster.Message, sender: int | str) -> None:
    match message.value:
        case {"forget": key}:
            forget(key)


@app.get("/settings/{key}")
async def read(key: str) -> dict[str, str | int]:
    value, until = cached.get(key, (None, 0.0))
    if value is not None and time.monotonic() < until:
        return {"value": value, "from": "memory", "worker": cluster.instance}
    before = changes
    value = await asyncio.to_thread(load, key)
    if value is None:
        raise HTTPException(404)
    if changes == before:  # otherwise the value may be an old one
        cached[key] = value, time.monotonic() + MAX_AGE
    return {"value": value, "from": "database", "worker": cluster.instance}


@app.put("/settings/{key}")
async def write(key: str, value: str) -> None:
    await asyncio.to_thread(store, key, value)  # first the change, then the message
    forget(key)
    await cluster.broadcast({"forget": key})
