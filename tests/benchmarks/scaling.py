"""How well requests that block their worker are spread over 8 workers: ours, the peers and the ideal.

    python -m tests.benchmarks.scaling [--seconds 4] [--runs 1] [--only NAME ...]

Each request blocks its worker for 20 ms (``time.sleep`` in an ``async def``: CPU-bound work without burning a
CPU, so that eight workers can be measured on two cores), so eight workers can answer 400 requests/s. The
reference is an ideal placement: eight single-worker servers, each given its even share of the connections.
Needs uvicorn-worker and granian in the same environment.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.common import LOCAL, OURS, UVICORN_WORKER, Process, answers, gunicorn, poll, provide

WORKERS = 8
BLOCK = b"GET /block?0.02 HTTP/1.1\r\nHost: x\r\n\r\n"
BLOCK_CLOSE = b"GET /block?0.02 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
APP = "hello_world:asgi"

QUIET = ["--log-level", "error"]
COMMANDS: dict[str, Callable[[int], list[str]]] = {
    "multicore_server": gunicorn(OURS, WORKERS, APP, *QUIET),
    "gunicorn + uvicorn-worker": gunicorn(UVICORN_WORKER, WORKERS, APP, *QUIET),
    "uvicorn --workers": lambda port: [
        sys.executable, "-m", "uvicorn", "--workers", str(WORKERS), "--no-access-log", "--log-level", "error",
        "--port", str(port), APP,
    ],
    "granian": lambda port: [
        sys.executable, "-m", "granian", "--interface", "asgi", "--workers", str(WORKERS), "--no-log",
        "--port", str(port), APP,
    ],
}  # fmt: skip


def _single(port: int) -> list[str]:
    quiet = ["--no-access-log", "--log-level", "error"]
    return [sys.executable, "-m", "uvicorn", *quiet, "--port", str(port), APP]


async def one_client(port: int, until: float, *, close: bool, times: list[float]) -> None:
    """Requests one after the other, on one connection or on one each; a failed one ends the benchmark."""
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None
    while time.monotonic() < until:
        started = time.monotonic()
        if reader is None or writer is None:
            reader, writer = await asyncio.open_connection(LOCAL, port)
        writer.write(BLOCK_CLOSE if close else BLOCK)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(13)
        assert head.startswith(b"HTTP/1.1 200"), head
        times.append(time.monotonic() - started)
        if close:
            writer.close()
            reader = writer = None
    if writer is not None:
        writer.close()


async def load(ports: list[int], connections: int, seconds: float, *, close: bool) -> tuple[float, float]:
    """Requests per second, and the 99th percentile of the response time in milliseconds."""
    times: list[float] = []
    started = time.monotonic()
    clients = (
        one_client(ports[i % len(ports)], started + seconds, close=close, times=times)
        for i in range(connections)
    )
    await asyncio.gather(*clients)
    took = time.monotonic() - started
    return len(times) / took, statistics.quantiles(times, n=100)[98] * 1000


class Servers:
    """One server, or the ideal's eight, with their ports."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        count = WORKERS if name == "ideal" else 1
        self.servers = [Process(directory, COMMANDS.get(name, _single)) for _ in range(count)]
        self.ports = [server.port for server in self.servers]
        poll(lambda: all(map(answers, self.ports)))
        time.sleep(2)  # every worker

    def end(self) -> None:
        for server in self.servers:
            server.end()


CELLS = [(connections, close) for close in (False, True) for connections in (8, 16, 64)]


def measure(name: str, directory: Path, seconds: float) -> list[tuple[float, float]]:
    servers = Servers(name, directory)
    try:
        cells = []
        for connections, close in CELLS:
            cells.append(asyncio.run(load(servers.ports, connections, seconds, close=close)))
            time.sleep(0.3)
        return cells
    finally:
        servers.end()


def table(results: dict[str, list[tuple[float, float]]]) -> None:
    heads = [f"{'close' if close else 'kept alive'} c={connections}" for connections, close in CELLS]
    print("| server | " + " | ".join(heads) + " |\n|" + " --- |" * (len(heads) + 1))
    ideal = results["ideal"]
    for name, cells in results.items():
        texts = [
            f"{rate:.0f} ({rate / best[0]:.2f}), {p99:.0f} ms"
            for (rate, p99), best in zip(cells, ideal, strict=True)
        ]
        print(f"| {name} | " + " | ".join(texts) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=4.0, help="per cell")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=list(COMMANDS), default=list(COMMANDS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        provide(Path(scratch), "hello_world")
        for run in range(args.runs):
            print(f"\nrun {run + 1}: requests/s (part of the ideal), p99\n", flush=True)
            names = ["ideal", *args.only]
            table({name: measure(name, Path(scratch), args.seconds) for name in names})


if __name__ == "__main__":
    main()
