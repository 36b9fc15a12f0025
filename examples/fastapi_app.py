"""FastAPI on every CPU: ``gunicorn -k multicore_server.Worker examples.fastapi_app:app``."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from multicore_server import cluster


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # Runs once in each worker, before its first request. Create a connection pool or load a model here.
    app.state.greeting = "Hello"
    yield
    # Runs after the worker's last request.


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def hello(name: str = "world") -> dict[str, str | int | None]:
    return {"text": f"{app.state.greeting}, {name}", "worker": cluster.instance}
