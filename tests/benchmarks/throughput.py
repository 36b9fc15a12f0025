"""What this server costs and saves against its peers, measured in one run.

    python -m tests.benchmarks.throughput [--seconds 3] [--rounds 7]

Needs ``wrk`` (Debian's package of that name) and, in the same environment, uvicorn-worker. The client has the
last CPU to itself and the servers have the others, one worker each, so that the figures are the servers'.
Machines are noisy: rounds alternate between ours and the peer, and the table gives medians, spreads and the
median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.common import (
    OURS,
    UVICORN_WORKER,
    Process,
    cpu_seconds_of,
    gunicorn,
    poll,
    provide,
    serving,
)

CLOSE = ["-H", "Connection: close"]
CPUS = sorted(os.sched_getaffinity(0))
SERVING = CPUS[:-1] or CPUS
SETTLED = 10.0  # seconds until workers without requests are at rest


def requests_per_second(server: Process, seconds: float, *options: str) -> float:
    command = ["wrk", "-t1", "-c32", f"-d{seconds:g}s", *options, f"http://127.0.0.1:{server.port}/"]
    command = ["taskset", "-c", str(CPUS[-1]), *command]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in said:
        sys.exit(f"benchmark: failed requests\n{said}")
    return float(re.findall(r"Requests/sec:\s+([\d.]+)", said)[0])


def row(name: str, ours: list[float], peer: list[float], target: str, unit: str = "requests/s") -> None:
    ratio = statistics.median(a / b for a, b in zip(ours, peer, strict=True))
    cells = [f"{statistics.median(v):,.0f} ({min(v):,.0f}-{max(v):,.0f})" for v in (ours, peer)]
    print(f"| {name} | {cells[0]} {unit} | {cells[1]} {unit} | {ratio:.2f} | {target} |", flush=True)


def throughput(directory: Path, args: argparse.Namespace) -> None:
    contests: list[tuple[str, str, str, list[str], list[str], str]] = [
        ("ASGI hello, kept alive", "hello_world:asgi", UVICORN_WORKER, [], [], ">= 0.97"),
        ("ASGI hello, close", "hello_world:asgi", UVICORN_WORKER, [], CLOSE, ">= 0.97"),
        ("WSGI hello, kept alive", "hello_world:wsgi", "gthread", [], [], ">= 2.5"),
    ]
    for name, app, peer, peer_options, wrk, target in contests:
        with (
            serving(directory, gunicorn(OURS, args.workers, app)) as ours,
            serving(directory, gunicorn(peer, args.workers, app, *peer_options)) as other,
        ):
            results: dict[Process, list[float]] = {ours: [], other: []}
            for number in range(args.rounds):
                for server in (ours, other) if number % 2 else (other, ours):
                    results[server].append(requests_per_second(server, args.seconds, *wrk))
        row(name, results[ours], results[other], target)


def boot_time(directory: Path, worker: str, workers: int) -> float:
    """Milliseconds from exec until the last worker has started its app."""
    started = time.monotonic()
    server = Process(directory, gunicorn(worker, workers, "marks_start:app"))
    marks = directory / "marks"
    poll(lambda: marks.exists() and len(marks.read_text()) >= workers)
    took = time.monotonic() - started
    server.end()
    marks.unlink()
    return took * 1000


def boots(directory: Path, args: argparse.Namespace) -> None:
    os.sched_setaffinity(0, CPUS)  # there is no client
    ours, peer = [], []
    for _ in range(args.rounds):
        ours.append(boot_time(directory, OURS, 8))
        peer.append(boot_time(directory, UVICORN_WORKER, 8))
    row("exec to 8 workers ready", ours, peer, "<= 1", "ms")


def crash_to_fork(directory: Path, args: argparse.Namespace) -> None:
    with serving(directory, gunicorn(OURS, args.workers, "hello_world:asgi")) as server:
        times = []
        for _ in range(20):
            before = {child.pid for child in server.workers()}
            victim = min(before)
            started = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            poll(lambda before=before: {c.pid for c in server.workers()} - before, 0.0005)  # type: ignore[misc]
            times.append((time.monotonic() - started) * 1000)
            poll(lambda: server.text().count(" ready after ") >= args.workers + len(times))
    spread = f"{statistics.median(times):.1f} ({min(times):.1f}-{max(times):.1f}) ms"
    print(f"| crash to replacement forked | {spread} | | | < 50 ms |", flush=True)


def idle_shares(directory: Path, worker: str, workers: int, seconds: float) -> list[float]:
    """Of a CPU: the arbiter's, and the whole server's."""
    with serving(directory, gunicorn(worker, workers, "hello_world:asgi")) as server:
        poll(lambda: len(server.workers()) >= workers)
        time.sleep(SETTLED)
        family = [server.process.pid, *(child.pid for child in server.workers())]
        before = [*map(cpu_seconds_of, family)]
        time.sleep(seconds)
        used = [(cpu_seconds_of(pid) - then) / seconds for pid, then in zip(family, before, strict=True)]
    return [used[0], sum(used)]


def idle(directory: Path, workers: int = 32, seconds: float = 20.0) -> None:
    ours, peer = (idle_shares(directory, worker, workers, seconds) for worker in (OURS, UVICORN_WORKER))
    names = f"arbiter idle, {workers} workers", f"a whole server of {workers} workers idle"
    for name, our, other, target in zip(names, ours, peer, ("< 0.5 %", "< 1 %"), strict=True):
        cells = f"{our:.2%} of a CPU | {other:.2%} of a CPU | {our / other:.2f}"
        print(f"| {name} | {cells} | {target} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("benchmark: wrk is not installed (apt-get install wrk)")
    os.sched_setaffinity(0, SERVING)  # inherited by the servers
    args.workers = len(SERVING)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        provide(directory, "hello_world", "marks_start")
        print(
            "| what | multicore_server | peer | ratio | target |\n| --- | --- | --- | --- | --- |", flush=True
        )
        throughput(directory, args)
        boots(directory, args)
        crash_to_fork(directory, args)
        idle(directory)


if __name__ == "__main__":
    main()
