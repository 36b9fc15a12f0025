"""Exactly one worker runs what is to run once, through crashes and reloads; migrations run once."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.support.addresses import free_port
from tests.support.apps import source
from tests.support.processes import gone
from tests.support.server import MakeServer, Server
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration

APP = source("elected")
EASILY = {  # crash after crash is what is wanted here
    "MULTICORE_EXP_BACKOFF_RESTART_DELAY": "0",
    "MULTICORE_MAX_RESTARTS": "1000",
    "MULTICORE_MIN_UPTIME": "0",
}
every_kind = pytest.mark.parametrize(
    ("app", "options"),
    [("app", ()), ("wsgi", ()), ("wsgi", ("--threads", "4"))],
    ids=["asgi", "inline", "threads"],
)


class Beat:
    """One line of a job."""

    def __init__(self, line: str) -> None:
        pid, at = line.split()
        self.pid, self.at = int(pid), float(at)


def beats(path: Path) -> list[Beat]:
    if not path.exists():
        return []
    return sorted(map(Beat, path.read_text().splitlines()), key=lambda beat: beat.at)


def holder(server: Server, name: str = "job") -> int:
    """The worker in which the job runs now."""

    def found() -> int:
        last = beats(server.directory / name)[-1:]
        return last[0].pid if last and not gone(last[0].pid) and time.monotonic() - last[0].at < 0.2 else 0

    return wait_for(found, "a primary worker")


def never_two(path: Path) -> list[float]:
    """Check that no two workers ran the job at once; the gaps between one and the next, in seconds."""
    groups = [(pid, list(some)) for pid, some in itertools.groupby(beats(path), lambda beat: beat.pid)]
    pids = [pid for pid, _ in groups]
    assert len(pids) == len(set(pids)), "two at once, or one twice"
    return [after[0].at - before[-1].at for (_, before), (_, after) in itertools.pairwise(groups)]


def hup(server: Server) -> None:
    done = len(server.logged("reload done"))
    server.signal(signal.SIGHUP)
    server.wait_logged("reload done", done + 1)


@every_kind
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_exactly_one_worker_is_primary(
    make_server: MakeServer, app: str, options: tuple[str, ...], loop: str
) -> None:
    server = make_server(APP)
    server.start("-w", "3", *options, app=f"app:{app}", ready=3, env={"UVICORN_LOOP": loop})
    first = holder(server)
    assert holder(server, "thread_job") == first
    hup(server)
    wait_for(lambda: len(server.workers()) == 3, "the end of the old workers")
    second = holder(server)
    assert second != first
    assert len(never_two(server.directory / "job")) == 1  # from the old workers it went to a new one at once
    os.kill(second, signal.SIGKILL)
    server.wait_ready(7)
    wait_for(lambda: holder(server) != second, "the one after it")
    wait_for(lambda: holder(server, "thread_job") == holder(server), "the thread's job there too")
    server.ends_within(10)
    for name in ("job", "thread_job"):
        gaps = never_two(server.directory / name)
        assert len(gaps) >= 2
        assert max(gaps) < 10


@pytest.mark.quiet
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_the_gaps_are_short_over_many_kills_and_reloads(make_server: MakeServer, loop: str) -> None:
    server = make_server(APP)
    server.start("-w", "2", ready=2, env={"UVICORN_LOOP": loop, **EASILY})
    ready = 2
    for _ in range(30):
        os.kill(holder(server), signal.SIGKILL)
        ready += 1
        server.wait_ready(ready)
    killed = len(never_two(server.directory / "job"))
    for _ in range(20):
        hup(server)
    gaps = never_two(server.directory / "job")
    assert killed >= 29
    assert max(gaps[:killed]) < 2.0
    planned = sorted(gaps[killed:])
    assert len(planned) >= 10
    assert planned[-1] < 0.1


def test_a_worker_that_stands_still_keeps_its_place(make_server: MakeServer) -> None:
    """It may go on at any moment: another one must not begin."""
    server = make_server(APP).start("-w", "2", ready=2)
    primary = holder(server)
    os.kill(primary, signal.SIGSTOP)
    try:
        stopped = time.monotonic()
        wait_for(lambda: time.monotonic() > stopped + 1.5, "some heartbeats")
        assert beats(server.directory / "job")[-1].pid == primary
    finally:
        os.kill(primary, signal.SIGCONT)
    assert holder(server) == primary


# --- once


def migrations(server: Server) -> list[str]:
    path = server.directory / "migrations"
    return path.read_text().split() if path.exists() else []


def test_a_migration_runs_once_a_deployment(make_server: MakeServer) -> None:
    server = make_server(APP).start("-w", "8", ready=8, env={"AT_IMPORT": "1"})
    assert len(migrations(server)) == 2  # at the import and in the lifespan
    assert server.get().text.endswith("['migrated'] migrated")
    os.kill(server.workers()[0], signal.SIGKILL)
    server.wait_ready(9)
    assert len(migrations(server)) == 2
    hup(server)
    assert len(migrations(server)) == 4


def test_where_its_worker_dies_in_the_middle_another_one_migrates(make_server: MakeServer) -> None:
    server = make_server(APP)
    server.write("crashes", "")
    server.start("-w", "4", ready=4, env=EASILY)
    assert len(migrations(server)) == 2
    assert server.get().text.endswith("['migrated'] ")


def test_a_migration_that_fails_at_the_start_fails_the_start(make_server: MakeServer) -> None:
    server = make_server(APP)
    server.write("fails", "")
    server.start("-w", "3")
    assert server.wait_exit() == 3
    assert server.logged("no database")


@pytest.mark.parametrize("at_import", ["", "1"])
def test_a_migration_that_fails_in_a_reload_is_rolled_back(make_server: MakeServer, at_import: str) -> None:
    server = make_server(APP).start("-w", "2", ready=2, env={"AT_IMPORT": at_import})
    server.write("fails", "")
    server.signal(signal.SIGHUP)
    server.wait_logged("reload rolled back")
    assert server.get().status_code == 200
    (server.directory / "fails").unlink()
    hup(server)


# --- without a worker


def test_under_plain_uvicorn_the_app_is_alone(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
    process = subprocess.Popen(command, cwd=tmp_path)

    def answer() -> str:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/").text
        except httpx.TransportError:
            return ""

    try:
        assert wait_for(answer, "an answer") == "True ['migrated'] "
        wait_for(lambda: len(beats(tmp_path / "job")) > 3, "the job")
    finally:
        process.terminate()
        process.wait(20)
