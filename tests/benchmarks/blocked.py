"""What idle clients wait for while one of four workers is blocked: 64 kept-alive connections, 5 s.

    python -m tests.benchmarks.blocked [--seconds 5] [--rounds 3] [--servers ours,uvicorn-worker]

Each client has had a response. One sends a request that blocks its worker (``time.sleep``: an event loop, or
a worker that runs inline, does nothing else); right after it all others send a short one. The slowest of
those counts, and the median of the rounds. Where no other connection was the blocked worker's, none waits:
the table says how many did for more than 0.1 s.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.benchmarks.common import LOCAL, provide, serving
from tests.benchmarks.cost import names_of
from tests.benchmarks.servers import SERVERS

CLIENTS = 64
WORKERS = 4
ASGI = ("ours", "uvicorn-worker", "uvicorn", "granian")
WSGI = ("ours", "gthread", "granian")
LATE = 0.1  # seconds


def ask(connection: socket.socket, path: str) -> float:
    """Seconds until the response has come."""
    began = time.monotonic()
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = b""
    while not answer.endswith(b"Hello, world!"):
        data = connection.recv(4096)
        if not data:
            sys.exit("benchmark: a connection was closed")
        answer += data
    return time.monotonic() - began


def one_round(port: int, seconds: float) -> list[float]:
    """What each of the short requests has taken."""
    connections = [socket.create_connection((LOCAL, port), 60) for _ in range(CLIENTS)]
    try:
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda it: ask(it, "/"), connections))
            time.sleep(0.5)
            blocking = pool.submit(ask, connections[0], f"/block?{seconds}")
            time.sleep(0.02)
            took = list(pool.map(lambda it: ask(it, "/"), connections[1:]))
            blocking.result()
    finally:
        for connection in connections:
            connection.close()
    return took


def measure(server: str, app: str, directory: Path, seconds: float, rounds: int) -> list[list[float]]:
    with serving(directory, SERVERS[server](app, WORKERS)) as running:
        time.sleep(2)  # every worker
        return [one_round(running.port, seconds) for _ in range(rounds)]


def row(name: str, found: list[list[float]]) -> str:
    slowest = [max(took) for took in found]
    late = statistics.median(sum(it > LATE for it in took) for took in found)
    return (
        f"| {name} | {statistics.median(slowest):.2f} s | {max(slowest):.2f} s | {late:g} of {CLIENTS - 1} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5.0, help="for which a worker is blocked")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", type=names_of, default=[*ASGI, *WSGI])
    args = parser.parse_args()
    print("| server | slowest, median | of all rounds | later than 0.1 s |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as scratch:
        provide(Path(scratch), "hello_world")
        for app, servers in (("hello_world:asgi", ASGI), ("hello_world:wsgi", WSGI)):
            for server in (it for it in servers if it in args.servers):
                found = measure(server, app, Path(scratch), args.seconds, args.rounds)
                print(row(f"{server}, {app.rpartition(':')[2]}", found), flush=True)


if __name__ == "__main__":
    main()
