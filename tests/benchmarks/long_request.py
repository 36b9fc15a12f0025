"""What others wait for while one request takes long: WSGI inline, 4 workers, a connection for each request.

    python tests/benchmarks/long_request.py [--seconds 5] [--rounds 5]

In each round one request of 5 s runs among requests of 5 ms from three clients; the slowest of those counts.
Beside ours: gunicorn's sync workers, which leave acceptance to whoever wakes.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

APP = """
import time

def app(environ, start_response):
    time.sleep(float(environ["QUERY_STRING"]))
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
WORKERS = {"multicore_server, inline": "multicore_server.Worker", "gunicorn sync": "sync"}
CLIENTS = 3


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(port: int, seconds: float) -> float:
    """Make one request; return how long it took, in seconds."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(f"GET /?{seconds} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while data := connection.recv(4096):
            answer += data
    if not answer.endswith(b"ok"):
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
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "-k",
        worker,
        "-w",
        "4",
        "-b",
        f"127.0.0.1:{port}",
        "app:app",
    ]
    env = {**os.environ, "MULTICORE_METRICS_BIND": ""}
    server = subprocess.Popen(command, cwd=directory, env=env, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if time.monotonic() > deadline:
                sys.exit("benchmark: the server did not start")
            time.sleep(0.05)
        time.sleep(2)  # every worker
        return [one_round(port, seconds) for _ in range(rounds)]
    finally:
        server.terminate()
        server.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5.0, help="of the long request")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print("| server | slowest short request, median | of all rounds |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "app.py").write_text(APP)
        for name, worker in WORKERS.items():
            slowest = measure(worker, Path(scratch), args.seconds, args.rounds)
            print(f"| {name} | {statistics.median(slowest):.3f} s | {max(slowest):.3f} s |", flush=True)


if __name__ == "__main__":
    main()
