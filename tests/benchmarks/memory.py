"""The memory of a service, ours and gunicorn with uvicorn-worker: each process, and an idle connection.

    python -m tests.benchmarks.memory [--workers 2] [--connections 2000] [--rounds 3]

Needs Linux and, in the same environment, the dependency group ``benchmark``. USS is what the end of a process
would free, PSS its USS and its share of the pages that it has with others (proc(5), smaps_rollup). Both
servers answer "hello" and are measured a few seconds after their start, ours with its metrics on and after
some scrapes too. A connection has had one response and is kept alive. Medians of the rounds, in MiB and KiB.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import resource
import socket
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.benchmarks.common import (
    ENV,
    LOCAL,
    OURS,
    REQUEST,
    UVICORN_WORKER,
    Process,
    free_port,
    gunicorn,
    poll,
    provide,
    serving,
)

MIB = 1024  # KiB
SETTLED = 4.0  # seconds after its start, in which the monitor and every heartbeat have come
WARM_UP = 200  # connections before those that are counted: buffers and free lists have their size then
SCRAPES = 10


class Memory(NamedTuple):
    """In KiB."""

    uss: float
    pss: float


Found = dict[str, Memory]


def memory(process: psutil.Process) -> Memory:
    text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    sizes = {name: int(size) for name, size in re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE)}
    return Memory(sizes["Private_Clean"] + sizes["Private_Dirty"], sizes["Pss"])


def total(found: list[Memory]) -> Memory:
    return Memory(sum(each.uss for each in found), sum(each.pss for each in found))


def monitor_of(server: Process) -> psutil.Process | None:
    workers = {worker.pid for worker in server.workers()}
    children = psutil.Process(server.process.pid).children()
    return next((child for child in children if child.pid not in workers), None)


@contextlib.contextmanager
def kept_alive(port: int, count: int) -> Iterator[None]:
    """So many connections, each after its first response."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(socket.create_connection((LOCAL, port), timeout=30))
            client.sendall(REQUEST)
            if not client.recv(4096).startswith(b"HTTP/1.1 200"):
                raise OSError("the server has not answered")
        time.sleep(1.5)  # a heartbeat or two: nothing that is still on its way is measured
        yield


def connection(server: Process, count: int) -> Memory:
    """What each of so many idle connections costs the workers."""
    with kept_alive(server.port, WARM_UP):
        before = total([memory(worker) for worker in server.workers()])
        with kept_alive(server.port, count):
            after = total([memory(worker) for worker in server.workers()])
    return Memory((after.uss - before.uss) / count, (after.pss - before.pss) / count)


def measure(directory: Path, worker: str, workers: int, connections: int) -> Found:
    metrics = free_port()
    env = {**ENV, "MULTICORE_METRICS_BIND": f"{LOCAL}:{metrics}"}
    command = gunicorn(worker, workers, "hello_world:asgi", "--keep-alive", "600")
    with serving(directory, command, env) as server:
        time.sleep(SETTLED)
        poll(lambda: len(server.workers()) == workers)
        found = {"arbiter": memory(psutil.Process(server.process.pid))}
        monitor = monitor_of(server)
        if monitor is not None:
            found["monitor"] = memory(monitor)
        found["arbiter and monitor"] = total(list(found.values()))
        each = [memory(it) for it in server.workers()]
        found["the service"] = total([found["arbiter and monitor"], *each])
        found["a worker"] = Memory(*(statistics.mean(values) for values in zip(*each, strict=True)))
        if monitor is not None:
            for _ in range(SCRAPES):
                urllib.request.urlopen(f"http://{LOCAL}:{metrics}/metrics").read()
            found["monitor, scraped"] = memory(monitor)
        found["a connection"] = connection(server, connections)
    return found


def median(rounds: list[Found]) -> Found:
    return {
        name: Memory(
            *(statistics.median(values) for values in zip(*(it[name] for it in rounds), strict=True))
        )
        for name in rounds[0]
    }


def row(name: str, ours: Found, theirs: Found) -> str:
    unit, size, places = ("KiB", 1, 2) if name == "a connection" else ("MiB", MIB, 1)
    base = theirs.get(name, Memory(0, 0))  # gunicorn has no monitor
    pairs = zip(ours[name], base, strict=True)
    cells = [figure for mine, other in pairs for figure in (mine, other, mine - other)]
    return f"| {name}, {unit} | {' | '.join(f'{cell / size:.{places}f}' for cell in cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--connections", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found: dict[str, list[Found]] = {OURS: [], UVICORN_WORKER: []}
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        provide(directory, "hello_world")
        for _ in range(args.rounds):
            for worker, rounds in found.items():
                rounds.append(measure(directory, worker, args.workers, args.connections))
    ours, theirs = median(found[OURS]), median(found[UVICORN_WORKER])
    print("| what | USS | uvicorn-worker | more | PSS | uvicorn-worker | more |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in ours:
        print(row(name, ours, theirs))


if __name__ == "__main__":
    main()
