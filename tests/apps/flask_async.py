"""Flask with a view that is a coroutine, and one that runs a loop of its own."""

from __future__ import annotations

import asyncio

from flask import Flask

app = Flask(__name__)


@app.get("/async")
async def asynchronous() -> str:
    await asyncio.sleep(0.001)
    return "from an async view"


@app.get("/run")
def run() -> str:
    return asyncio.run(answer())


async def answer() -> str:
    await asyncio.sleep(0.001)
    return "from a loop of the view's own"
