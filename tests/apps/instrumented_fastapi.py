"""FastAPI with prometheus-fastapi-instrumentator."""

from __future__ import annotations

import os

from fastapi import FastAPI
from prometheus_fastapi_instrumentator import Instrumentator

app = FastAPI()
Instrumentator(should_instrument_requests_inprogress=True).instrument(app).expose(app)


@app.get("/")
def who() -> int:
    return int(os.environ["MULTICORE_INSTANCE"])


@app.get("/items/{number}")
async def item(number: int) -> int:
    return number
