"""Logs that are rotated while all processes write to them."""

from __future__ import annotations

import contextlib
import re
import signal
from collections import defaultdict
from pathlib import Path

from tests.support.command_line import COMMAND
from tests.support.server import MakeServer, Server
from tests.support.waiting import wait_for

# Each worker prints and logs numbered lines for a while, from its import on.
WRITES = """
import logging, os, threading, time

def write():
    log, pid, number, end = logging.getLogger("gunicorn.error"), os.getpid(), 0, time.monotonic() + 1.5
    while time.monotonic() < end:
        print(f"printed {pid} {number}")
        log.warning(f"logged {pid} {number}")
        number += 1
        time.sleep(0.0005)
    print(f"end {pid} {number}")

threading.Thread(target=write, daemon=True).start()

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
"""
NUMBERED = re.compile(r"^(?:\[.*\] )?(printed|logged|end) (\d+) (\d+)$", re.MULTILINE)


def logs_of(server: Server) -> list[Path]:
    return list(server.directory.glob("error.log*"))


def text_of(path: Path) -> str:
    """Nothing, where it is rotated now."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text()
    return ""


def written(server: Server) -> dict[tuple[str, int], list[int]]:
    """The numbers in all of the files, by kind of line and pid."""
    found = defaultdict(list)
    for path in logs_of(server):
        for kind, pid, number in NUMBERED.findall(text_of(path)):
            found[kind, int(pid)].append(int(number))
    return found


def test_no_line_is_lost_and_none_is_there_twice(make_server: MakeServer) -> None:
    server = make_server(WRITES)
    log = ["--error-logfile", "error.log", "--capture-output", "--log-max-size", "10K", "--log-keep", "500"]
    command = [*COMMAND, "run", "--port", str(server.port), "--workers", "2", *log]
    server.start(command=command, bind="")
    wait_for(lambda: len(logs_of(server)) > 3, "rotated files")
    server.signal(signal.SIGHUP)  # workers boot meanwhile, and others end in the midst of it
    wait_for(lambda: "reload done" in "".join(map(text_of, logs_of(server))), "the reload")
    wait_for(lambda: len(server.workers()) == 2, "the end of the old workers")
    workers = {pid: ("end", pid) for pid in server.workers()}
    wait_for(lambda: written(server).keys() >= set(workers.values()), "the last lines of the new workers")
    wait_for(lambda: (server.directory / "error.log").stat().st_size < 10 * 1024, "the last rotation")
    found = written(server)
    for (kind, pid), numbers in found.items():
        expected = found[workers[pid]][0] if pid in workers else len(numbers)
        assert kind == "end" or sorted(numbers) == list(range(expected)), (kind, pid)
    assert len({pid for _, pid in found}) == 4
    assert len(logs_of(server)) > 5
    assert server.log == ""
