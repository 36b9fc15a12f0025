"""APScheduler in one worker only: never in two at once, and in another worker when this one exits.

``gunicorn -k multicore_server.Worker -w 4 examples.cluster.scheduler:app``, or with one process
``uvicorn examples.cluster.scheduler:app``. Needs ``apscheduler>=3.10,<4``.
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, EVENT_JOB_MISSED, EVENT_JOB_SUBMITTED
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from fastapi import FastAPI

from multicore_server import cluster

DATABASE = "db.sqlite3"


def connect() -> sqlite3.Connection:
    return sqlite3.connect(DATABASE, timeout=20)


def create_tables() -> None:
    with closing(connect()) as db, db:
        db.execute("create table if not exists ticks (pid integer, at real)")


cluster.once_sync("create the table of ticks", create_tables)


def tick() -> None:
    with closing(connect()) as db, db:
        db.execute("insert into ticks values (?, ?)", (os.getpid(), time.time()))


@cluster.run_on_primary
async def schedule() -> None:
    scheduler = AsyncIOScheduler()
    running: set[str] = set()  # ids of jobs
    ends = EVENT_JOB_EXECUTED | EVENT_JOB_ERROR | EVENT_JOB_MISSED
    scheduler.add_listener(lambda event: running.add(event.job_id), EVENT_JOB_SUBMITTED)
    scheduler.add_listener(lambda event: running.discard(event.job_id), ends)
    scheduler.add_job(tick, "interval", seconds=1)
    scheduler.start()
    try:
        await asyncio.Event().wait()  # until this worker drains
    finally:
        # The next primary worker starts when this function has ended. `shutdown` would not wait for jobs.
        scheduler.pause()
        while running:
            await asyncio.sleep(0.05)
        scheduler.shutdown()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    cluster.start()  # under plain uvicorn; in a worker it does nothing
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/")
def ticks() -> list[dict[str, int | float]]:
    with closing(connect()) as db:
        rows = db.execute("select pid, at from ticks order by at desc limit 10")
        return [{"pid": pid, "at": at} for pid, at in rows]
