"""Alembic's migrations, once in each deployment: one worker runs them, the others wait for it.

``gunicorn -k multicore_server.Worker -w 4 examples.cluster.migrations.app:app``, or with one process
``uvicorn examples.cluster.migrations.app:app``. Needs ``alembic`` and ``sqlalchemy``.

If a migration fails, the start ends, or the reload is rolled back and the old workers keep serving the old
code. In a reload, the old code runs on the new schema for a while: add in one deployment, remove in a later
one.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from fastapi import FastAPI
from sqlalchemy import Connection, create_engine, text

from multicore_server import cluster

engine = create_engine("sqlite:///db.sqlite3", connect_args={"timeout": 20})


def revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def migrate() -> dict[str, Any]:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("alembic")))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        before = revision(connection)
        command.upgrade(config, "head")
        return {"from": before, "to": revision(connection), "pid": os.getpid()}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.migrated = await cluster.once("migrate", migrate)  # `migrate` is a function: it gets a thread
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/")
def notes() -> dict[str, Any]:
    with engine.connect() as connection:
        count = connection.execute(text("select count(*) from notes")).scalar_one()
    return {"notes": count, "migrated": app.state.migrated, "worker": cluster.instance}
