"""A queue of jobs: all workers add jobs, and one worker takes them.

``gunicorn -k multicore_server.Worker -w 4 examples.cluster.consumer:app``, or with one process
``uvicorn examples.cluster.consumer:app``. Then:

    curl localhost:8000/jobs --json "[2, 3, 5, 7]"
    curl localhost:8000/jobs

The queue is a table. A job leaves it in the same transaction that writes its result. So no job is done twice,
and no job is lost. If the process is killed in the middle, there is no result, and the next primary worker
takes the job again. For anything outside of the database, such as an email or a payment, send the id of the
job with it, and let the other side ignore an id that it has seen.
"""

import os
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from fastapi import FastAPI

from multicore_server import cluster

DATABASE = "db.sqlite3"


def connect() -> sqlite3.Connection:
    return sqlite3.connect(DATABASE, timeout=20)


def create_tables() -> None:
    with closing(connect()) as db, db:
        db.execute("create table if not exists jobs (id integer primary key autoincrement, number integer)")
        db.execute("create table if not exists results (job integer, square integer, pid integer)")


cluster.once_sync("create the tables of jobs", create_tables)


@cluster.run_on_primary
def consume() -> None:
    # A thread is not cancelled: when the worker begins to drain, it finishes its current job.
    with closing(connect()) as db:
        while not cluster.draining:
            job = db.execute("select id, number from jobs order by id").fetchone()
            if job is None:
                time.sleep(0.2)
            else:
                do(db, *job)


def do(db: sqlite3.Connection, job: int, number: int) -> None:
    time.sleep(0.02)  # the work; if it can fail, count the attempts in the table: it would be tried forever
    with db:
        db.execute("delete from jobs where id = ?", (job,))
        db.execute("insert into results values (?, ?, ?)", (job, number**2, os.getpid()))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    cluster.start()  # under plain uvicorn; in a worker it does nothing
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/jobs")
def add(numbers: list[int]) -> None:
    with closing(connect()) as db, db:
        db.executemany("insert into jobs (number) values (?)", [(number,) for number in numbers])


@app.get("/jobs")
def jobs() -> dict[str, int]:
    with closing(connect()) as db:
        (waiting,) = db.execute("select count(*) from jobs").fetchone()
        (done,) = db.execute("select count(*) from results").fetchone()
    return {"waiting": waiting, "done": done}
