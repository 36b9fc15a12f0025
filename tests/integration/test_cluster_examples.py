"""The examples of what several workers do together, by their own commands, with real clients."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_websocket

from tests.support.addresses import free_port
from tests.support.processes import gone, wait_gone
from tests.support.server import MakeServer, Server
from tests.support.waiting import wait_for

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {  # what is to be installed, and a page
    "cache.py": (["fastapi"], "/docs"),
    "room.py": (["fastapi"], "/"),
    "scheduler.py": (["fastapi", "apscheduler"], "/"),
    "migrations/app.py": (["fastapi", "alembic", "sqlalchemy"], "/"),
    "migrations/django_wsgi.py": (["django"], "/"),
    "consumer.py": (["fastapi"], "/jobs"),
}
EASILY = {  # crash after crash is what is wanted here
    "MULTICORE_EXP_BACKOFF_RESTART_DELAY": "0",
    "MULTICORE_MAX_RESTARTS": "1000",
    "MULTICORE_MIN_UPTIME": "0",
}
EARLY = 10  # seconds: well before the end of gunicorn's graceful_timeout

RunExample = Callable[..., Server]
Enter = Callable[[Server], "list[Guest]"]


def command(path: str, program: str) -> list[str]:
    """The command in the docstring of an example that begins like this."""
    (found,) = re.findall(rf"``({program}\b[^`]*)``", (EXAMPLES / "cluster" / path).read_text())
    for package in NEEDS[path][0]:
        pytest.importorskip(package)
    return str(found).split()


@pytest.fixture
def run_example(make_server: MakeServer) -> RunExample:
    """Run its command as it is written, in a copy of the examples; the address and the number of workers are
    the test's."""

    def run(path: str, workers: int, **env: str) -> Server:
        *start, app = command(path, "gunicorn -k")
        server = make_server()
        shutil.copytree(EXAMPLES, server.directory / "examples", ignore=shutil.ignore_patterns("*.sqlite3*"))
        gunicorn = [sys.executable, "-m", *start]
        return server.start("-w", str(workers), command=gunicorn, app=app, env=env, ready=workers)

    return run


def rows(server: Server, query: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(server.directory / "db.sqlite3", timeout=20)) as db:
        return db.execute(query).fetchall()


def hup(server: Server) -> None:
    """Reload; wait until no old worker is left."""
    old, done = server.workers(), len(server.logged("reload done"))
    server.signal(signal.SIGHUP)
    server.wait_logged("reload done", done + 1)
    for pid in old:
        wait_gone(pid)


def once_in_each(server: Server, path: str, wanted: Callable[[Any], bool]) -> list[Any]:
    """Ask until as many workers as there are have given an answer of this kind; the last one of each."""
    answers: dict[int, Any] = {}

    def found() -> bool:
        answer = server.get(path).raise_for_status().json()
        if wanted(answer):
            answers[answer["worker"]] = answer
        return len(answers) == len(server.workers())

    wait_for(found, "such an answer of each worker")
    return list(answers.values())


# --- the cache


def test_a_changed_value_is_forgotten_by_all_workers(run_example: RunExample) -> None:
    server = run_example("cache.py", 3)
    colour = "/settings/colour"
    assert server.get(colour).status_code == 404
    httpx.put(server.url + colour, params={"value": "blue"}).raise_for_status()
    cached = once_in_each(server, colour, lambda answer: answer["from"] == "memory")
    assert {answer["value"] for answer in cached} == {"blue"}

    httpx.put(server.url + colour, params={"value": "green"}).raise_for_status()
    once_in_each(server, colour, lambda answer: answer["value"] == "green")
    cached = once_in_each(server, colour, lambda answer: answer["from"] == "memory")
    assert {answer["value"] for answer in cached} == {"green"}
    assert not server.logged("WARNING|ERROR")


# --- the room


class Guest:
    """A client of the room."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.worker = int(re.findall(r"welcome, you are on worker (\d+)", self.reads())[0])

    def reads(self) -> str:
        return str(self.socket.recv(EARLY))

    def is_told(self) -> int:
        """The code with which the server closes."""
        with pytest.raises(ConnectionClosedError) as closed:
            self.reads()
        assert closed.value.rcvd is not None
        return closed.value.rcvd.code


@pytest.fixture
def enter() -> Iterator[Enter]:
    """Two guests, on different workers."""
    with contextlib.ExitStack() as stack:

        def enter(server: Server) -> list[Guest]:
            guests: dict[int, Guest] = {}

            def found() -> bool:
                socket = stack.enter_context(connect_websocket(f"ws://127.0.0.1:{server.port}/room"))
                guest = Guest(socket)
                guests.setdefault(guest.worker, guest)
                return len(guests) == 2

            wait_for(found, "guests on two workers")
            return list(guests.values())

        yield enter


def converse(one: Guest, other: Guest) -> None:
    for speaker, listener in ((one, other), (other, one)):
        for line in ("hello", "how are you?"):
            speaker.socket.send(f"{speaker.worker}: {line}")
            assert speaker.reads() == listener.reads() == f"{speaker.worker}: {line}"


def test_guests_on_different_workers_converse(run_example: RunExample, enter: Enter) -> None:
    server = run_example("room.py", 2)
    first = enter(server)
    converse(*first)
    server.signal(signal.SIGHUP)
    assert [guest.is_told() for guest in first] == [1012, 1012]
    server.wait_logged("reload done")
    converse(*enter(server))
    server.ends_within(10)
    assert not server.logged("WARNING|ERROR")


# --- the scheduler


def ticks_of(server: Server) -> list[int]:
    """The pids of those that have ticked, one after the other. Nobody ticks between two ticks of another."""
    pids = [pid for pid, _ in itertools.groupby(pid for (pid,) in rows(server, "select pid from ticks"))]
    assert len(pids) == len(set(pids)), "two at once, or one twice"
    return pids


def test_one_worker_alone_has_a_scheduler(run_example: RunExample) -> None:
    server = run_example("scheduler.py", 3)

    def ticks(pid: int) -> int:
        return int(rows(server, f"select count(*) from ticks where pid = {pid}")[0][0])

    def scheduling(number: int) -> int:
        wait_for(lambda: len(ticks_of(server)) == number, f"worker {number} with a scheduler")
        pid = ticks_of(server)[-1]
        wait_for(lambda: ticks(pid) >= 3, "some ticks")  # the time in which another one would tick
        assert len(ticks_of(server)) == number
        return pid

    os.kill(scheduling(1), signal.SIGKILL)
    second = scheduling(2)
    hup(server)
    assert gone(second)
    third = scheduling(3)
    assert {tick["pid"] for tick in server.get().json()} >= {third}
    server.ends_within(10)
    assert len(ticks_of(server)) == 3
    assert not server.logged("Traceback")


# --- migrations


def test_alembic_migrates_once_in_each_deployment(run_example: RunExample) -> None:
    server = run_example("migrations/app.py", 4)

    def migrated() -> dict[str, Any]:
        """By whom, as all workers say."""
        first, *others = once_in_each(server, "/", lambda answer: True)
        assert [other["migrated"] for other in others] == [first["migrated"]] * 3
        assert first["migrated"].pop("pid") in server.workers()
        return dict(first["migrated"])

    assert migrated() == {"from": None, "to": "0001"}
    hup(server)
    assert migrated() == {"from": "0001", "to": "0001"}
    revision = 'from alembic import op\nrevision, down_revision = "0002", "0001"\n'
    revision += """def upgrade(): op.execute("insert into notes values (1, 'a note')")\n"""
    server.write("examples/cluster/migrations/alembic/versions/0002_a_note.py", revision)
    hup(server)
    assert migrated() == {"from": "0001", "to": "0002"}
    assert rows(server, "select text from notes") == [("a note",)]
    assert not server.logged("WARNING|ERROR")


def test_django_migrates_once_in_each_deployment(run_example: RunExample) -> None:
    server = run_example("migrations/django_wsgi.py", 4)
    assert len(server.logged(r"Applying mysite\.0001_initial\.\.\. OK")) == 1
    assert len(server.logged("Running migrations:")) == 1
    assert server.get().json()["visits"] == 1
    hup(server)
    assert len(server.logged("Running migrations:")) == 2
    assert len(server.logged("No migrations to apply")) == 1
    assert server.get().json()["visits"] == 2
    assert not server.logged("WARNING|ERROR")


# --- the consumer


def test_each_job_is_done_exactly_once(run_example: RunExample) -> None:
    server = run_example("consumer.py", 3, **EASILY)
    added = 0

    def add(count: int) -> None:
        nonlocal added
        numbers = list(range(added + 1, added + count + 1))
        httpx.post(server.url + "/jobs", json=numbers).raise_for_status()
        added += count

    def consumers() -> list[int]:
        return [
            pid for pid, _ in itertools.groupby(pid for (pid,) in rows(server, "select pid from results"))
        ]

    for kills in range(3):
        add(30)
        wait_for(lambda: len(consumers()) == kills + 1, "a consumer")  # noqa: B023 - called at once
        add(30)
        os.kill(consumers()[-1], signal.SIGKILL)  # in the middle of its work
        server.wait_ready(3 + kills + 1)
    wait_for(lambda: len(consumers()) == 4, "the consumer after them")
    add(100)
    hup(server)
    add(30)
    wait_for(lambda: server.get("/jobs").raise_for_status().json()["waiting"] == 0, "all results")
    results = rows(server, "select job, square from results")
    assert results == [(job, job**2) for job in range(1, added + 1)]
    assert len(consumers()) == len(set(consumers())) == 5
    server.ends_within(10)
    assert not server.logged("Traceback")


# --- one process


@pytest.mark.parametrize("path", NEEDS)
def test_in_one_process(tmp_path: Path, path: str) -> None:
    """Plain uvicorn, or plain gunicorn for a WSGI app."""
    plain = command(path, "gunicorn examples" if "wsgi" in path else "uvicorn")
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("*.sqlite3*"))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    address = ["-b", f"127.0.0.1:{port}"] if plain[0] == "gunicorn" else ["--port", str(port)]
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen([sys.executable, "-m", *plain, *address], cwd=tmp_path, env=environ)

    def page() -> httpx.Response | None:
        assert process.poll() is None
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(url + NEEDS[path][1]).raise_for_status()
        return None

    try:
        wait_for(page, "an answer")
        if path == "scheduler.py":
            wait_for(lambda: len(httpx.get(url).json()) >= 2, "ticks")
        if path == "consumer.py":
            httpx.post(f"{url}/jobs", json=[12]).raise_for_status()
            wait_for(lambda: httpx.get(f"{url}/jobs").json() == {"waiting": 0, "done": 1}, "the result")
    finally:
        process.terminate()
        process.wait(20)
