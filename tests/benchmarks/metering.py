"""What counting requests costs, and scraping: hello with and without, in one run.

    python -m tests.benchmarks.metering [--seconds 3] [--rounds 9]

One worker on one core, the client (wrk) on the other. CPU time of the worker per request, which is less noisy
than requests per second; the medians of the rounds' ratios count. "off" is a worker class that leaves the
counting out. "scraped" has one scrape of the metrics each second.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.benchmarks.common import ENV, LOCAL, OURS, Process, free_port, gunicorn, poll, provide
from tests.support.threads import running

COUNTED, UNCOUNTED = OURS, "uncounted.Uncounted"
CASES = {"off": (UNCOUNTED, False), "on": (COUNTED, False), "scraped": (COUNTED, True)}


class Server(Process):
    """One worker on one core, with an address for scrapers."""

    def __init__(self, directory: Path, worker: str, app: str) -> None:
        self.metrics = free_port()
        command = gunicorn(worker, 1, f"hello_world:{app}", "--pythonpath", str(directory))
        env = {**ENV, "MULTICORE_METRICS_BIND": f"{LOCAL}:{self.metrics}"}
        super().__init__(directory, lambda port: ["taskset", "-c", "0", *command(port)], env)
        poll(lambda: listens(self.metrics))
        time.sleep(1)

    def used(self) -> float:
        """Seconds of CPU of everything that the server is."""
        arbiter = psutil.Process(self.process.pid)
        times = [process.cpu_times() for process in (arbiter, *arbiter.children())]
        return sum(each.user + each.system for each in times)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOCAL, port)) == 0


@contextlib.contextmanager
def scraping(port: int) -> Iterator[None]:
    done = threading.Event()

    def scrape() -> None:
        while not done.wait(1.0):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                answer.read()

    with running(scrape, end=done.set):
        yield


def load(server: Server, seconds: float) -> tuple[float, float]:
    """Requests a second, and microseconds of CPU for each."""
    used = server.used()
    command = [
        "taskset",
        "-c",
        "1",
        "wrk",
        "-t1",
        "-c16",
        f"-d{seconds}s",
        f"http://127.0.0.1:{server.port}/",
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate = re.search(r"Requests/sec: +([\d.]+)", said)
    total = re.search(r"(\d+) requests in", said)
    if rate is None or total is None or "Non-2xx" in said or "Socket errors" in said:
        sys.exit(f"benchmark: {said}")
    return float(rate[1]), (server.used() - used) / int(total[1]) * 1e6


def measure(directory: Path, app: str, args: argparse.Namespace) -> None:
    servers = {worker: Server(directory, worker, app) for worker in (COUNTED, UNCOUNTED)}
    rates: dict[str, list[float]] = {name: [] for name in CASES}
    costs: dict[str, list[float]] = {name: [] for name in CASES}
    try:
        for _ in range(args.rounds):
            for name, (worker, scraped) in CASES.items():
                server = servers[worker]
                with scraping(server.metrics) if scraped else contextlib.nullcontext():
                    rate, cost = load(server, args.seconds)
                rates[name].append(rate)
                costs[name].append(cost)
    finally:
        for server in servers.values():
            server.end()
    for name, before in (("on", "off"), ("scraped", "on")):
        ratios = [a / b for a, b in zip(rates[name], rates[before], strict=True)]
        more = [a - b for a, b in zip(costs[name], costs[before], strict=True)]
        relative = statistics.median(a / b for a, b in zip(costs[name], costs[before], strict=True))
        print(
            f"| {app}, {name} against {before} | {statistics.median(rates[name]):,.0f} | "
            f"{statistics.median(ratios):.3f} ({min(ratios):.2f}-{max(ratios):.2f}) | "
            f"{statistics.median(costs[name]):.1f} us | {statistics.median(more):+.2f} us | {relative:.3f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("benchmark: wrk is not installed")
    print("| what | requests/s | ratio (spread) | CPU a request | more | ratio of CPU |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as scratch:
        provide(Path(scratch), "hello_world", "uncounted")
        for app in ("asgi", "wsgi"):
            measure(Path(scratch), app, args)


if __name__ == "__main__":
    main()
