"""Reloads under many kept-alive connections: what fails, what is closed, what pauses, how long it takes.

    python -m tests.benchmarks.many_connections [--app asgi] [--connections 2000 9000] [--starved]

Each connection asks at random intervals (``--interval``, seconds). "pause" is the longest that a request in
progress was kept from going on by the moving of connections; "slowest" the longest that a client waited for
an answer. ``--starved`` runs ``stress-ng --cpu 4`` beside it.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.common import LOCAL, OURS, Process, gunicorn, poll, provide, serving

MOST = 15_000  # connections of one client process
PROBES = 4


class Probe(threading.Thread):
    """Asks again and again for the longest pause that its request has seen."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.longest = 0.0  # milliseconds
        self.failed = 0
        self.over = False

    def run(self) -> None:
        while not self.over:
            try:
                self._ask_on()
            except (OSError, ValueError):
                self.failed += not self.over

    def _ask_on(self) -> None:
        with socket.create_connection((LOCAL, self.port), timeout=30) as client:
            while not self.over:
                client.sendall(b"GET /pause HTTP/1.1\r\nHost: x\r\n\r\n")
                got = b""
                while not got.partition(b"\r\n\r\n")[2]:
                    data = client.recv(4096)
                    if not data:
                        raise OSError("cut")
                    got += data
                self.longest = max(self.longest, float(got.partition(b"\r\n\r\n")[2]))


@contextmanager
def starving(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    hog = subprocess.Popen(["stress-ng", "--cpu", "4", "--quiet"], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        hog.terminate()
        hog.wait()


def clients(port: int, connections: int, interval: list[float]) -> list[subprocess.Popen[str]]:
    started = []
    for first in range(0, connections, MOST):
        count = min(MOST, connections - first)
        command = [sys.executable, "-m", "tests.benchmarks.many_clients", port, count, first, *interval]
        process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
    for process in started:
        assert process.stdout is not None
        if process.stdout.readline() != "open\n":
            sys.exit("benchmark: the connections could not be opened")
    return started


def reload(server: Process, patience: float) -> float:
    """Seconds until the last of the old workers is gone."""
    old = server.workers()
    began = time.monotonic()
    server.process.send_signal(signal.SIGHUP)
    poll(lambda: not any(worker.is_running() for worker in old), 0.05, patience)
    return time.monotonic() - began


def run(options: argparse.Namespace, connections: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        provide(directory, "many")
        settings = [
            "--keep-alive",
            "300",
            "--graceful-timeout",
            str(options.graceful_timeout),
            "--timeout",
            "60",
        ]
        command = gunicorn(OURS, options.workers, f"many:{options.app}", *settings)
        with serving(directory, command) as server:
            started = clients(server.port, connections, options.interval)
            probes = [Probe(server.port) for _ in range(PROBES)]
            with starving(options.starved):
                for probe in probes:
                    probe.start()
                time.sleep(2)
                took = []
                for _ in range(options.reloads):
                    took.append(reload(server, 4 * options.graceful_timeout))
                    time.sleep(1)
                for probe in probes:
                    probe.over = True
            results = [json.loads(process.communicate("end\n", timeout=60)[0]) for process in started]
            for probe in probes:
                probe.join()
            if options.log:
                print(server.text(), file=sys.stderr)
    total = {key: sum(result[key] for result in results) for key in ("answered", "failed", "closed_idle")}
    total["failed"] += sum(probe.failed for probe in probes)
    slowest = max(result["slowest"] for result in results)
    longest = max(probe.longest for probe in probes)
    return {**total, "slowest": slowest, "pause": longest, "took": max(took)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--app", default="asgi", choices=("asgi", "wsgi"))
    parser.add_argument("--connections", type=int, nargs="+", default=[2_000, 9_000])
    parser.add_argument("--interval", type=float, nargs=2, default=[2.0, 6.0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--reloads", type=int, default=3)
    parser.add_argument("--graceful-timeout", type=int, default=30)
    parser.add_argument("--starved", action="store_true")
    parser.add_argument("--log", action="store_true", help="show the server's log")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(
        "| app | connections | reloads | answered | failed | closed idle | slowest | pause | a reload took |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for connections in options.connections:
        found = run(options, connections)
        cells = [options.app, connections, options.reloads, found["answered"], found["failed"]]
        cells += [found["closed_idle"], f"{found['slowest']:.2f} s", f"{found['pause']:.0f} ms"]
        print(*["", *cells, f"{found['took']:.1f} s", ""], sep=" | ", flush=True)


if __name__ == "__main__":
    main()
