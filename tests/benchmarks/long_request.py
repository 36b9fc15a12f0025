"""What others wait for while one request takes long: WSGI inline, 4 workers, a connection for each request.

    python -m tests.benchmarks.long_request [--seconds 5] [--rounds 5]

In each round one request of 5 s runs among requests of 5 ms from three clients; the slowest of those counts.
Beside ours: gunicorn's sync workers, which leave acceptance to whoever wakes.
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

from tests.benchmarks.common import LOCAL, OURS, gunicorn, provide, serving

WORKERS = {"multicore_server, inline": OURS, "gunicorn sync": "sync"}
CLIENTS = 3


def ask(port: int, seconds: float) -> float:
    """Make one request; return how long it took, in seconds."""
    began = time.monotonic()
    with socket.create_connection((LOCAL, port), 60) as connection:
        connection.sendall(f"GET /block?{seconds} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while data := connection.recv(4096):
            answer += data
    if not answer.endswith(b"Hello, world!"):
        sys.exit("benchmark: a request failed")
    return time.monotonic() - began


def one_round(port: int, seconds: float) -> float:
    """The slowest of the short requests."""
    ends = time.monotonic() + seconds

    def hurry(_: int) -> float:
        slowest = 0.0
        while time.monotonic() < ends:
            slowest = max(slowest, ask(port, 0.005))
        return slowest

    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        long = pool.submit(ask, port, seconds)
        slowest = max(pool.map(hurry, range(CLIENTS)))
        long.result()
    return slowest


def measure(worker: str, directory: Path, seconds: float, rounds: int) -> list[float]:
    with serving(directory, gunicorn(worker, 4, "hello_world:wsgi")) as server:
        time.sleep(2)  # every worker
        return [one_round(server.port, seconds) for _ in range(rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5.0, help="of the long request")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print("| server | slowest short request, median | of all rounds |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as scratch:
        provide(Path(scratch), "hello_world")
        for name, worker in WORKERS.items():
            slowest = measure(worker, Path(scratch), args.seconds, args.rounds)
            print(f"| {name} | {statistics.median(slowest):.3f} s | {max(slowest):.3f} s |", flush=True)


if __name__ == "__main__":
    main()
