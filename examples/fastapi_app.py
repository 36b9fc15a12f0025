"""FastAPI on every CPU: ``gunicorn -k multicore_server.Worker examples.fastapi_app:app``."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from multicore_server import cluster


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # Once in each worker, before it gets requests: a connection pool, a model.
    app.state.greeting = "Hello"
    yield
    # And when it has answered its last one.


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def hello(name: str = "world") -> dict[str, str | int | None]:
    return {"text": f"{app.state.greeting}, {name}", "worker": cluster.instance}
