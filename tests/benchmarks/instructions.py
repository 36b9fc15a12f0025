"""Instructions and system calls a request, in the worker: a difference of 2 % is seen.

This is ``python -m tests.benchmarks.cost --instructions``; it needs ``valgrind``. Each server has one worker,
which is sent a fixed number of requests in lockstep. What it does without any in the same time, its
heartbeats, is taken off. The kernel's share of a request is not counted, but how often it is called is.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tests.benchmarks import baseline, lockstep, slowed
from tests.benchmarks.callgrind import Counter, Counts, under_callgrind
from tests.benchmarks.common import ENV, provide, serving
from tests.benchmarks.servers import APPS, SERVERS

BASELINE = Path(__file__).with_suffix(".json")
COUNTED = ("ours", "uvicorn-worker", "gthread")  # that a worker is a child of its arbiter
CONNECTIONS = (1, 8)
REQUESTS = {"hello": 800, "large": 800, "wsgi": 800, "sse": 160}
OTHERS = 400  # requests, of the frameworks; all are whole rounds on any of the connections
WARM_UP = 160  # requests
IDLE = 5.0  # seconds
HOSTS = ("gunicorn", "uvicorn", "uvicorn-worker", "uvloop", "httptools")
FRAMEWORKS = ("fastapi", "starlette", "flask", "werkzeug", "django")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
CELLS = list(itertools.product((("kept alive", False), ("close", True)), CONNECTIONS))


def run(apps: Sequence[str], servers: Sequence[str], path: Path, *, update: bool) -> int:
    """Print the table, or write the baseline; returns the status to exit with."""
    before = baseline.read(path)
    old = before.get(PYTHON)
    now: baseline.Baseline = {"versions": versions(), "cells": {}}
    if old is None and not update:
        sys.exit(f"benchmark: {path} has nothing for Python {PYTHON} (--update writes it)")
    for difference in baseline.differences(old["versions"], now["versions"]) if old else ():
        print(f"not as in the baseline: {difference}")
    print("| cell | server | baseline | now | change | system calls | now |\n|" + " --- |" * 7, flush=True)
    worse = False
    for cell, server, counts in measure(apps, servers):
        earlier = baseline.find(old, cell, server)
        print(baseline.row(cell, server, earlier, counts), flush=True)
        worse |= server == "ours" and baseline.is_worse(earlier, counts)
        baseline.note(now["cells"], cell, server, counts)
    if update:
        path.write_text(baseline.dumps({**before, PYTHON: baseline.merged(old, now)}))
    return 1 if worse and not update else 0


def versions() -> dict[str, str]:
    """Of what the counts depend on, beside this package."""
    if shutil.which("valgrind") is None:
        sys.exit("benchmark: valgrind is not installed (apt-get install valgrind)")
    found = {name: importlib.metadata.version(name) for name in HOSTS + FRAMEWORKS}
    found["python"] = f"{platform.python_version()} by {platform.python_compiler()}"
    said = subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=True)
    found["valgrind"] = said.stdout.strip().removeprefix("valgrind-")
    return found


def measure(apps: Sequence[str], servers: Sequence[str]) -> Iterator[tuple[str, str, Counts]]:
    """Each cell, its server, and what a request costs."""
    for app in apps:
        target, known = APPS[app]
        for server in (name for name in known if name in COUNTED and name in servers):
            for cell, counts in of_server(SERVERS[server](target, 1), REQUESTS.get(app, OTHERS)):
                yield f"{app}, {cell}", server, counts


def of_server(command: Callable[[int], list[str]], number: int) -> Iterator[tuple[str, Counts]]:
    cpus = sorted(os.sched_getaffinity(0))
    env = {**ENV, "PYTHONHASHSEED": "0", "GUNICORN_CMD_ARGS": f"--config {slowed.__file__}"}
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        provide(directory, "costs")
        os.sched_setaffinity(0, cpus[:1])
        try:
            with serving(directory, under_callgrind(command, directory), env) as server:
                os.sched_setaffinity(0, cpus[-1:])
                pid = server.workers()[0].pid
                send = partial(lockstep.requests, server.port, pid)
                yield from of_worker(send, Counter(directory, pid), number)
        finally:
            os.sched_setaffinity(0, cpus)


def of_worker(send: Callable[..., None], counter: Counter, number: int) -> Iterator[tuple[str, Counts]]:
    """Each cell, and what a request costs."""
    found = {}
    for (mode, close), connections in CELLS:
        send(WARM_UP, connections, close=close)
        counter.read()
        found[f"{mode}, c={connections}"] = during(counter, partial(send, number, connections, close=close))
    idle, seconds = during(counter, partial(time.sleep, IDLE))
    for cell, (counts, duration) in found.items():
        yield cell, counts.minus(idle.times(duration / seconds)).times(1 / number)


def during(counter: Counter, action: Callable[[], None]) -> tuple[Counts, float]:
    """What the worker does meanwhile, and how many seconds that takes."""
    began = time.monotonic()
    action()
    return counter.read(), time.monotonic() - began
