"""Requests that fail behind nginx and HAProxy while workers and arbiters come and go, next to gunicorn's own.

    python -m tests.benchmarks.in_front [--reloads 2] [--recycles 20] [--upgrades 1] [--full]

Needs nginx, HAProxy and, in the same environment, uvicorn-worker. The proxies have the configurations of
examples/nginx and examples/haproxy. The client is that of ``tests.benchmarks.restarts``; it sends POST, which
a proxy does not send twice. An upgrade is USR2, and TERM to the old arbiter when the new one serves.
``--full`` makes 10 reloads, 200 recycles and 3 upgrades.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.benchmarks.common import (
    LOCAL,
    OURS,
    REQUEST,
    UVICORN_WORKER,
    Process,
    free_port,
    gunicorn,
    poll,
    provide,
)
from tests.benchmarks.restarts import CLIENTS, Client, failed
from tests.support.proxies import Proxy, ended, example_haproxy, example_nginx

POST = REQUEST.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 0\r\n\r\n")
PROXIES = ("nginx, TCP", "nginx, unix socket", "HAProxy, TCP", "HAProxy, unix socket")


class Kind(NamedTuple):
    worker: str
    app: str
    starts: str  # in the log, of a worker
    settles: float = 0.0  # seconds until a worker serves from then on


KINDS = {
    "multicore_server, ASGI": Kind(OURS, "asgi", r" ready after "),
    "multicore_server, WSGI": Kind(OURS, "wsgi", r" ready after "),
    "uvicorn-worker": Kind(UVICORN_WORKER, "asgi", r"Application startup complete"),
    "gthread": Kind("gthread", "wsgi", r"Booting worker with pid", 1.0),
}


class Server(Process):
    """Two workers, on a port and on a unix socket."""

    def __init__(self, directory: Path, kind: Kind, *options: str) -> None:
        self.kind = kind
        self.socket = directory / f"{free_port()}.sock"
        self.metrics = free_port()
        usual = ["-b", f"unix:{self.socket}", "--keep-alive", "75"]
        usual += ["--threads", "4"] if kind.worker == "gthread" else []
        with_port = gunicorn(kind.worker, 2, f"hello_world:{kind.app}", *usual, *options)

        def command(port: int) -> list[str]:
            """By its script: gunicorn's own USR2 has no -m."""
            return [str(Path(sys.executable).with_name("gunicorn")), *with_port(port)[3:]]

        env = {**os.environ, "MULTICORE_METRICS_BIND": f"{LOCAL}:{self.metrics}"}
        super().__init__(directory, command, env)
        self.arbiter = self.process.pid

    def starts(self) -> int:
        return self.logged(self.kind.starts)

    def wait_starts(self, wanted: int) -> None:
        poll(lambda: self.starts() >= wanted, patience=600.0)
        time.sleep(self.kind.settles)

    def upgrade(self) -> None:
        before, old, promoted = self.starts(), self.arbiter, self.logged("Master has been promoted")
        arbiters = self.logged("Starting gunicorn")
        os.kill(old, signal.SIGUSR2)
        poll(lambda: self.logged("Starting gunicorn") > arbiters)
        self.arbiter = int(re.findall(r"\[(\d+)\] \[INFO\] Starting gunicorn", self.text())[-1])
        self.wait_starts(before + 2)
        os.kill(old, signal.SIGTERM)
        poll(lambda: self.logged("Master has been promoted") > promoted)  # USR2 is ignored before
        poll(lambda: self.process.poll() is not None and not psutil.pid_exists(old))

    def end(self) -> None:
        if self.arbiter != self.process.pid:
            last = psutil.Process(self.arbiter)
            last.terminate()
            last.wait(60)
        super().end()


def reloads(server: Server, times: int) -> None:
    for _ in range(times):
        wanted = server.starts() + 2
        os.kill(server.arbiter, signal.SIGHUP)
        server.wait_starts(wanted)
        time.sleep(0.5)  # the old ones end


def recycles(server: Server, times: int) -> None:
    server.wait_starts(server.starts() + times)


def upgrades(server: Server, times: int) -> None:
    for _ in range(times):
        server.upgrade()


def make_proxy(name: str, directory: Path, server: Server) -> Proxy:
    if name.startswith("nginx"):
        return example_nginx(
            directory, f"{LOCAL}:{server.port}" if "TCP" in name else f"unix:{server.socket}"
        )
    address = f"{LOCAL}:{server.port}" if "TCP" in name else f"unix@{server.socket}"
    # gunicorn has no address that says whether it is ready: its own port is asked.
    return example_haproxy(directory, address, server.metrics if server.kind.worker == OURS else server.port)


@contextmanager
def running(directory: Path, kind: Kind, proxy: str, *options: str) -> Iterator[tuple[Server, Proxy]]:
    server = Server(directory, kind, *options)
    made: list[Proxy] = []
    try:
        server.wait_starts(2)
        with ended(made):
            made.append(make_proxy(proxy, directory, server))
            time.sleep(1)  # HAProxy has asked whether the server is ready
            yield server, made[0]
    finally:
        server.end()


def measure(server: Server, proxy: Proxy, work: Callable[[Server, int], None], times: int) -> str:
    clients = [Client(proxy.port, kept_alive=True, trusting=None) for _ in range(CLIENTS)]
    for client in clients:
        client.request = POST
    return failed(clients, f"{server.kind.worker} {server.kind.app}", lambda: work(server, times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--reloads", type=int, default=2)
    parser.add_argument("--recycles", type=int, default=20)
    parser.add_argument("--upgrades", type=int, default=1)
    parser.add_argument("--full", action="store_true", help="10 reloads, 200 recycles, 3 upgrades")
    args = parser.parse_args()
    if args.full:
        args.reloads, args.recycles, args.upgrades = 10, 200, 3
    recycling = ["--max-requests", "150", "--max-requests-jitter", "50"]
    contests: list[tuple[str, Callable[[Server, int], None], int, list[str]]] = [
        ("reloads", reloads, args.reloads, []),
        ("recycles", recycles, args.recycles, recycling),
        ("USR2", upgrades, args.upgrades, []),
    ]
    print(
        f"| failed requests | proxy | {' | '.join(KINDS)} |\n| --- | --- |{' --- |' * len(KINDS)}", flush=True
    )
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        provide(directory, "hello_world")
        for name, work, times, options in contests:
            for proxy in PROXIES:
                cells = []
                for kind in KINDS.values():
                    with running(directory, kind, proxy, *options) as (server, before):
                        cells.append(measure(server, before, work, times))
                print(f"| {times} {name} | {proxy} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
